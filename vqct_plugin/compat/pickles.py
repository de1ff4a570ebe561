"""Tensors of what a pickle says of them; ``records.py`` reads the pickle without running it."""

import pickle
from typing import Any, Mapping

import numpy as np
import torch

from vqct_plugin.compat.records import ITEM_SIZES, ReadStorage, Record


def materialize(value: Any, storage_bytes: ReadStorage) -> Any:
    """Tensors for the records in a value of a state dict."""
    if isinstance(value, Record):
        return _tensor(value, storage_bytes)
    if isinstance(value, Mapping):
        return {key: materialize(inner, storage_bytes) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(materialize(inner, storage_bytes) for inner in value)
    return value


def _tensor(record: Record, storage_bytes: ReadStorage) -> torch.Tensor:
    dtype = getattr(torch, record.dtype or record.storage.dtype)
    data = storage_bytes(record.storage)
    size = ITEM_SIZES[record.dtype or record.storage.dtype]
    start = record.storage.first * ITEM_SIZES[record.storage.dtype]
    length = record.storage.numel * ITEM_SIZES[record.storage.dtype]
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
