"""Reading what pickles say of tensors without running what the pickles hold, and without torch.

A pickle is a program. Here it is read by an unpickler that knows tensors, ``OrderedDict`` and plain values; every
other global it names becomes an inert object that takes anything and does nothing. Nothing is imported, and nothing is
called. Only the standard library is needed, so that a process of its own may read a file (``building/untrusted.py``).

Source: the two formats are those of ``torch.save``: the zip archive of torch >= 1.6 and the stream before it.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import IO, Any, Callable, Dict, NamedTuple, Optional, Tuple

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
#: torch's dtypes by all their names -> bytes of a number
ITEM_SIZES = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("float8_e4m3fnuz", "float8_e5m2fnuz"), 1),
    **dict.fromkeys(("float16", "half", "bfloat16", "int16", "short", "uint16"), 2),
    **dict.fromkeys(("float32", "float", "int32", "int", "uint32", "complex32", "chalf"), 4),
    **dict.fromkeys(("float64", "double", "int64", "long", "uint64", "complex64", "cfloat"), 8),
    **dict.fromkeys(("complex128", "cdouble"), 16),
}
_PLAIN = {plain.__name__: plain for plain in (dict, list, tuple, set, frozenset, int, float, complex, bool)}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


class Storage(NamedTuple):
    dtype: str
    key: str
    numel: int
    first: int  # where a view begins, in elements (the old stream only)

    # pickle's BUILD would otherwise look for other ways to set what comes from the file
    def __setstate__(self, state: Any) -> None:
        return None


class Record(NamedTuple):
    """A tensor as the pickle describes it; it becomes one only where it is wanted."""

    storage: Storage
    offset: int
    size: Tuple[int, ...]
    stride: Tuple[int, ...]
    dtype: Optional[str] = None

    def __setstate__(self, state: Any) -> None:
        return None


class Inert:
    """What stands for every global that is not known here: it takes anything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        return None

    append = extend = add = update = __call__


class Known:
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


class TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        top = module.split(".", 1)[0]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("builtins", "__builtin__") and name in _PLAIN:
            return _PLAIN[name]
        if top == "torch":
            if name in _REBUILDERS:
                return Known(_REBUILDERS[name])
            if name in _STORAGES:
                return _DType(_STORAGES[name])
            if (module, name) == ("torch", "Size"):
                return Known(tuple)
            if module == "torch" and name in ITEM_SIZES:
                return _DType(name)
        return type(name, (Inert,), {"__module__": f"inert.{module}"})

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _location, numel = pid[:5]
        if kind != "storage" or not isinstance(dtype, _DType):
            raise pickle.UnpicklingError(f"unknown stored object {kind!r}")
        first = 0
        if len(pid) > 5 and pid[5] is not None:  # a view into another storage: (its key, offset, size)
            _, first, numel = pid[5]
        return Storage(str(dtype), str(key), int(numel), int(first))


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Record:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    # _rebuild_tensor_v3 adds the dtype, where no typed storage has it: (requires_grad, hooks, dtype, metadata)
    dtype = str(rest[2]) if len(rest) > 2 and isinstance(rest[2], _DType) else None
    return Record(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)), dtype)


def _rebuild_from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    return function(*args) if isinstance(function, Known) else Inert()


_REBUILDERS: Dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_tensor,
    "_rebuild_parameter": lambda data, *rest: data,
    "_rebuild_parameter_with_state": lambda data, *rest: data,
    "_rebuild_from_type_v2": _rebuild_from_type,
}

ReadStorage = Callable[[Storage], bytes]


def read_zip(file: IO[bytes]) -> Tuple[Any, ReadStorage]:
    archive = zipfile.ZipFile(file)
    names = set(archive.namelist())
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise pickle.UnpicklingError("a zip archive without the data.pkl of torch.save")
    folder = pickles[0][: -len("data.pkl")]
    if folder + "byteorder" in names and archive.read(folder + "byteorder") != b"little":
        raise pickle.UnpicklingError("written on a big-endian machine: save it again on a little-endian one")

    def storage_bytes(storage: Storage) -> bytes:
        return archive.read(f"{folder}data/{storage.key}")

    with archive.open(pickles[0]) as data:
        return TensorUnpickler(data, encoding="utf-8").load(), storage_bytes


def read_stream(file: IO[bytes]) -> Tuple[Any, ReadStorage]:
    if TensorUnpickler(file).load() != _LEGACY_MAGIC or TensorUnpickler(file).load() != _LEGACY_VERSION:
        raise pickle.UnpicklingError("the magic number of torch.save is not there")
    system = TensorUnpickler(file).load()
    if not system.get("little_endian", True):
        raise pickle.UnpicklingError("written on a big-endian machine: save it again on a little-endian one")
    seen: Dict[str, Storage] = {}

    class Remembering(TensorUnpickler):
        def persistent_load(self, pid: Any) -> Any:
            storage = super().persistent_load(pid)
            seen[storage.key] = storage
            return storage

    checkpoint = Remembering(file, encoding="utf-8").load()
    keys = TensorUnpickler(file).load()
    # after the pickles, each storage: its number of elements in eight bytes, then the elements
    places: Dict[str, Tuple[int, int]] = {}
    for key in map(str, keys):
        numel = struct.unpack("<q", file.read(8))[0]
        if numel < 0 or key not in seen:
            raise pickle.UnpicklingError(f"storage {key!r} is not one that the checkpoint names")
        places[key] = (file.tell(), numel * ITEM_SIZES[seen[key].dtype])
        file.seek(places[key][1], 1)

    def storage_bytes(storage: Storage) -> bytes:
        start, length = places[storage.key]
        file.seek(start)
        return file.read(length)

    return checkpoint, storage_bytes
