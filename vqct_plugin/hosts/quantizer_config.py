"""``quantizer_config: {target, params}``: how a patched host names its quantizer.

Every patch in ``patches/`` calls :func:`build_quantizer`, so that a host's YAML, and its arguments, mean the same in
each of them.
"""

import importlib
import os
from pathlib import Path
from typing import Any, Mapping, Union

from vqct_plugin.compat.containers import to_plain

__all__ = ["build_quantizer"]

Config = Union[Mapping[str, Any], str, "os.PathLike[str]"]


def build_quantizer(config: Config, **host: Any) -> Any:
    """The quantizer that ``config`` names, made with what the host gives and with its own ``params``.

    Args:
        config: ``{"target": "package.Class", "params": {...}}``, also as one of OmegaConf's containers; or the path of
            a YAML or JSON file that holds it, at its top or under the key ``quantizer_config``.
        host: what the host would have given its own quantizer (``n_e``, ``e_dim``, ...); ``params`` take precedence.

    Raises:
        ValueError: no ``target``, a key that is neither, a file without them, or a target that is not there.
        TypeError: the target takes no such argument.

    >>> quantizer = build_quantizer({"target": "vqct_plugin.Quantizer", "params": {"topk": 2}}, n_e=512, e_dim=64)
    >>> quantizer.tokens_per_position
    3
    """
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
    return build_beside(_class(config["target"], where), host, {**host, **params})


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
