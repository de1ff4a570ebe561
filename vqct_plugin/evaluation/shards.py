"""An evaluation in shards, which several processes share and which survive an interruption."""

import hashlib
import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, List, Mapping, NamedTuple, Optional, Tuple, Type

import numpy as np
import torch
from omegaconf import OmegaConf

from vqct_plugin._version import __version__
from vqct_plugin.compat.containers import to_plain
from vqct_plugin.evaluation.figures import RunFigures, Shard, compute_figures, measure_batches
from vqct_plugin.evaluation.image_set import build_image_set
from vqct_plugin.evaluation.images import PROTOCOLS
from vqct_plugin.evaluation.measure import Conditions, Measure
from vqct_plugin.evaluation.measures import MEASURES
from vqct_plugin.evaluation.weights import INCEPTION, VGG, find_weights
from vqct_plugin.runs.config import ConfigError, DataError
from vqct_plugin.runs.load import Trained, load_trained

__all__ = ["Settings"]

_PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


class Settings(NamedTuple):
    """The settings that every process of an evaluation needs.

    Attributes:
        images: a folder or list file of images; None for the config's validation set.
        size: the side of the squares that images are cropped to; None for the model's resolution.
        protocol: ``"plain"`` or ``"vqct"``, see :func:`vqct_plugin.evaluation.images.measure`.
        weights: a folder with the networks' weights, see :mod:`vqct_plugin.evaluation.weights`.
        batch_size, workers: images at once, and processes that read them. They change no figure but by rounding.
        precision: ``"32"``, ``"bf16"`` or ``"16"`` (autocast).
        shard_size: images in a shard, the piece of work that is kept when an evaluation is stopped.
        limit: evaluate only the first ``limit`` images.
        folder: where the shards are kept.
        progress: whether to show a bar.
    """

    images: Optional[str] = None
    size: Optional[int] = None
    protocol: str = "plain"
    weights: Optional[str] = None
    batch_size: int = 16
    workers: int = 0
    precision: str = "32"
    shard_size: int = 512
    limit: Optional[int] = None
    folder: str = "evaluation"
    progress: bool = True


def make_settings(folder: Path, given: Mapping[str, Any]) -> Settings:
    """The settings of an evaluation, checked.

    Raises:
        TypeError: a name that is none of them.
        ConfigError: a value that cannot be used.
    """
    unknown = sorted(set(given) - set(Settings._fields) | ({"folder"} & set(given)))
    if unknown:
        raise TypeError(f"evaluate_runs takes no argument {unknown[0]!r}")
    settings = Settings(folder=str(folder), **given)
    if settings.protocol not in PROTOCOLS:
        raise ConfigError(f"protocol is {settings.protocol!r}; expected {' or '.join(PROTOCOLS)}")
    if settings.precision not in _PRECISIONS:
        raise ConfigError(f"precision is {settings.precision!r}; expected 32, bf16 or 16")
    for name, least in (("batch_size", 1), ("shard_size", 1), ("limit", 1), ("size", 1), ("workers", 0)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value!r}; expected {least} or more")
    return settings


def evaluate_run(trained: Trained, settings: Settings, processes: int = 1, name: str = "") -> RunFigures:
    """The figures of one loaded run; shards that are there already are taken as they are."""
    work = _Work(trained, settings, dict(MEASURES))
    if processes == 1:
        work.measure()
    else:
        _spawn(processes, work)
    shards = [work.read_shard(k) for k in range(work.number)]
    conditions = Conditions(settings.protocol, settings.weights)
    return compute_figures(name, trained.model.quantize, shards, work.measures, conditions, work.source)


class _Work:
    """One run's shards: which there are, where they are kept, and how one is made."""

    def __init__(self, trained: Trained, settings: Settings, measures: Mapping[str, Type[Measure]]) -> None:
        self.trained, self.settings, self.measures = trained, settings, measures
        self.items = build_image_set(trained, settings.images, settings.size, settings.limit)
        self.number = -(-len(self.items) // settings.shard_size)
        if settings.images is not None:
            self.source = str(Path(settings.images).resolve())
        else:
            self.source = json.dumps(to_plain(trained.config.data.params.validation), sort_keys=True)
        self.folder = Path(settings.folder) / "shards" / self._digest()

    def _digest(self) -> str:
        """Of everything that a figure depends on."""
        status = self.trained.checkpoint.stat()
        its = self.settings
        identity = [
            str(self.trained.checkpoint.resolve()), status.st_size, status.st_mtime_ns,
            to_plain(self.trained.config), its.size, its.protocol, its.precision, its.shard_size, len(self.items),
            self.source, [str(find_weights(name, its.weights)) for name in (INCEPTION, VGG)],
            _identify_files(self.items), __version__,
            [[name, f"{cls.__module__}.{cls.__qualname__}"] for name, cls in self.measures.items()],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def find_file(self, k: int) -> Path:
        return self.folder / f"{k:06}.npz"

    def read_shard(self, k: int) -> Shard:
        return dict(np.load(self.find_file(k)))

    def measure(self, rank: int = 0, processes: int = 1) -> None:
        """Make the shards rank, rank + processes, ... that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = [k for k in range(self.number) if k % processes == rank and not self.find_file(k).is_file()]
        if not wanted:
            return
        its = self.settings
        device = torch.device(f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
        model = self.trained.model.to(device)
        if processes > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
        conditions = Conditions(its.protocol, its.weights, device)
        from tqdm import tqdm

        quiet = not its.progress or rank > 0
        if hasattr(model.quantize, "freeze_codebook"):
            model.quantize.freeze_codebook()
        try:
            with tqdm(total=len(self.items), disable=quiet, unit="image", desc="evaluating") as bar:
                bar.update(len(self.items) - sum(map(self._count_images, wanted)))
                for k in wanted:
                    first = k * its.shard_size
                    part = torch.utils.data.Subset(self.items, range(first, first + self._count_images(k)))
                    loader = torch.utils.data.DataLoader(part, its.batch_size, num_workers=its.workers)
                    torch.manual_seed(k)  # a Gumbel quantizer draws
                    shard = measure_batches(
                        model, loader, self.measures, conditions, _PRECISIONS[its.precision], bar.update
                    )
                    _save(self.find_file(k), shard)
        finally:
            if hasattr(model.quantize, "unfreeze_codebook"):
                model.quantize.unfreeze_codebook()

    def _count_images(self, k: int) -> int:
        return min(self.settings.shard_size, len(self.items) - k * self.settings.shard_size)


def _spawn(processes: int, work: _Work) -> None:
    """Evaluate in several processes; an error in one of them is raised here."""
    errors = torch.multiprocessing.get_context("spawn").SimpleQueue()
    config = OmegaConf.to_container(work.trained.config)
    arguments = (processes, config, work.trained.checkpoint, work.settings, work.measures, errors)
    try:
        torch.multiprocessing.spawn(_measure_in_process, args=arguments, nprocs=processes)
    except torch.multiprocessing.ProcessRaisedException:
        if errors.empty():
            raise
        raise DataError(errors.get()) from None


def _measure_in_process(
    rank: int, processes: int, config: Any, checkpoint: Path, settings: Settings, measures: Any, errors: Any
) -> None:
    try:
        with redirect_stdout(io.StringIO()):  # what the host prints while it is built
            trained = load_trained(OmegaConf.create(config), checkpoint)
        _Work(trained, settings, measures).measure(rank, processes)
    except (ValueError, OSError) as error:
        errors.put(str(error))
        raise


def _identify_files(items: Any) -> List[Tuple[str, Any]]:
    """Names, sizes and times of the images' files, to see that one has changed; [] where the data set names none."""
    paths = getattr(items.dataset, "paths", [])
    found = []
    for i in items.indices if paths else []:
        path = Path(paths[i])
        status = path.stat() if path.is_file() else None  # a missing one is an error when it is read
        found.append((str(path.resolve()), status and [status.st_size, status.st_mtime_ns]))
    return found


def _save(file: Path, shard: Shard) -> None:
    """Write a shard atomically, so that one that exists is complete."""
    part = file.with_suffix(f".{os.getpid()}.tmp")
    with part.open("wb") as stream:
        every: Any = shard
        np.savez(stream, **every)
    part.replace(file)
