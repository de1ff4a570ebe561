"""An evaluation in shards, which several processes share and which survive an interruption."""

import io
import json
import logging
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Type

import numpy as np
import torch
from omegaconf import OmegaConf

from vqct_plugin._files import write_whole
from vqct_plugin.compat.containers import to_plain
from vqct_plugin.evaluation.figures import RunFigures, Shard, compute_figures, measure_batches
from vqct_plugin.evaluation.identity import identify_code, identify_files, identify_model, make_digest
from vqct_plugin.evaluation.image_set import Broken, Readable, build_image_set, collate_readable
from vqct_plugin.evaluation.images import PROTOCOLS
from vqct_plugin.evaluation.measure import Conditions, Measure
from vqct_plugin.evaluation.measures import MEASURES
from vqct_plugin.evaluation.weights import INCEPTION, VGG, check_weights, identify_weights
from vqct_plugin.runs.config import ConfigError, DataError
from vqct_plugin.runs.load import Trained, load_trained

__all__ = ["Settings"]

_log = logging.getLogger(__name__)
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
        skip_broken: leave out images that cannot be read, and list them; otherwise they are an error at the end, when
            all others are measured and kept.
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
    skip_broken: bool = False
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
    check_weights(settings.weights)
    return settings


def evaluate_run(trained: Trained, settings: Settings, processes: int = 1, name: str = "") -> RunFigures:
    """The figures of one loaded run; shards that are there already are taken as they are, but for those of which an
    image could not be read then and can be now.

    Raises:
        ConfigError, DataError: the images or a shard's file cannot be used, with its path.
    """
    work = _Work(trained, settings, dict(MEASURES))
    work.retry_broken()
    _measure(work, processes)
    shards = work.read_shards()
    if shards is None:  # a damaged one, which is gone now
        _measure(work, processes)
        shards = work.read_shards()
    if shards is None:
        raise DataError(f"a shard in {work.folder} is damaged as soon as it is written; choose another output")
    broken = {str(file): str(why) for shard in shards for file, why in shard["broken"]}
    if broken and (not settings.skip_broken or len(broken) == len(work.items)):
        raise DataError(_describe_broken(broken, len(work.items)))
    conditions = Conditions(settings.protocol, settings.weights)
    return compute_figures(name, trained.model.quantize, shards, work.measures, conditions, work.source)


def _measure(work: "_Work", processes: int) -> None:
    if processes == 1:
        work.measure()
    else:
        _spawn(processes, work)


def _describe_broken(broken: Mapping[str, str], number: int) -> str:
    reasons = list(broken.values())
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    told = f"{len(broken):,} of {number:,} images cannot be used: {'; '.join(reasons[:5])}{more}"
    if len(broken) == number:
        return told
    return f"{told}. All others are measured and kept: mend these, or leave them out with skip_broken=True"


class _Work:
    """One run's shards: which there are, where they are kept, and how one is made."""

    def __init__(
        self,
        trained: Trained,
        settings: Settings,
        measures: Mapping[str, Type[Measure]],
        folder: Optional[Path] = None,
    ) -> None:
        self.trained, self.settings, self.measures = trained, settings, measures
        self.items = build_image_set(trained, settings.images, settings.size, settings.limit)
        self.number = -(-len(self.items) // settings.shard_size)
        if settings.images is not None:
            self.source = str(Path(settings.images).resolve())
        else:
            self.source = json.dumps(to_plain(trained.config.data.params.validation), sort_keys=True)
        self.model_identity = identify_model(trained.model)
        self.folder = Path(settings.folder) / "shards" / self._digest() if folder is None else folder
        identities = identify_files(self.items)
        self.files = [
            self.folder / f"{k:06}-{make_digest([identities[i] for i in self._list_places(k)])}.npz"
            for k in range(self.number)
        ]

    def _digest(self) -> str:
        """Of everything that a figure depends on, the images themselves left out."""
        its = self.settings
        return make_digest(
            [
                to_plain(self.trained.config), self.model_identity, identify_code(self.measures),
                its.size, its.protocol, its.precision, its.shard_size, self.source,
                [identify_weights(name, its.weights) for name in (INCEPTION, VGG)],
            ]
        )  # fmt: skip

    def _list_places(self, k: int) -> range:
        size = self.settings.shard_size
        return range(k * size, min((k + 1) * size, len(self.items)))

    def read_shards(self) -> Optional[List[Shard]]:
        """All shards; None where one is damaged, which is deleted then, to be made again."""
        found: List[Shard] = []
        for file in self.files:
            try:
                found.append(_read(file))
            except PermissionError as error:
                raise DataError(f"the shard {file} cannot be read: {error.strerror}") from error
            except Exception as error:  # whatever a damaged archive makes numpy raise
                _log.warning("the shard %s is damaged, and is made again: %s", file, error)
                file.unlink(missing_ok=True)
        return found if len(found) == len(self.files) else None

    def retry_broken(self) -> None:
        """Read again what could not be read when its shard was made, since no file's size or time need tell that it is
        mended. Where an item can be read now, its shard is deleted, to be made again; else the reasons are renewed."""
        readable = Readable(self.items)
        for file in self.files:
            shard = _read_if_broken(file)
            if shard is None:
                continue
            places = shard["broken_places"].tolist()
            now = [item for item in map(readable.__getitem__, places) if isinstance(item, Broken)]
            if len(now) < len(places):
                _log.info("an image that could not be read can be read now: the shard %s is made again", file)
                file.unlink()
            elif _list_reasons(now).tolist() != shard["broken"].tolist():
                _save(file, {**shard, "broken": _list_reasons(now)})

    def measure(self, rank: int = 0, processes: int = 1) -> None:
        """Make the shards rank, rank + processes, ... that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = [k for k, file in enumerate(self.files) if k % processes == rank and not file.is_file()]
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
                bar.update(len(self.items) - sum(len(self._list_places(k)) for k in wanted))
                for k in wanted:
                    torch.manual_seed(k)  # a Gumbel quantizer draws
                    broken: List[Broken] = []
                    batches = self._load(k, broken)
                    shard = measure_batches(
                        model, batches, self.measures, conditions, _PRECISIONS[its.precision], bar.update
                    )
                    bar.update(len(broken))
                    places = np.asarray([its.place for its in broken], dtype=np.int64)
                    _save(self.files[k], {**shard, "broken": _list_reasons(broken), "broken_places": places})
        finally:
            if hasattr(model.quantize, "unfreeze_codebook"):
                model.quantize.unfreeze_codebook()

    def _load(self, k: int, broken: List[Broken]) -> Iterator[Dict[str, Any]]:
        """The batches of a shard; those of its items that cannot be read are appended to ``broken``."""
        part = torch.utils.data.Subset(Readable(self.items), self._list_places(k))
        loader: Any = torch.utils.data.DataLoader(
            part, self.settings.batch_size, num_workers=self.settings.workers, collate_fn=collate_readable
        )
        for batch, failures in loader:
            broken.extend(failures)
            if batch is not None:
                yield batch


def _spawn(processes: int, work: _Work) -> None:
    """Evaluate in several processes; an error in one of them is raised here."""
    errors = torch.multiprocessing.get_context("spawn").SimpleQueue()
    config = OmegaConf.to_container(work.trained.config)
    trained, identity = work.trained.checkpoint, work.model_identity
    arguments = (processes, config, trained, identity, work.settings, work.measures, work.folder, errors)
    try:
        torch.multiprocessing.spawn(_measure_in_process, args=arguments, nprocs=processes)
    except torch.multiprocessing.ProcessRaisedException:
        if errors.empty():
            raise
        raise DataError(errors.get()) from None
    except torch.multiprocessing.ProcessExitedException as error:
        raise DataError(
            f"{error}; the system may have ended it for want of memory. Finished shards are kept: evaluate again, with "
            "fewer processes or a smaller batch_size"
        ) from None


def _measure_in_process(
    rank: int,
    processes: int,
    config: Any,
    checkpoint: Path,
    identity: List[str],
    settings: Settings,
    measures: Any,
    folder: Path,
    errors: Any,
) -> None:
    try:
        with redirect_stdout(io.StringIO()):  # what the host prints while it is built
            trained = load_trained(OmegaConf.create(config), checkpoint)
        work = _Work(trained, settings, measures, folder)
        if work.model_identity != identity:
            raise DataError(f"the model in memory is another than that of {checkpoint}; evaluate it with processes=1")
        work.measure(rank, processes)
    except (ValueError, OSError, ImportError) as error:
        errors.put(str(error))
        raise


def _list_reasons(broken: Sequence[Broken]) -> np.ndarray:
    """(n, 2) texts: the items that cannot be read, and why."""
    return np.asarray([(its.name, its.why) for its in broken], dtype=str).reshape(-1, 2)


def _read_if_broken(file: Path) -> Optional[Shard]:
    """A shard that has broken items; None for any other, also one that is not there or damaged, which is seen to
    later. Of those without broken items no more is read."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            broken = len(arrays["broken_places"]) > 0
        return _read(file) if broken else None
    except Exception:  # whatever a damaged archive makes numpy raise
        return None


def _read(file: Path) -> Dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        shard = dict(arrays)
    missing = [
        name for name in ("counts", "files", "images", "positions", "broken", "broken_places") if name not in shard
    ]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    return shard


def _save(file: Path, shard: Shard) -> None:
    """Write a shard atomically, so that one that exists is complete."""
    stream = io.BytesIO()
    every: Any = shard
    np.savez(stream, **every)
    try:
        write_whole(file, stream.getvalue(), overwrite=True)
    except OSError as error:
        raise DataError(
            f"the shard {file} cannot be written: {error.strerror or error}; finished ones are kept"
        ) from error
