"""Training from Python: ``vqct_plugin.train``, with a config and data as they are at hand there."""

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch

from vqct_plugin.runs.config import ConfigError, DataError, read_config
from vqct_plugin.runs.datasets import SUFFIXES
from vqct_plugin.training.launcher import Run, locate_resumed, run

__all__ = ["train"]

#: where a data set's size comes from, unless it is given
_SIZE = "${model.params.ddconfig.resolution}"


def train(
    config: Any = None,
    data: Any = None,
    validation: Any = None,
    *,
    size: Optional[int] = None,
    batch_size: Optional[int] = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Train a model on your images, as ``vqct-train`` does.

    Args:
        config: a taming YAML: a path, ``vqct:NAME`` for one of the package's, or what it would hold, as a mapping or of
            OmegaConf; also its section ``model`` alone (``target``, ``params``, ``base_learning_rate``); or a list of
            these, merged from left to right. None where a run is resumed.
        data: what to train on, in place of the config's data: a folder of images, or of webdataset's shards; a list
            file; a list of images' paths; a shard, or a pattern of shards; a data set with ``__len__`` and
            ``__getitem__`` that gives images, torch's, Hugging Face's, or a list of pictures (see
            :class:`~vqct_plugin.runs.given.GivenImages`); or a mapping, ``{target, params}``, as in a YAML. Images are
            cropped anywhere and flipped. By default the config's own.
        validation: the same for validation, where the middle is cropped; with ``data``, none by default.
        size: the side of the squares that images are cropped to, in pixels; by default the model's ``resolution``.
        batch_size: images in a batch, for each process; by default the config's.
        overrides: ``key=value`` with dots, on top of the config.
        options: further arguments of :func:`~vqct_plugin.training.launcher.run`: ``trainer``, ``gpus``, ``name``,
            ``postfix``, ``resume``, ``logdir``, ``seed``, ``test``.

    A run resumed goes on with the data that its folder names. What was given as an object has to be given again.

    Returns:
        The run that has ended: its folder, which :func:`vqct_plugin.load_run` reads, the model, the trainer, seconds.

    Raises:
        ConfigError: something in the config or the arguments cannot be used; nothing has been written then.
        DataError: a data set is empty, or an item cannot be read.
    """
    parts = _read_parts(config)
    given: Dict[str, Any] = {}
    ours: Dict[str, Any] = {}
    if data is not None or validation is not None:
        sets: Dict[str, Any] = {}
        for name, source in (("train", data), ("validation", validation)):
            if source is not None:
                sets[name], it = _describe(source, _SIZE if size is None else size, name == "train")
                if it is not None:
                    given[name] = it
        ours["data"] = {"target": "main.DataModuleFromConfig", "params": sets}
        replaced = ("train", "validation", "test") if data is not None else ("validation",)
        # Merged first, so that nothing of the data before is merged with what is given, also of a run's own config
        parts.append(read_config({"data": {"params": dict.fromkeys(replaced)}}))
        before = [*_read_run(options), *parts]
        if data is not None and validation is None and any("monitor" in _get_params(p, "model") for p in before):
            ours["model"] = {"params": {"monitor": None}}  # a figure of the validation that there is not
    elif size is not None:
        raise ConfigError(f"size is {size}, but no data is given; in a YAML it is data.params.train.params.size")
    if batch_size is not None:
        ours.setdefault("data", {}).setdefault("params", {})["batch_size"] = batch_size
    base = [*parts, *([ours] if ours else [])]
    if isinstance(config, (str, Path)) and not options.get("resume"):
        options["name"] = options.get("name") or Path(str(config).rpartition(":")[2]).stem
    return run(base, overrides, given=given, **options)


def _read_parts(config: Any) -> List[Any]:
    """The configs as OmegaConf's, each a whole one."""
    if isinstance(config, torch.nn.Module):
        name = type(config).__name__
        raise ConfigError(
            f"config is a model, a {name}; expected what it is made from, since a run's folder keeps that to load and "
            f"resume it: a YAML, or {{'target': 'vqct_plugin.{name}', 'params': {{...}}, 'base_learning_rate': ...}}"
        )
    if config is None:
        return []
    each = config if isinstance(config, (list, tuple)) else [config]
    parts = []
    for one in each:
        if not isinstance(one, (str, Path, Mapping)):
            raise ConfigError(
                f"config is a {type(one).__name__}; expected the path of a YAML, a mapping, or OmegaConf's"
            )
        part = read_config(one)
        parts.append(read_config({"model": part}) if "target" in part and "model" not in part else part)
    return parts


def _read_run(options: Mapping[str, Any]) -> List[Any]:
    """The configs of the run that is resumed, if one is."""
    resume = options.get("resume")
    if not resume:
        return []
    _, _, configs = locate_resumed(resume, Path(options.get("logdir", "logs")))
    return [read_config(file) for file in configs]


def _describe(source: Any, size: Union[int, str], training: bool) -> Tuple[Dict[str, Any], Any]:
    """A data set as a YAML names it, and the object that no YAML can hold, if it is one."""
    how: Dict[str, Any] = {"size": size, **({"random_crop": True, "flip": True} if training else {})}
    if isinstance(source, Mapping):
        if "target" not in source:
            raise DataError(f"data is a mapping with {', '.join(map(str, source))}; expected the key target")
        return dict(source), None
    listed = isinstance(source, (list, tuple)) and bool(source) and all(isinstance(s, (str, Path)) for s in source)
    if isinstance(source, (str, Path)) or listed:
        path = [str(file) for file in source] if listed else str(source)
        sharded = _are_sharded(path) if isinstance(path, list) else _is_sharded(path)
        target = "vqct_plugin.runs.shards.ShardedImages" if sharded else "vqct_plugin.runs.datasets.Images"
        return {"target": target, "params": {"path": path, **how}}, None
    what = f"{type(source).__module__}.{type(source).__qualname__}"
    return {"target": "vqct_plugin.runs.given.take_dataset", "params": {"dataset": what, **how}}, source


def _is_sharded(path: str) -> bool:
    """Whether it is a shard, a pattern of shards, or a folder of them, in which there are no images then."""
    folder = Path(path)
    if path.endswith(".tar"):
        return not folder.is_dir()
    if not folder.is_dir():
        return False
    found: Dict[str, Path] = {}
    # the data set will walk it again; without a Path for each file this is brief
    for place, _, names in os.walk(folder):
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            kind = "shard" if suffix == ".tar" else "image" if suffix in SUFFIXES else "other"
            if kind not in found:
                found[kind] = Path(place, name)
        if "shard" in found and "image" in found:
            _refuse_mixture(f"the folder {path}", found["image"], found["shard"])
    return "shard" in found


def _are_sharded(paths: Sequence[str]) -> bool:
    shards = [path for path in paths if path.endswith(".tar")]
    if shards and len(shards) < len(paths):
        _refuse_mixture("the list", next(path for path in paths if path not in shards), shards[0])
    return bool(shards)


def _refuse_mixture(what: str, image: Any, shard: Any) -> None:
    raise DataError(
        f"{what} has images, such as {image}, and shards, such as {shard}; expected one of the two: take the others "
        "out, or say what is meant with {'target': 'vqct_plugin.runs.datasets.Images', 'params': {'path': ..., 'size': "
        "...}}, or vqct_plugin.runs.shards.ShardedImages"
    )


def _get_params(config: Any, section: str) -> Any:
    """The params of a section; nothing where there are none, which is said when the config is checked."""
    part = config.get(section)
    params = part.get("params") if isinstance(part, Mapping) else None
    return params if isinstance(params, Mapping) else {}
