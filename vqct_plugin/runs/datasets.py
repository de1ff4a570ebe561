"""Images for taming's models, and the data module of a taming YAML, whose order of batches survives a restart."""

import os
import random
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torch.utils.data.dataloader import default_collate

from vqct_plugin.runs.config import DataError, instantiate
from vqct_plugin.runs.image_files import BACKGROUND, check_background, read_image, read_labels

__all__ = ["Images", "LabeledImages", "CUB", "DataModuleFromConfig"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


class Images(Dataset):
    """Images of a folder and the folders in it, or those that a text file names, one path per line.

    An image is turned as its EXIF data says, scaled so that its shorter side is ``size`` (Lanczos), then cropped to a
    square.

    Args:
        path: a folder, or a list file, whose relative paths are looked up beside it.
        size: the side of the square, in pixels.
        random_crop: a crop anywhere instead of the middle; for training.
        flip: left to right half the time; for training.
        root: where a list file's relative paths are looked up, if not beside it.
        background: the color that transparent pixels show, a name or ``#rrggbb``.

    An item is what taming's data sets give: ``image`` (size, size, 3) float32 in [-1, 1], and ``file_path_``.

    Raises:
        DataError: no such folder or file, or no image in it; when an item is asked for, an image that cannot be read.
    """

    def __init__(
        self,
        path: Union[str, Path],
        size: int,
        random_crop: bool = False,
        flip: bool = False,
        root: Union[str, Path, None] = None,
        background: str = BACKGROUND,
    ) -> None:
        path = Path(path)
        self._set_up(size, random_crop, flip, background)
        if path.is_dir():
            self.paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not self.paths:
                raise DataError(f"there is no image in {path} or the folders in it; looked for {', '.join(SUFFIXES)}")
        elif path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise DataError(
                    f"{path} is not a text file; expected a folder of images, or a list with one path per line"
                ) from None
            folder = path.parent if root is None else Path(root)
            self.paths = [folder / line.strip() for line in lines if line.strip()]
            if not self.paths:
                raise DataError(f"{path} names no image; expected one path per line")
        else:
            raise DataError(f"there is no folder or list file {path}")

    def _set_up(self, size: int, random_crop: bool, flip: bool, background: str = BACKGROUND) -> None:
        if not isinstance(size, int) or size < 1:
            raise DataError(f"size is {size!r}; expected the side of the square in pixels, an integer of 1 or more")
        self.size, self.random_crop, self.flip = size, random_crop, flip
        self.background = check_background(background)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        (pixels,) = self._crop([read_image(self.paths[index], self.background)])
        return {"image": (pixels / 127.5 - 1).astype(np.float32), "file_path_": str(self.paths[index])}

    def _crop(self, pictures: List[Any]) -> List[np.ndarray]:
        """The same square of each of some pictures of the same scene; label maps are not interpolated."""
        from PIL import Image

        scale = self.size / min(pictures[0].size)
        width, height = (max(self.size, round(side * scale)) for side in pictures[0].size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        if self.random_crop:  # Python's generator, which the data module seeds for each item
            left, top = random.randint(0, width - self.size), random.randint(0, height - self.size)
        flip = self.flip and random.random() < 0.5
        squares = []
        for picture in pictures:
            how = Image.Resampling.LANCZOS if picture.mode == "RGB" else Image.Resampling.NEAREST
            square = picture.resize((width, height), how).crop((left, top, left + self.size, top + self.size))
            pixels = np.asarray(square)
            squares.append(pixels[:, ::-1] if flip else pixels)
        return squares


class LabeledImages(Images):
    """Images with a label map each, for stage 2's conditioning on segmentations (ADE20K, CelebAMask-HQ).

    Args:
        path: a folder of images, or a list file, as for :class:`Images`.
        labels: the folder of label maps: for ``a/b.jpg`` in the folder of images its ``a/b.png``, one channel, the
            label of each pixel.
        n_labels: how many labels there are; maps hold 0 to n_labels - 1.
        size, random_crop, flip, root, background: as for :class:`Images`; image and map are cropped and flipped alike.

    An item is that of :class:`Images`, with ``segmentation`` (size, size, n_labels) float32, one-hot.
    """

    def __init__(
        self,
        path: Union[str, Path],
        labels: Union[str, Path],
        n_labels: int,
        size: int,
        random_crop: bool = False,
        flip: bool = False,
        root: Union[str, Path, None] = None,
        background: str = BACKGROUND,
    ) -> None:
        super().__init__(path, size, random_crop, flip, root, background)
        if not isinstance(n_labels, int) or n_labels < 2:
            raise DataError(f"n_labels is {n_labels!r}; expected an integer of 2 or more")
        self.n_labels = n_labels
        if not Path(labels).is_dir():
            raise DataError(f"there is no folder of label maps {labels}")
        base = Path(path) if Path(path).is_dir() else Path(path).parent if root is None else Path(root)
        self.maps = [Path(labels) / file.relative_to(base).with_suffix(".png") for file in self.paths]

    def __getitem__(self, index: int) -> Dict[str, Any]:
        image, labels = read_image(self.paths[index], self.background), read_labels(self.maps[index])
        if labels.size != image.size:
            raise DataError(
                f"{self.maps[index]} is {labels.size}, and its image {image.size} pixels; expected the same"
            )
        pixels, labels = self._crop([image, labels])
        if labels.ndim != 2:
            raise DataError(f"{self.maps[index]} has {labels.shape[-1]} channels; expected one, the labels")
        if labels.max() >= self.n_labels:
            raise DataError(f"{self.maps[index]} has the label {labels.max()}; expected 0 to {self.n_labels - 1}")
        return {
            "image": (pixels / 127.5 - 1).astype(np.float32),
            "segmentation": np.eye(self.n_labels, dtype=np.float32)[labels],
            "file_path_": str(self.paths[index]),
        }


class CUB(Images):
    """Caltech-UCSD Birds 200 as its owners publish it, by their own split.

    Args:
        path: the folder ``CUB_200_2011``, with ``images.txt``, ``train_test_split.txt`` and ``images/``.
        split: ``"train"`` or ``"test"``, by the owners' file: 5,994 and 5,794 images.
        size, random_crop, flip: as for :class:`Images`.

    Raises:
        DataError: a file of these is missing, or the two disagree.
    """

    def __init__(
        self, path: Union[str, Path], split: str, size: int, random_crop: bool = False, flip: bool = False
    ) -> None:
        if split not in ("train", "test"):
            raise DataError(f"split is {split!r}; expected 'train' or 'test'")
        self._set_up(size, random_crop, flip)
        names, splits = (_read_numbered(Path(path) / name) for name in ("images.txt", "train_test_split.txt"))
        if set(names) != set(splits):
            raise DataError(f"images.txt and train_test_split.txt in {path} number other images; expected the same")
        wanted = "1" if split == "train" else "0"
        self.paths = [Path(path) / "images" / name for number, name in names.items() if splits[number] == wanted]
        if not self.paths:
            raise DataError(f"train_test_split.txt in {path} has no image for {split}")


def _read_numbered(file: Path) -> Dict[str, str]:
    """The lines of a file ``number value``."""
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; expected CUB_200_2011 as published") from error
    wrong = next((line for line in lines if len(line) != 2), None)
    if wrong is not None:
        raise DataError(f"{file} has the line {' '.join(wrong)!r}; expected a number and a value")
    return dict(lines)


class DataModuleFromConfig(LightningDataModule):
    """The data of a taming YAML, for ``main.DataModuleFromConfig``.

    What each epoch shows, in which order and with which random crops, depends on the seed, the epoch and the item
    alone: not on the number of workers or processes, and not on whether the run was interrupted. Two processes with
    batches of n see, step by step, the images of one with batches of 2n.

    Args:
        batch_size: images in a batch, for each process.
        train, validation, test: ``{target: a data set's class, params: {...}}``.
        wrap: as the host has it; any object with ``__len__`` and ``__getitem__`` will do without it.
        num_workers: processes that load; twice the batch size by default, at most one a core.
        seed: of order, crops and flips; ``vqct-train`` gives its own (``-s``).

    Raises:
        DataError: a data set is empty, or, while it is read, an item cannot be loaded; with the item's file.
    """

    def __init__(
        self,
        batch_size: int,
        train: Optional[Mapping[str, Any]] = None,
        validation: Optional[Mapping[str, Any]] = None,
        test: Optional[Mapping[str, Any]] = None,
        wrap: bool = False,
        num_workers: Optional[int] = None,
        seed: int = 23,
    ) -> None:
        super().__init__()
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise DataError(f"batch_size is {batch_size!r}; expected an integer of 1 or more")
        self.batch_size = batch_size
        self.num_workers = min(batch_size * 2, os.cpu_count() or 1) if num_workers is None else num_workers
        self.seed = seed
        configs = {"train": train, "validation": validation, "test": test}
        self.dataset_configs = {name: config for name, config in configs.items() if config is not None}
        self.datasets: Dict[str, Any] = {}
        # Lightning takes a loader that a data module defines as data that it has
        if validation is None:
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        if test is None:
            self.test_dataloader = super().test_dataloader  # type: ignore[method-assign]

    def setup(self, stage: Optional[str] = None) -> None:
        for name, config in self.dataset_configs.items():
            if name in self.datasets:
                continue
            dataset = instantiate(config, f"data.params.{name}")
            if len(dataset) == 0:
                raise DataError(f"the data set data.params.{name} ({config['target']}) is empty")
            self.datasets[name] = dataset

    def check(self) -> None:
        """Load the first item of each data set; raises DataError where it cannot be."""
        for name, dataset in self.datasets.items():
            item = _Items(dataset, self.seed, f"data.params.{name}")[0, 0]
            if isinstance(item, _Failure):
                raise DataError(item.sentence)

    def train_dataloader(self) -> "Batches":
        trainer: Any = self.trainer
        # Asked for when the first batch is: by then Lightning knows where an interrupted epoch goes on. With
        # --overfit_batches every epoch has to be the same.
        batches = lambda: trainer.fit_loop.epoch_loop.batch_progress.current.ready  # noqa: E731
        overfit = trainer.overfit_batches > 0
        return self._batches("train", not overfit, lambda: (0 if overfit else trainer.current_epoch, batches()))

    def val_dataloader(self) -> "Batches":
        return self._batches("validation", False, lambda: (0, 0))

    def test_dataloader(self) -> "Batches":
        return self._batches("test", False, lambda: (0, 0))

    def _batches(self, name: str, shuffle: bool, position: Callable[[], Tuple[int, int]]) -> "Batches":
        trainer: Any = self.trainer
        processes, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        items = _Items(self.datasets[name], self.seed, f"data.params.{name}")
        sampler: Any = DistributedSampler(items, processes, rank, shuffle=shuffle, seed=self.seed)
        return Batches(items, sampler, self.batch_size, self.num_workers, position)


class Batches:
    """The batches of a data set, from any place of any epoch on.

    In place of a ``DataLoader``, which is one only from the first batch on: then, and not before, it is asked where to
    begin. Lightning opens a loader's iterator before it knows.
    """

    def __init__(
        self,
        items: "_Items",
        sampler: Any,
        batch_size: int,
        num_workers: int,
        position: Callable[[], Tuple[int, int]],
    ) -> None:
        self.dataset = items.dataset
        self._items, self._sampler, self._position = items, sampler, position
        self.batch_size, self.num_workers = batch_size, num_workers

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
            if isinstance(batch, _Failure):
                raise DataError(batch.sentence)
            yield batch

    # With these Lightning takes it for a loader that can go on inside an epoch; epoch and batches it keeps itself.
    def state_dict(self) -> Dict[str, Any]:
        return {}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        del state


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which may want a batch yet


class _Failure(NamedTuple):
    """What went wrong with an item, on its way from a worker: an exception would bring the worker's traceback."""

    sentence: str


class _Items(Dataset):
    """A data set whose item (epoch, index) is drawn with random numbers of its own."""

    def __init__(self, dataset: Any, seed: int, name: str) -> None:
        self.dataset, self.seed, self.name = dataset, seed, name
        self.transforms = _find_albumentations(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Tuple[int, int]) -> Any:
        epoch, index = place
        with _seed_random_numbers(self.seed, epoch, index) as seed:
            for transform in self.transforms:
                transform.set_random_seed(seed)
            try:
                return self.dataset[index]
            except DataError as error:
                return _Failure(str(error))
            except Exception as error:
                file = _find_file(self.dataset, index)
                where = f"item {index} of {self.name}" + (f", {file}," if file else "")
                return _Failure(f"{where} cannot be loaded: {type(error).__name__}: {error}")


def _collate(items: List[Any]) -> Any:
    failures = [item for item in items if isinstance(item, _Failure)]
    return failures[0] if failures else default_collate(items)


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
