"""Batches whose order survives a restart, and what becomes of an item that cannot be loaded."""

import random
import signal
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torch.utils.data.dataloader import default_collate

from vqct_plugin.runs.config import DataError


def check_number(name: str, value: Any, least: int = 0) -> int:
    """An integer, of ``least`` or more; raises DataError where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise DataError(f"{name} is {value!r}; expected an integer of {least} or more")
    return int(value)


class Failure(NamedTuple):
    """What went wrong with an item, on its way from a worker: an exception would bring the worker's traceback."""

    place: int
    sentence: str


class Loaded(NamedTuple):
    """An item, or a batch of them, and what was left out before it was found; None where too much was."""

    item: Any
    failures: Tuple[Failure, ...]


class Items(Dataset):
    """A data set whose item (epoch, index) is drawn with random numbers of its own.

    In place of an item that cannot be loaded the next one that can be is taken, of up to ``max_damaged`` that cannot:
    so batches stay as large as they are, and the same in every process and after every restart.
    """

    def __init__(self, dataset: Any, seed: int, name: str, max_damaged: int = 0) -> None:
        self.dataset, self.seed, self.name, self.max_damaged = dataset, seed, name, max_damaged
        self.transforms = _find_albumentations(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Tuple[int, int]) -> Loaded:
        epoch, index = place
        failures: List[Failure] = []
        with _seed_random_numbers(self.seed, epoch, index) as seed:
            for transform in self.transforms:
                transform.set_random_seed(seed)
            for further in range(min(self.max_damaged + 1, len(self))):
                item = self._load((index + further) % len(self))
                if not isinstance(item, Failure):
                    return Loaded(item, tuple(failures))
                failures.append(item)
        return Loaded(None, tuple(failures))

    def _load(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except DataError as error:
            return Failure(index, str(error))
        except Exception as error:
            file = _find_file(self.dataset, index)
            where = f"item {index} of {self.name}" + (f", {file}," if file else "")
            return Failure(index, f"{where} cannot be loaded: {type(error).__name__}: {error}")


class Damage:
    """The items of a data set that were left out, each counted once.

    Args:
        name: of the data set in the YAML.
        most: how many may be left out.
    """

    def __init__(self, name: str, most: int = 0) -> None:
        self.name, self.most = name, most
        self.sentences: Dict[int, str] = {}

    def add(self, loaded: Loaded) -> None:
        """Count what was left out; raises DataError where that is too much."""
        self.sentences.update(loaded.failures)
        if loaded.item is not None and len(self.sentences) <= self.most:
            return
        first = loaded.failures[0].sentence
        if self.most == 0:
            raise DataError(f"{first}. To leave out up to N such images, give data.params.max_damaged=N")
        raise DataError(
            f"{first}. By now {len(self.sentences)} images of {self.name} cannot be loaded, and "
            f"data.params.max_damaged is {self.most}; mend the data, or give a higher number"
        )


class Order(DistributedSampler):
    """The order of an epoch, by the data set's own ``list_shuffled(seed, epoch)`` where it has that method."""

    def __iter__(self) -> Iterator[int]:
        own = getattr(self.dataset.dataset, "list_shuffled", None)  # type: ignore[attr-defined]
        if own is None or not self.shuffle:
            return super().__iter__()
        order = own(self.seed, self.epoch)
        order = (order * -(-self.total_size // len(order)))[: self.total_size]  # filled up to even shares
        return iter(order[self.rank :: self.num_replicas])


class Batches:
    """The batches of a data set, from any place of any epoch on.

    In place of a ``DataLoader``, which is one only from the first batch on: then, and not before, it is asked where to
    begin. Lightning opens a loader's iterator before it knows.
    """

    def __init__(
        self,
        items: Items,
        sampler: Any,
        batch_size: int,
        num_workers: int,
        position: Callable[[], Tuple[int, int]],
        damage: Optional[Damage] = None,
    ) -> None:
        self.dataset = items.dataset
        self._items, self._sampler, self._position = items, sampler, position
        self.batch_size, self.num_workers = batch_size, num_workers
        self._damage = Damage(items.name, items.max_damaged) if damage is None else damage

    def __len__(self) -> int:
        return -(-len(self._sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch, begin = self._position()
        self._sampler.set_epoch(epoch)
        order = [(epoch, index) for index in self._sampler]
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        loader: DataLoader = DataLoader(
            self._items,
            batch_sampler=batches[begin:],
            num_workers=self.num_workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_interrupts,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, or opening it would take a number from the training's
        )
        for batch in loader:
            if batch.failures:
                self._damage.add(batch)
            yield batch.item

    # With these Lightning takes it for a loader that can go on inside an epoch; epoch and batches it keeps itself.
    def state_dict(self) -> Dict[str, Any]:
        return {}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        del state


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which may want a batch yet


def _collate(items: List[Loaded]) -> Loaded:
    failures = tuple(failure for item in items for failure in item.failures)
    if any(item.item is None for item in items):
        return Loaded(None, failures)
    return Loaded(default_collate([item.item for item in items]), failures)


@contextmanager
def _seed_random_numbers(*numbers: int) -> Iterator[int]:
    """Python's, numpy's and torch's CPU generators begin at these numbers, and are afterwards where they were."""
    seed = int(np.random.SeedSequence([n & 0xFFFFFFFF for n in numbers]).generate_state(1)[0])
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU's too
    try:
        yield seed
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])


def _find_albumentations(dataset: Any, depth: int = 4) -> List[Any]:
    """The transforms that a data set holds: from albumentations 1.4 on they have a generator of their own each."""
    if type(dataset).__module__.startswith("albumentations"):
        return [dataset] if hasattr(dataset, "set_random_seed") else []
    if depth == 0 or isinstance(dataset, (str, bytes, np.ndarray, torch.Tensor)):
        return []
    if isinstance(dataset, (list, tuple)):
        inside: List[Any] = list(dataset[:16])  # data sets side by side; not a list of a million paths
    else:
        inside = list(getattr(dataset, "__dict__", {}).values())
    return [transform for value in inside for transform in _find_albumentations(value, depth - 1)]


def _find_file(dataset: Any, index: int) -> Optional[str]:
    """The file of an item of one of taming's data sets."""
    for holder in (dataset, getattr(dataset, "data", None)):
        labels = getattr(holder, "labels", None)
        if isinstance(labels, dict) and "file_path_" in labels:
            return str(labels["file_path_"][index])
    return None
