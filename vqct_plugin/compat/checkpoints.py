"""Reading the weights of a checkpoint, of any torch and Lightning, without running what it holds.

A ``.ckpt`` is a pickle, and a pickle is a program. ``torch.load`` either runs it, or, as ``weights_only`` (torch >=
1.13, the default from 2.6), refuses the checkpoints of old Lightning, which hold callbacks' classes and numpy numbers.
"""

import logging
import os
import zipfile
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from vqct_plugin.compat.pickles import materialize
from vqct_plugin.compat.records import Inert, read_stream, read_zip

__all__ = ["CheckpointError"]

_log = logging.getLogger(__name__)
WRITTEN = "vqct_written"  # in a checkpoint: when it was
_STOCK_CODEBOOK = "quantize.embedding.weight"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


def read_state_dict(path: Any, prefixes: Tuple[str, ...] = ("",)) -> Dict[str, Any]:
    """The ``state_dict`` of a Lightning checkpoint, on the CPU. Optimizer states and the rest are not even read.

    A ``.safetensors`` file is the state dict itself.

    Args:
        path: of the file.
        prefixes: only keys that begin with one of these are read.

    Returns:
        A dict from each key to its tensor (or plain value, for a module's extra state).

    Raises:
        CheckpointError: no such file, not a checkpoint, or one without a ``state_dict``.
    """
    if _is_safetensors(path):
        return _read_safetensors(path, prefixes)
    with _open_checkpoint(path) as (checkpoint, storage):
        if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
            holds = (
                f"the keys {', '.join(map(repr, list(checkpoint)[:6]))}{', ...' * (len(checkpoint) > 6)}"
                if isinstance(checkpoint, Mapping)
                else f"a {type(checkpoint).__name__}"
            )
            raise CheckpointError(
                f"{path} has no state_dict, it holds {holds}; ckpt_path takes a checkpoint as Lightning writes "
                'it: {"state_dict": {name: tensor, ...}, ...}'
            )
        weights = _materialize(checkpoint["state_dict"], storage, prefixes)
    for key, value in weights.items():
        if isinstance(value, Inert):
            raise CheckpointError(f"{path}: state_dict[{key!r}] is a {type(value).__name__}, expected a tensor")
    return weights


def read_weights(path: Any, prefixes: Tuple[str, ...] = ("",)) -> Dict[str, Any]:
    """The tensors of a file of weights, on the CPU; nothing in it is run.

    It is ``.safetensors``, or a state dict that ``torch.save`` wrote, bare or under the key ``state_dict``.
    ``prefixes``: as for :func:`read_state_dict`.

    Raises:
        CheckpointError: no such file, or it holds no state dict.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"there is no file {path}")
    if _is_safetensors(path):
        return _read_safetensors(path, prefixes)
    with _open_checkpoint(path) as (found, storage):
        found = found.get("state_dict", found) if isinstance(found, Mapping) else found
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{path} holds a {type(found).__name__}; expected a state dict, name -> tensor")
        return _materialize(found, storage, prefixes)


def _materialize(found: Mapping[Any, Any], storage: Any, prefixes: Tuple[str, ...]) -> Dict[str, Any]:
    return {str(key): materialize(value, storage) for key, value in found.items() if str(key).startswith(prefixes)}


def read_step(path: Any) -> int:
    """After how many steps a Lightning checkpoint was written; -1 where it does not say. Its tensors are not read.

    Raises:
        CheckpointError: no such file, or not a checkpoint.
    """
    return read_step_and_time(path)[0]


def read_step_and_time(path: Any) -> Tuple[int, float]:
    """After how many steps, as :func:`read_step`, and when a checkpoint was written, in seconds since 1970.

    The time is what ``vqct-train`` notes in it, which a copy keeps; of other checkpoints it is the file's.
    """
    if _is_safetensors(path):
        return _read_safetensors_step(path), os.stat(path).st_mtime
    with _open_checkpoint(path) as (checkpoint, _):
        noted = checkpoint if isinstance(checkpoint, Mapping) else {}
        step, written = noted.get("global_step"), noted.get(WRITTEN)
    if not isinstance(written, float):
        written = os.stat(path).st_mtime
    return step if isinstance(step, int) else -1, written


def _is_safetensors(path: Any) -> bool:
    return str(path).endswith(".safetensors") and os.path.isfile(str(path))


def _read_safetensors(path: Any, prefixes: Tuple[str, ...]) -> Dict[str, Any]:
    import torch
    from safetensors import safe_open

    framework = "pt" if hasattr(torch, "frombuffer") else "np"  # before 1.10, which safetensors does not serve
    try:
        with safe_open(str(path), framework=framework) as file:
            names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118
            weights = {name: torch.as_tensor(file.get_tensor(name)) for name in names}
    except Exception as error:  # of safetensors' own parser, or of the system
        raise CheckpointError(f"{path} is not a readable safetensors file ({type(error).__name__}: {error})") from error
    return weights


def _read_safetensors_step(path: Any) -> int:
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            step = str((file.metadata() or {}).get("step", ""))
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({type(error).__name__}: {error})") from error
    return int(step) if step.isdigit() else -1


@contextmanager
def _open_checkpoint(path: Any) -> Iterator[Tuple[Any, Any]]:
    """What a checkpoint's pickle describes, and where its storages are; whatever goes wrong is a CheckpointError."""
    try:
        with open(path, "rb") as file:
            yield (read_zip if zipfile.is_zipfile(path) else read_stream)(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}: write the path of a Lightning .ckpt in ckpt_path") from error
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged pickle or archive makes the readers raise
        raise CheckpointError(
            f"{path} is not a checkpoint that torch.save wrote, or it is damaged ({type(error).__name__}: {error})"
        ) from error


def load_into(model: Any, path: Any, ignore_keys: Iterable[str] = (), weights: Optional[Dict[str, Any]] = None) -> None:
    """Load a checkpoint's weights into a host's model, and log what was loaded and what was not.

    Keys that begin with one of ``ignore_keys`` are left out. So is a stock VQGAN's learned codebook, where the model
    has none: the transferred one starts from its prior. ``weights`` are those of the file, where it was read already.

    Raises:
        CheckpointError: the file cannot be read, or its tensors do not fit; the model is as it was.
    """
    weights = read_state_dict(path) if weights is None else dict(weights)
    prefixes = (ignore_keys,) if isinstance(ignore_keys, str) else tuple(map(str, ignore_keys))
    for key in [key for key in weights if key.startswith(prefixes)]:
        _log.info("Left out %s, as ignore_keys says.", key)
        del weights[key]
    own = model.state_dict()
    if _STOCK_CODEBOOK in weights and _STOCK_CODEBOOK not in own:
        shape = tuple(weights.pop(_STOCK_CODEBOOK).shape)
        sentence = "Left out %s %s, a learned codebook: this model's is transferred from its prior."
        _log.info(sentence, _STOCK_CODEBOOK, shape)
    found = [key for key in weights if key in own]
    if not found:
        raise CheckpointError(
            f"none of the {len(weights)} tensors in {path} is one of the model's: it holds "
            f"{', '.join(sorted(weights)[:3])}, ..., the model {', '.join(sorted(own)[:3])}, ..."
        )
    misfits = [key for key in found if getattr(weights[key], "shape", None) != own[key].shape]
    before = {key: value.clone() for key, value in own.items()}
    try:
        model.load_state_dict(weights, strict=False)
    except Exception as error:
        model.load_state_dict(before)
        if misfits and not isinstance(error, ValueError):  # the quantizer says itself that its prior is another
            raise CheckpointError(_describe_misfit(path, weights, own, misfits)) from error
        if isinstance(error, RuntimeError):
            raise CheckpointError(f"{path} does not fit the model: {error}") from error
        raise
    _log.info("Restored %d of the model's %d tensors from %s.", len(found), len(own), path)
    for what, keys in (
        ("Not in the checkpoint, as initialized", sorted(set(own) - set(weights))),
        ("In the checkpoint, not in the model", sorted(set(weights) - set(own))),
    ):
        if keys:
            _log.info("%s: %s%s.", what, ", ".join(keys[:8]), f" and {len(keys) - 8} more" if len(keys) > 8 else "")


def _describe_misfit(path: Any, weights: Mapping[str, Any], own: Mapping[str, Any], keys: List[str]) -> str:
    each = "; ".join(f"{k} is {tuple(weights[k].shape)} there and {tuple(own[k].shape)} in the model" for k in keys[:4])
    prefixes = ", ".join(dict.fromkeys(f'"{key.rsplit(".", 1)[0]}"' for key in keys))
    return (
        f"{path} does not fit: {each}{f'; and {len(keys) - 4} more' if len(keys) > 4 else ''}. Use the checkpoint's "
        f"ddconfig and embed_dim, or leave these out with ignore_keys: [{prefixes}]"
    )
