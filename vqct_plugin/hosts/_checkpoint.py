"""Reading the weights of a checkpoint, of any torch and Lightning, without running what it holds.

A ``.ckpt`` is a pickle, and a pickle is a program. ``torch.load`` either runs it, or, as ``weights_only`` (torch >=
1.13, the default from 2.6), refuses the checkpoints of old Lightning, which hold callbacks' classes and numpy numbers.
Here the pickle is read by an unpickler that knows tensors, ``OrderedDict`` and plain values; every other global it
names becomes an inert object that takes anything and does nothing. Nothing is imported, and nothing is called.

Source: the two formats are those of ``torch.save``: the zip archive of torch >= 1.6 and the stream before it.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import IO, Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import torch

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_PLAIN = {plain.__name__: plain for plain in (dict, list, tuple, set, frozenset, int, float, complex, bool)}
_STOCK_CODEBOOK = "quantize.embedding.weight"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


def read_state_dict(path: Any) -> Dict[str, Any]:
    """The ``state_dict`` of a Lightning checkpoint, on the CPU. Optimizer states and the rest are not even read.

    Returns:
        A dict from each key to its tensor (or plain value, for a module's extra state).

    Raises:
        CheckpointError: no such file, not a checkpoint, or one without a ``state_dict``.
    """
    try:
        with open(path, "rb") as file:
            checkpoint, storage = (_read_zip if zipfile.is_zipfile(path) else _read_stream)(file)
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
            weights = {str(key): _materialise(value, storage) for key, value in checkpoint["state_dict"].items()}
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
    for key, value in weights.items():
        if isinstance(value, _Inert):
            raise CheckpointError(f"{path}: state_dict[{key!r}] is a {type(value).__name__}, expected a tensor")
    return weights


class _Storage(NamedTuple):
    dtype: str
    key: str
    numel: int
    first: int  # where a view begins, in elements (the old stream only)

    # pickle's BUILD would otherwise look for other ways to set what comes from the file
    def __setstate__(self, state: Any) -> None:
        return None


class _Record(NamedTuple):
    """A tensor as the pickle describes it; it becomes one only where it is wanted."""

    storage: _Storage
    offset: int
    size: Tuple[int, ...]
    stride: Tuple[int, ...]
    dtype: Optional[str] = None

    def __setstate__(self, state: Any) -> None:
        return None


class _Inert:
    """What stands for every global that is not known here: it takes anything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        return None

    append = extend = add = update = __call__


class _Known:
    """A function the pickle may call. An object, so that the pickle cannot set a function's attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        return None


class _DType(str):
    """A torch dtype by name, or the type of a storage by its dtype's name."""

    def __setstate__(self, state: Any) -> None:
        return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        top = module.split(".", 1)[0]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("builtins", "__builtin__") and name in _PLAIN:
            return _PLAIN[name]
        if top == "torch":
            if name in _REBUILDERS:
                return _Known(_REBUILDERS[name])
            if name in _STORAGES:
                return _DType(_STORAGES[name])
            if (module, name) == ("torch", "Size"):
                return _Known(tuple)
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return _DType(name)
        return type(name, (_Inert,), {"__module__": f"inert.{module}"})

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _location, numel = pid[:5]
        if kind != "storage" or not isinstance(dtype, _DType):
            raise pickle.UnpicklingError(f"unknown stored object {kind!r}")
        first = 0
        if len(pid) > 5 and pid[5] is not None:  # a view into another storage: (its key, offset, size)
            _, first, numel = pid[5]
        return _Storage(str(dtype), str(key), int(numel), int(first))


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Record:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    # _rebuild_tensor_v3 adds the dtype, where no typed storage has it: (requires_grad, hooks, dtype, metadata)
    dtype = str(rest[2]) if len(rest) > 2 and isinstance(rest[2], _DType) else None
    return _Record(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)), dtype)


def _rebuild_from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    return function(*args) if isinstance(function, _Known) else _Inert()


_REBUILDERS: Dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_tensor,
    "_rebuild_parameter": lambda data, *rest: data,
    "_rebuild_parameter_with_state": lambda data, *rest: data,
    "_rebuild_from_type_v2": _rebuild_from_type,
}

_ReadStorage = Callable[[_Storage], bytes]


def _read_zip(file: IO[bytes]) -> Tuple[Any, _ReadStorage]:
    archive = zipfile.ZipFile(file)
    names = set(archive.namelist())
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise pickle.UnpicklingError("a zip archive without the data.pkl of torch.save")
    folder = pickles[0][: -len("data.pkl")]
    if folder + "byteorder" in names and archive.read(folder + "byteorder") != b"little":
        raise pickle.UnpicklingError("written on a big-endian machine: save it again on a little-endian one")

    def storage_bytes(storage: _Storage) -> bytes:
        return archive.read(f"{folder}data/{storage.key}")

    with archive.open(pickles[0]) as data:
        return _Unpickler(data, encoding="utf-8").load(), storage_bytes


def _read_stream(file: IO[bytes]) -> Tuple[Any, _ReadStorage]:
    if _Unpickler(file).load() != _LEGACY_MAGIC or _Unpickler(file).load() != _LEGACY_VERSION:
        raise pickle.UnpicklingError("the magic number of torch.save is not there")
    system = _Unpickler(file).load()
    if not system.get("little_endian", True):
        raise pickle.UnpicklingError("written on a big-endian machine: save it again on a little-endian one")
    seen: Dict[str, _Storage] = {}

    class Remembering(_Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            storage = super().persistent_load(pid)
            seen[storage.key] = storage
            return storage

    checkpoint = Remembering(file, encoding="utf-8").load()
    keys = _Unpickler(file).load()
    # after the pickles, each storage: its number of elements in eight bytes, then the elements
    places: Dict[str, Tuple[int, int]] = {}
    for key in map(str, keys):
        numel = struct.unpack("<q", file.read(8))[0]
        if numel < 0 or key not in seen:
            raise pickle.UnpicklingError(f"storage {key!r} is not one that the checkpoint names")
        places[key] = (file.tell(), numel * _item_size(seen[key].dtype))
        file.seek(places[key][1], 1)

    def storage_bytes(storage: _Storage) -> bytes:
        start, length = places[storage.key]
        file.seek(start)
        return file.read(length)

    return checkpoint, storage_bytes


def _item_size(dtype: str) -> int:
    return torch.empty((), dtype=getattr(torch, dtype)).element_size()


def _materialise(value: Any, storage_bytes: _ReadStorage) -> Any:
    """Tensors for the records in a value of a state dict."""
    if isinstance(value, _Record):
        return _tensor(value, storage_bytes)
    if isinstance(value, Mapping):
        return {key: _materialise(inner, storage_bytes) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_materialise(inner, storage_bytes) for inner in value)
    return value


def _tensor(record: _Record, storage_bytes: _ReadStorage) -> torch.Tensor:
    dtype = getattr(torch, record.dtype or record.storage.dtype)
    data = storage_bytes(record.storage)
    size = _item_size(record.dtype or record.storage.dtype)
    start = record.storage.first * _item_size(record.storage.dtype)
    length = record.storage.numel * _item_size(record.storage.dtype)
    if len(data) < start + length or start < 0 or length < 0 or length % size:
        raise pickle.UnpicklingError(f"storage {record.storage.key!r} is cut short")
    carrier = record.storage.dtype if record.dtype is None else f"int{8 * size}"
    if dtype is torch.bfloat16:  # numpy has none: it is the upper half of a float32
        halves = np.frombuffer(data, dtype="<u2", count=length // size, offset=start)
        flat = torch.from_numpy((halves.astype("<u4") << 16).view(np.float32)).to(torch.bfloat16)
    else:
        flat = torch.from_numpy(np.frombuffer(data, dtype=carrier, count=length // size, offset=start).copy())
    if flat.dtype != dtype:  # float8 and the like, read as integers
        flat = flat.view(dtype)
    if min(record.size + record.stride + (record.offset,), default=0) < 0:
        raise pickle.UnpicklingError("a tensor with a negative size")
    return torch.as_strided(flat, record.size, record.stride, record.offset)


def load_into(model: Any, path: Any, ignore_keys: Iterable[str] = ()) -> None:
    """Load a checkpoint's weights into a host's model, and print what was loaded and what was not.

    Keys that begin with one of ``ignore_keys`` are left out. So is a stock VQGAN's learned codebook, where the model
    has none: the transferred one starts from its prior.

    Raises:
        CheckpointError: the file cannot be read, or its tensors do not fit; the model is as it was.
    """
    weights = read_state_dict(path)
    prefixes = (ignore_keys,) if isinstance(ignore_keys, str) else tuple(map(str, ignore_keys))
    for key in [key for key in weights if key.startswith(prefixes)]:
        print(f"Left out {key}, as ignore_keys says.")
        del weights[key]
    own = model.state_dict()
    if _STOCK_CODEBOOK in weights and _STOCK_CODEBOOK not in own:
        shape = tuple(weights.pop(_STOCK_CODEBOOK).shape)
        print(f"Left out {_STOCK_CODEBOOK} {shape}, a learned codebook: this model's is transferred from its prior.")
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
            raise CheckpointError(_misfit(path, weights, own, misfits)) from error
        if isinstance(error, RuntimeError):
            raise CheckpointError(f"{path} does not fit the model: {error}") from error
        raise
    print(f"Restored {len(found)} of the model's {len(own)} tensors from {path}.")
    for what, keys in (
        ("Not in the checkpoint, as initialised", sorted(set(own) - set(weights))),
        ("In the checkpoint, not in the model", sorted(set(weights) - set(own))),
    ):
        if keys:
            print(f"{what}: {', '.join(keys[:8])}{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}.")


def _misfit(path: Any, weights: Mapping[str, Any], own: Mapping[str, Any], keys: List[str]) -> str:
    each = "; ".join(f"{k} is {tuple(weights[k].shape)} there and {tuple(own[k].shape)} in the model" for k in keys[:4])
    prefixes = ", ".join(dict.fromkeys(f'"{key.rsplit(".", 1)[0]}"' for key in keys))
    return (
        f"{path} does not fit: {each}{f'; and {len(keys) - 4} more' if len(keys) > 4 else ''}. Use the checkpoint's "
        f"ddconfig and embed_dim, or leave these out with ignore_keys: [{prefixes}]"
    )
