"""A taming YAML: reading, merging, checking, and building what it names."""

import copy
import difflib
import importlib
import inspect
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Union

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.taming_imports import lend_removed_names

__all__ = ["load_config", "ConfigError", "DataError"]

#: what a taming YAML may hold; ``lightning`` is optional
KEYS = {
    "": ("model", "data", "lightning"),
    "model": ("target", "params", "base_learning_rate"),
    "data": ("target", "params"),
    "lightning": ("trainer", "logger", "modelcheckpoint", "callbacks"),
}

#: what taming's launcher defined or took from Lightning 1, and what stands in its place here; a launcher adds its own
STAND_INS = {
    "DataModuleFromConfig": "vqct_plugin.runs.datasets.DataModuleFromConfig",
    "LearningRateMonitor": "pytorch_lightning.callbacks.LearningRateMonitor",
    "ModelCheckpoint": "pytorch_lightning.callbacks.ModelCheckpoint",
}


#: before the name of a config that comes with the package: ``vqct:cub_vqct.yaml``, ``vqct:over/paper.yaml``
SHIPPED = "vqct:"
_PACKAGE = Path(__file__).parent.parent


class ConfigError(ValueError):
    """A config or an argument that cannot be used. The message says what arrived, and what was expected."""


class DataError(ValueError):
    """Data that cannot be used: missing, empty or unreadable. The message names the file or the data set."""


def load_config(files: Iterable[Union[str, Path, Mapping[str, Any]]], overrides: Sequence[str] = ()) -> Any:
    """Merge YAML files from left to right, then overrides such as ``model.params.n_embed=512``, and check the keys.

    A file is a path, or ``vqct:NAME`` for a config that comes with the package, see :func:`locate_config`; or what it
    would hold, as a mapping or of OmegaConf.

    Raises:
        ConfigError: a file is missing or no YAML, an override is not ``key=value``, or a key is unknown.
    """
    parts = [read_config(file) for file in files]
    for override in overrides:
        if "=" not in override or override.startswith(("=", "-")):
            raise ConfigError(
                f"cannot use the argument {override!r}; overrides are key=value, such as model.params.n_embed=512"
            )
    try:
        config = OmegaConf.merge(*parts, OmegaConf.from_dotlist(list(overrides)))
        OmegaConf.resolve(config)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"the configs cannot be merged: {error}") from error
    _check_keys(config)
    missing = _find_missing(OmegaConf.to_container(config), "")
    if missing:
        raise ConfigError(f"{' and '.join(missing)} have to be given (??? in the config) as overrides, KEY=VALUE")
    return config


def read_config(file: Union[str, Path, Mapping[str, Any]]) -> Any:
    """One config as it stands, neither resolved nor checked; a copy, where it is a mapping already.

    Raises:
        ConfigError: a file is missing or no YAML, or holds no mapping.
    """
    if isinstance(file, Mapping):
        try:
            return OmegaConf.create(copy.deepcopy(file))
        except OmegaConfBaseException as error:
            raise ConfigError(f"the config given as a mapping holds what no YAML can: {error}") from error
    file = locate_config(file)
    if not file.is_file():
        raise ConfigError(f"there is no config {file}")
    try:
        config = OmegaConf.load(file)
    except Exception as error:  # of yaml's scanner, parser and constructor, and OSError
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from error
    if not OmegaConf.is_dict(config):
        raise ConfigError(f"{file} holds no mapping; expected the keys model, data and, if need be, lightning")
    return config


def locate_config(file: Union[str, Path]) -> Path:
    """The path of a config: ``vqct:cub_vqct.yaml`` is one that comes with the package, all else is a path already.

    Raises:
        ConfigError: the package has no config of that name.
    """
    if not str(file).startswith(SHIPPED):
        return Path(file)
    configs, name = shipped_configs(), str(file)[len(SHIPPED) :]
    if name not in configs:
        raise ConfigError(f"there is no config {name!r} in the package; expected one of {', '.join(configs)}")
    return configs[name]


def shipped_configs() -> Dict[str, Path]:
    """name -> path of the configs that come with the package, with ``/`` in the name on every system."""
    folder = _PACKAGE / "configs"  # of a wheel, which is built with configs_taming under this name
    if not folder.is_dir():
        folder = _PACKAGE.parent / "configs_taming"  # of a checkout, also an editable install
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.yaml"))}


def _find_missing(value: Any, key: str) -> List[str]:
    """The keys, with dots, whose value is OmegaConf's ``???``."""
    if isinstance(value, Mapping):
        return [found for name, item in value.items() for found in _find_missing(item, f"{key}.{name}".lstrip("."))]
    return [key] if value == "???" else []


def _check_keys(config: Any) -> None:
    for section, known in KEYS.items():
        block = config if section == "" else config.get(section)
        if block is None:
            if section == "lightning":
                continue
            raise ConfigError(f"the config has no `{section}`; expected {' and '.join(KEYS[''][:2])}")
        if not OmegaConf.is_dict(block):
            raise ConfigError(f"`{section}` is {block!r}; expected a mapping with the keys {', '.join(known)}")
        for key in block:
            if key not in known:
                where = f"`{section}`" if section else "the config"
                raise ConfigError(f"{where} has an unknown key `{key}`{suggest(str(key), known)}")
    for section in ("model", "data"):
        if not config[section].get("target"):
            raise ConfigError(f"`{section}` has no `target`; expected the path of a class")
    rate = config.model.get("base_learning_rate")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0:
        raise ConfigError(f"model.base_learning_rate is {rate!r}; expected a number above 0, such as 4.5e-6")


def suggest(name: str, known: Iterable[str]) -> str:
    """What was expected in place of a name: those close to it, or all."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f"; expected one of {', '.join(known)}"


def find(target: str, where: str, stand_ins: Optional[Mapping[str, str]] = None) -> Any:
    """The class that a ``target`` names; the launcher's own classes of 2021 by what stands in their place.

    Args:
        target: ``package.module.Class``.
        where: its place in the YAML, for errors.
        stand_ins: more of them than ``STAND_INS``.

    Raises:
        ConfigError: no such module or name; an ``ImportError`` inside a module is raised as it is.
    """
    module_name, _, name = str(target).rpartition(".")
    if not module_name:
        raise ConfigError(f"{where}.target is {target!r}; expected package.module.Class")
    instead = {**STAND_INS, **(stand_ins or {})}
    if module_name in ("main", "taming.main") and name in instead:
        module_name, _, name = instead[name].rpartition(".")
    elif name == "TestTubeLogger":
        module_name, name = "pytorch_lightning.loggers", "TensorBoardLogger"
    try:
        with lend_removed_names():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}.target is {target}, but there is no module {error.name}") from error
        raise ConfigError(f"{where}.target is {target}, whose module needs {error.name}, which is missing") from error
    if not hasattr(module, name):
        close = suggest(name, _list_public(module))
        raise ConfigError(f"{where}.target is {target}, but {module_name} has no {name}{close}")
    return getattr(module, name)


def check_target(config: Any, where: str) -> None:
    """Whether a config has a target; raises ConfigError."""
    if not isinstance(config, Mapping) or "target" not in config:
        raise ConfigError(f"{where} is {config!r}; expected a mapping with the key `target`")


def instantiate(config: Mapping[str, Any], where: str, found: Any = None) -> Any:
    """Build ``{target: package.module.Class, params: {...}}``; ``where`` is its place in the config, for errors.

    Args:
        config: the target and its parameters, as a mapping or of OmegaConf.
        where: the place in the YAML.
        found: the class, where it is not the target itself.

    Raises:
        ConfigError: there is no target, it is not found, or it does not take a parameter.
    """
    config = to_plain(config)
    check_target(config, where)
    cls = find(config["target"], where) if found is None else found
    params: Dict[str, Any] = dict(config.get("params") or {})
    check_params(cls, params, config["target"], where)
    return cls(**params)


def check_params(cls: Any, params: Mapping[str, Any], target: str, where: str) -> None:
    """Whether a class takes these parameters; raises ConfigError with the name of the target, as the YAML has it."""
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):  # built in C
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in params:
        if name not in signature.parameters and not takes_any:
            raise ConfigError(f"{target} takes no {where}.params.{name}{suggest(name, signature.parameters)}")
    missing = [
        name
        for name, p in signature.parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in params
    ]
    if missing and not takes_any:
        raise ConfigError(f"{target} needs {where}.params.{missing[0]}, which is not there")


def _list_public(module: Any) -> List[str]:
    return [name for name in dir(module) if not name.startswith("_")]
