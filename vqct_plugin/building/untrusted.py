"""A pickle of the authors' layout, read in a process of its own with bounded memory and time.

The unpickler that reads it runs nothing of it, but data alone can do harm: a memo of 4 GB in nine bytes, numbers that
all collide in a dictionary, tuples nested so deep that hashing them ends the process. So ``read_apart`` starts this
file as a program under limits, and what ends or exceeds them is a refusal. The program needs the standard library only
and imports nothing of the package but ``compat/records.py``, by its place: starting it takes a few hundredths of a
second.
"""

import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

#: what is there at any size of the file; and what comes with each of its bytes
MEMORY, MEMORY_OF_A_BYTE = 512 << 20, 24
SECONDS, BYTES_IN_A_SECOND = 10, 2_000_000
_WAIT = 20  # times the seconds: how long a process of a busy machine may take for them
KEYS = {
    "adj_code_book_num": dict,
    "noun_code_book_num": dict,
    "adj_code_book_vec": dict,
    "noun_code_book_vec": dict,
    "adj_noun_edges": list,
}
_FLOATS = ("float16", "half", "float32", "float", "float64", "double", "bfloat16")


class RefusedError(ValueError):
    """What is wrong with a pickle; part of a sentence."""


def read_apart(data: bytes) -> Tuple[Dict[str, Any], List[bytes]]:
    """What stands in the pickle, as plain JSON values, and the bytes of its vectors.

    The JSON has ``missing``, the keys of the authors' layout that are not there; or else ``names``, all words; for each
    part ``adj`` and ``noun`` a list of [word, count or None, dtype, numbers], whose vectors come in this order;
    ``edges``, [index in names, index in names, count]; and ``bad_edges`` where they are not a list of pairs.

    Raises:
        RefusedError: the pickle holds something else, or takes more memory or time than its size allows.
    """
    memory = MEMORY + MEMORY_OF_A_BYTE * len(data)
    seconds = SECONDS + len(data) // BYTES_IN_A_SECOND
    command = [sys.executable, "-I", "-B", __file__, str(memory), str(seconds)]
    try:
        done = subprocess.run(
            command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_WAIT * seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise RefusedError(f"reading it takes more than {seconds} seconds") from None
    if done.returncode != 0:
        kind = {-24: f"takes more than {seconds} seconds", -11: "overflows the stack"}.get(done.returncode)
        raise RefusedError(f"reading it {kind or 'ends the process that reads it'}")
    length = int.from_bytes(done.stdout[:8], "little")
    found = json.loads(done.stdout[8 : 8 + length])
    if "refused" in found:
        raise RefusedError(found["refused"])
    vectors, start = [], 8 + length
    for size in found.pop("sizes"):
        vectors.append(done.stdout[start : start + size])
        start += size
    return found, vectors


def _records() -> Any:
    path = Path(__file__).resolve().parents[1] / "compat" / "records.py"
    spec = importlib.util.spec_from_file_location("records", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["records"] = module
    spec.loader.exec_module(module)
    return module


def _make_unpickler(records: Any, data: bytes) -> Any:
    class AuthorsUnpickler(records.TensorUnpickler):
        """Tensors and plain values; any other global is refused by name."""

        def __init__(self) -> None:
            super().__init__(io.BytesIO(data))
            self.storages: Dict[str, bytes] = {}
            self._loaded: Dict[bytes, Any] = {}

        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("torch.storage", "_load_from_bytes"):
                return records.Known(self._load_from_bytes)
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, records.Inert):
                raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither a tensor nor a plain value")
            return found

        def _load_from_bytes(self, stream: bytes) -> Any:
            """A tensor's numbers, for which a plain pickle has a stream of torch.save's in it."""
            if stream not in self._loaded:
                storage, storage_bytes = records.read_stream(io.BytesIO(stream))
                if not isinstance(storage, records.Storage):
                    raise pickle.UnpicklingError("a tensor without a storage")
                key = str(len(self.storages))
                self.storages[key] = storage_bytes(storage)
                self._loaded[stream] = storage._replace(key=key)
            return self._loaded[stream]

    return AuthorsUnpickler()


def _numbers_of(records: Any, record: Any, storages: Dict[str, bytes]) -> Tuple[str, bytes]:
    """The dtype and the bytes of a vector, () where it is none."""
    if not isinstance(record, records.Record) or len(record.size) != 1 or len(record.stride) != 1:
        return "", b""
    dtype, size, stride = record.dtype or record.storage.dtype, record.size[0], record.stride[0]
    if dtype not in _FLOATS or record.storage.key not in storages:
        return "", b""
    item, inner = records.ITEM_SIZES[dtype], records.ITEM_SIZES[record.storage.dtype]
    begin = record.storage.first * inner
    whole = storages[record.storage.key][begin : begin + record.storage.numel * inner]
    first, last = record.offset, record.offset + (size - 1) * stride
    if size < 1 or stride < 1 or first < 0 or begin < 0 or (last + 1) * item > len(whole):
        raise RefusedError(f"a vector of {size} numbers, {stride} apart, is not in its storage of {len(whole)} bytes")
    if stride == 1:
        return dtype, whole[first * item : (last + 1) * item]
    return dtype, b"".join(whole[i * item : (i + 1) * item] for i in range(first, last + 1, stride))


def _describe(records: Any, content: Any, storages: Dict[str, bytes], most: int) -> Tuple[Dict[str, Any], List[bytes]]:
    there = content if isinstance(content, dict) else {}
    missing = [key for key, kind in KEYS.items() if type(there.get(key)) is not kind]
    if missing:
        return {"missing": missing}, []
    vectors: List[bytes] = []
    found: Dict[str, Any] = {}
    for part in ("adj", "noun"):
        counts, found[part] = there[f"{part}_code_book_num"], []
        for word, record in there[f"{part}_code_book_vec"].items():
            if type(word) is not str:
                raise RefusedError(f"{part}_code_book_vec has a {type(word).__name__} for a word")
            count = counts.get(word)
            count = count if type(count) is int and abs(count) < 1 << 63 else None
            dtype, numbers = _numbers_of(records, record, storages)
            found[part].append([word, count, dtype])
            vectors.append(numbers)
            most -= len(numbers)
            if most < 0:
                raise RefusedError("its vectors are views of one storage, and larger than the file")
    names: Dict[str, int] = {}
    edges: Dict[Tuple[int, int], int] = {}
    for edge in there["adj_noun_edges"]:
        if type(edge) not in (tuple, list) or len(edge) != 2 or not all(type(word) is str for word in edge):
            found["bad_edges"] = True
            break
        ends = tuple(names.setdefault(word, len(names)) for word in edge)
        edges[ends] = edges.get(ends, 0) + 1  # type: ignore[index, arg-type]
    return {**found, "names": list(names), "edges": [[a, b, count] for (a, b), count in edges.items()]}, vectors


def _limit(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the time is still watched by the process that waits
        return
    limits = (("RLIMIT_AS", memory, memory), ("RLIMIT_CPU", seconds, seconds + 1), ("RLIMIT_CORE", 0, 0))
    for name, soft, hard in limits:
        try:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        except (AttributeError, ValueError, OSError):  # macOS has no limit of memory
            continue


def _main() -> None:
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    data = sys.stdin.buffer.read()
    records = _records()
    _limit(memory, seconds)
    vectors: List[bytes] = []
    try:
        unpickler = _make_unpickler(records, data)
        content = unpickler.load()
        found, vectors = _describe(records, content, unpickler.storages, (16 << 20) + 4 * len(data))
        found["sizes"] = [len(numbers) for numbers in vectors]
        text = json.dumps(found)
    except MemoryError:
        text = json.dumps({"refused": f"reading it takes more than {memory >> 20} MB of memory"})
    except RecursionError:
        text = json.dumps({"refused": "its values are nested too deep"})
    except Exception as error:  # whatever a damaged or hostile pickle makes the reader raise
        text = json.dumps({"refused": str(error)[:2000]})
    out = sys.stdout.buffer
    out.write(len(text).to_bytes(8, "little") + text.encode())
    for numbers in vectors:
        out.write(numbers)
    out.flush()
    os._exit(0)  # what the pickle made need not be taken apart


if __name__ == "__main__":
    _main()
