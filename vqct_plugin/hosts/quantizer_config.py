"""``quantizer_config: {target, params}``: how a patched host names its quantizer.

Every patch in ``patches/`` calls :func:`build_quantizer`, so that a host's YAML, and its arguments, mean the same in
each of them.
"""

import difflib
import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.lightning import ADAPTER_OPTIONS
from vqct_plugin.compat.taming_stage_2 import adapt_taming_stage_2

__all__ = ["build_quantizer"]

#: the hosts' words for a quantizer's arguments
_SAME = {"n_embed": "n_e", "embed_dim": "e_dim"}
_HOSTS = Path(__file__).parent.parent / "patches" / "hosts.json"
#: hosts that read something else off their quantizer than taming does -> the target that gives it
ADAPTERS: Dict[str, str] = {
    name: entry["target"] for name, entry in json.loads(_HOSTS.read_text(encoding="utf-8")).items() if "target" in entry
}

Config = Union[Mapping[str, Any], str, "os.PathLike[str]"]


def build_quantizer(config: Config, for_host: Optional[str] = None, **host: Any) -> Any:
    """The quantizer that ``config`` names, made with what the host gives and with its own ``params``.

    Args:
        config: ``{"target": "package.Class", "params": {...}}``, also as one of OmegaConf's containers; or the path of
            a YAML or JSON file that holds it, at its top or under the key ``quantizer_config``.
        for_host: the host's name, the folder of its patch, where it reads something else off its quantizer than
            taming does.
        host: what the host would have given its own quantizer (``n_e``, ``e_dim``, ...); ``params`` take precedence.

    Raises:
        ValueError: no ``target``, a key that is neither, a file without them, a target that is not there or is for
            another host, or an option that is not available here.
        TypeError: the target does not accept an argument; the message suggests close matches.

    >>> quantizer = build_quantizer({"target": "vqct_plugin.Quantizer", "params": {"topk": 2}}, n_e=512, e_dim=64)
    >>> quantizer.tokens_per_position
    3
    """
    target, params, where = _parts(config)
    cls = _class(target, where)
    _check_host(cls, target, where, for_host, as_taming="sane_index_shape" in host)
    params = _rename_to_ours(params, where)
    if "e_dim" in params and host.get("e_dim", params["e_dim"]) != params["e_dim"]:
        raise ValueError(
            f"{where} has embed_dim {params['e_dim']}, and the host {host['e_dim']}: the host's convolutions have to "
            "fit the quantizer; set the host's own embed_dim, and leave it out here"
        )
    taken = _check_arguments(cls, target, where, params, host)
    return build_beside(cls, taken, {**taken, **params})


def with_host_options(config: Config, refused: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
    """``config`` with more of the host's options as ``params``, where it has none of the same name.

    Args:
        config: as of :func:`build_quantizer`.
        refused: options of the host's own quantizer that ours cannot obey, by name: each has to be false or None; or
            pairs of its value and the one that it has to have.
        options: those that it obeys, under the names that it has for them.

    Raises:
        ValueError: an option that cannot be obeyed is set.
    """
    target, params, where = _parts(config)
    for name, value in refused.items():
        value, wanted = value if isinstance(value, tuple) else (value or False, False)
        if value != wanted:
            raise ValueError(
                f"{name} is {value!r}; it is an option of the host's own quantizer, and {target}, which {where} "
                f"names, does not accept it: set {name}: {str(wanted).lower()}"
            )
    return {"target": target, "params": {**options, **_rename_to_ours(params, where)}}


def take_model_options(config: Any) -> Tuple[Any, Dict[str, Any]]:
    """A ``quantizer_config`` without the options of the model that it has among its ``params``, and these."""
    params = config.get("params") if isinstance(config, Mapping) else None
    if not isinstance(params, Mapping):
        return config, {}
    taken = {name: params[name] for name in ADAPTER_OPTIONS if name in params}
    return {**config, "params": {k: v for k, v in params.items() if k not in taken}}, taken


def refuse_unpatched(cls: Any) -> None:
    """Refuse a host's model that takes no ``quantizer_config``, where a YAML gives it one.

    Raises:
        ValueError: with the file that the model comes from, and the checkouts that an installed wheel hides.
    """
    from vqct_plugin.hosts.base import list_parameters

    if "quantizer_config" in list_parameters(*cls.__mro__):
        return
    file = Path(sys.modules[cls.__module__].__file__ or "")
    inside = Path(*cls.__module__.split(".")).with_suffix(".py")
    root = Path(str(file)[: -len(str(inside)) - 1])
    places = {Path(place or ".").resolve() for place in ["", *sys.path]}
    places = {place for place in places if not (place / inside.parts[0] / "__init__.py").exists()}
    hidden = [str(place) for place in sorted(places) if (place / inside).is_file() and place != root.resolve()]
    beside = (
        f" {' and '.join(hidden)} has such a file too, which it hides: Python prefers an installed package to a "
        "checkout's folder without __init__.py. Uninstall the package to use the checkout, or"
        if hidden
        else " To have it,"
    )
    raise ValueError(
        f"quantizer_config is for a patched host, and {cls.__module__} comes from {file}, which is not patched."
        f"{beside} call vqct_plugin.hosts.patching.patch_host({str(root)!r}); or leave the host as it is, with "
        "model.target: vqct_plugin.Quantizer"
    )


def accept_indices(loss: Any) -> Any:
    """A loss that also takes ``predicted_indices``, as latent-diffusion calls it: taming's, which the shipped configs
    of its first stages name, does not. Returns the loss itself; one that takes them is left as it is."""
    takes = inspect.signature(loss.forward).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    if "optimizer_idx" in takes and "predicted_indices" not in takes and not any_name:
        loss.forward = _WithoutIndices(loss)
    return loss


class _WithoutIndices:
    """A loss's ``forward`` that drops ``predicted_indices``; can be pickled and copied with the loss."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def __call__(self, *args: Any, predicted_indices: Any = None, **kwargs: Any) -> Any:
        return type(self.loss).forward(self.loss, *args, **kwargs)


def _parts(config: Config) -> Tuple[str, Dict[str, Any], str]:
    """The target, its params, and what messages call the config."""
    where = "quantizer_config"
    if isinstance(config, (str, os.PathLike)):
        where = str(config)
        config = _read(Path(config))
    config = to_plain(config)
    if not isinstance(config, Mapping) or not isinstance(config.get("target"), str):
        raise ValueError(f"{where} is {config!r}; expected {{target: vqct_plugin.Quantizer, params: {{...}}}}")
    unknown = sorted(set(config) - {"target", "params"})
    if unknown:
        raise ValueError(f"{where} has the key {unknown[0]!r}; expected `target` and `params`, options under `params`")
    params = config.get("params") or {}
    if not isinstance(params, Mapping):
        raise ValueError(f"params of {where} is {params!r}; expected a mapping from arguments to values")
    return config["target"], dict(params), where


def _rename_to_ours(params: Mapping[str, Any], where: str) -> Dict[str, Any]:
    """Params under the quantizer's own names."""
    for theirs, ours in _SAME.items():
        if theirs in params and ours in params:
            raise ValueError(f"{where} has both {theirs} and {ours}, which are the same; leave one out")
    return {_SAME.get(name, name): value for name, value in params.items()}


def _check_host(cls: Any, target: str, where: str, host: Optional[str], as_taming: bool) -> None:
    """Refuse a quantizer whose results this host cannot read, before the first step fails with an unclear error."""
    if not isinstance(cls, type) or not cls.__module__.startswith("vqct_plugin."):
        return
    expected = ADAPTERS.get(host or "", "vqct_plugin.Quantizer")
    if "ddconfig" in inspect.signature(cls.__init__).parameters:  # type: ignore[misc]
        raise ValueError(f"{where} names the target {target}, which is a whole model; expected {expected}")
    made_for = next((name for name, path in ADAPTERS.items() if path == f"{cls.__module__}.{cls.__qualname__}"), None)
    if (host is not None or as_taming) and made_for != host:
        reads = "taming's own quantizer returns" if made_for is None else f"{made_for} reads"
        raise ValueError(
            f"{where} names the target {target}, which returns what {reads}; {host or 'this host'} needs {expected}"
        )


def _check_arguments(
    cls: Any, target: str, where: str, params: Mapping[str, Any], host: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What the host gives, without options that are off there and unknown here; any other unknown option is refused."""
    known = _list_arguments(cls)
    if known is None:
        return host
    host = {name: value for name, value in host.items() if name in known or not (value is None or value is False)}
    for name in params:
        if name in ADAPTER_OPTIONS:  # the model's: no quantizer takes them
            raise ValueError(
                f"{where} has {name}, which is an option of the model, not of its quantizer. With "
                "vqct_plugin.training.launcher.run, write it beside quantizer_config, in model.params; with the host's "
                "own launcher, give it to the Trainer"
            )
        if name not in known:
            names = [*known, *_SAME]
            close = difflib.get_close_matches(str(name), names, n=3)
            hint = f"; close to it: {', '.join(close)}" if close else f"; it takes {', '.join(names)}"
            raise TypeError(f"{target}, the target of {where}, takes no argument {name!r}{hint}")
    for name in host:
        if name not in known:
            raise TypeError(
                f"{target}, the target of {where}, does not accept {name}, which the host passes; use a class with the "
                "signature of vqct_plugin.Quantizer (for Gumbel-VQ: model.target: vqct_plugin.GumbelVQ)"
            )
    return host


def _list_arguments(cls: Any) -> Optional[List[str]]:
    """The arguments that a class takes; None where its signature does not tell."""
    if not isinstance(cls, type):
        return None
    names: Dict[str, None] = {}
    for base in cls.__mro__:  # while ``**options`` are handed on
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        names.update((p.name, None) for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return list(names)
        if not base.__module__.startswith("vqct_plugin."):
            return None  # who knows what it does with them
    return None


def build_beside(quantizer: Any, host: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """Build a quantizer that takes exactly as many random numbers as the host's own ``VectorQuantizer2`` would.

    So the host draws the same numbers afterwards as with its own, a learned table starts from the host's to the last
    bit, and two quantizers in one model have different weights.
    """
    import torch

    from vqct_plugin.hosts.base import add_up, start_from

    theirs = None
    n_e, e_dim = (add_up(host.get(name, arguments.get(name))) for name in ("n_e", "e_dim"))
    if isinstance(n_e, int) and isinstance(e_dim, int) and min(n_e, e_dim) > 0:
        theirs = torch.nn.Embedding(n_e, e_dim).weight
        theirs.data.uniform_(-1.0 / n_e, 1.0 / n_e)
    with torch.random.fork_rng(devices=[]):
        built = quantizer(**arguments)
    start_from(built, theirs)
    adapt_taming_stage_2()  # a patched host's stage 2 builds its first stage here
    return built


def _class(target: str, where: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{where} names the target {target!r}, which cannot be imported: {error}; expected package.module.Class"
        ) from error


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the quantizer config {path}: {error.strerror or error}") from error
    import yaml  # JSON is YAML too

    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if isinstance(read, Mapping) and "quantizer_config" in read:
        return read["quantizer_config"]
    return read
