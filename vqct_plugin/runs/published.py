"""A run from the hub, or from a folder as it is there: its config, read with care, and its weights.

``config.json`` holds the run's config, ``model.safetensors`` its weights, with the prior and the settings of its
quantizer among them. :mod:`vqct_plugin.runs.publish` writes them.
"""

import logging
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Sequence

from omegaconf import OmegaConf

from vqct_plugin.compat.hub import CONFIG, WEIGHTS, HubError
from vqct_plugin.compat.pretrained import locate, read_config
from vqct_plugin.compat.trusted import is_trusted, list_names, refuse_foreign
from vqct_plugin.pretrained import split_name
from vqct_plugin.runs.config import ConfigError

_log = logging.getLogger(__name__)
FORM = "vqct_run"
_DATA = "main.DataModuleFromConfig"


class Published(NamedTuple):
    """A run as the hub has it: its config, its weights, and whether those of its loss are among them."""

    config: Any
    checkpoint: Path
    loss: bool


def find_published(path: Any, trusted: Sequence[str] = (), **where: Any) -> Optional[Published]:
    """The run in a folder as on the hub, of the weights in one, or of a name on the hub; None for any other path.

    Args:
        path: the folder, its ``model.safetensors``, or ``user/name``.
        trusted: see :func:`vqct_plugin.runs.load.load_run`.
        where: ``revision``, ``cache_dir``, ``token``, ``local_files_only``.

    Raises:
        ConfigError: it cannot be had, or its config cannot be used.
    """
    file = Path(path)
    is_folder = file.is_dir() and (file / CONFIG).is_file() and not (file / "checkpoints").is_dir()
    is_weights = file.name == WEIGHTS and file.is_file() and (file.parent / CONFIG).is_file()
    if not (is_folder or is_weights or (not file.exists() and split_name(path) is not None)):
        return None
    try:
        named = str(path) if not is_weights else str(file.parent)
        config_file, weights = locate(named, where, FORM, CONFIG, WEIGHTS)
        whole = read_config(config_file, FORM, named)
        return Published(_check(whole, trusted, named), weights, whole.get("loss") is True)
    except HubError as error:
        raise ConfigError(str(error)) from error


def name_published(checkpoint: Path) -> str:
    """What to call a run whose weights lie here: its folder, or its name on the hub without the user's."""
    folder = checkpoint.absolute().parent
    if folder.parent.name == "snapshots":  # of the hub's cache: models--user--name/snapshots/commit
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _check(whole: Dict[str, Any], trusted: Sequence[str], source: str) -> Any:
    config = whole.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise HubError(f"{CONFIG} of {source} has no config of a run; expected config: {{model: ..., data: ...}}")
    # what OmegaConf would put in from elsewhere, such as this machine's environment
    foreign = next((text for text in _list_texts(config) if "${" in text or text == "???"), None)
    if foreign is not None:
        raise HubError(f"{CONFIG} of {source} has the value {foreign!r}; expected values, with nothing left to fill in")
    model = config["model"]
    in_loss = ((model.get("params") or {}).get("lossconfig")) if whole.get("loss") is not True else None
    checked = {**model, "params": {**(model.get("params") or {}), "lossconfig": {}}} if in_loss is not None else model
    refuse_foreign({"model": checked}, trusted, source)
    return OmegaConf.create({"model": model, "data": _check_data(config.get("data"), trusted, source)})


def _check_data(data: Any, trusted: Sequence[str], source: str) -> Dict[str, Any]:
    """The data of a config, without the data sets that it may not name: a model works without them."""
    data = data if isinstance(data, dict) else {}
    params = data.get("params") if isinstance(data.get("params"), dict) else {}
    kept = {}
    for key, entry in params.items():
        foreign = [name for _, name in list_names(entry, "") if not is_trusted(name, trusted)]
        if foreign:
            _log.warning("%s names the data set %s, which is left out: pass trusted to have it", source, foreign[0])
        else:
            kept[key] = entry
    target = data.get("target")
    return {"target": target if is_trusted(target, trusted) else _DATA, "params": kept}


def _list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _list_texts(item)
            yield str(key)
    elif isinstance(value, list):
        for item in value:
            yield from _list_texts(item)
    elif isinstance(value, str):
        yield value
