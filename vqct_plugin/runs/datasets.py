"""Images for taming's models, and the data module of a taming YAML, whose order of batches survives a restart."""

import logging
import os
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import Dataset

from vqct_plugin.runs.batches import Batches, Damage, Items, Order, check_number
from vqct_plugin.runs.config import DataError, instantiate
from vqct_plugin.runs.image_files import BACKGROUND, check_background, describe_files, read_image, read_labels

__all__ = ["Images", "LabeledImages", "CUB", "DataModuleFromConfig"]

_log = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


class Images(Dataset):
    """Images of a folder and the folders in it, or those that a text file names, one path per line.

    An image is turned as its EXIF data says, scaled so that its shorter side is ``size`` (Lanczos), then cropped to a
    square.

    Args:
        path: a folder; or a list file, whose relative paths are looked up beside it; or a list of paths.
        size: the side of the square, in pixels.
        random_crop: a crop anywhere instead of the middle; for training.
        flip: left to right half the time; for training.
        root: where relative paths are looked up, if not beside the list file, or where the process runs.
        background: the color that transparent pixels show, a name or ``#rrggbb``.

    An item is what taming's data sets give: ``image`` (size, size, 3) float32 in [-1, 1], and ``file_path_``.

    Raises:
        DataError: no such folder or file, or no image in it; when an item is asked for, an image that cannot be read.
    """

    def __init__(
        self,
        path: Union[str, Path, Sequence[Union[str, Path]]],
        size: int,
        random_crop: bool = False,
        flip: bool = False,
        root: Union[str, Path, None] = None,
        background: str = BACKGROUND,
    ) -> None:
        self._set_up(size, random_crop, flip, background)
        if not isinstance(path, (str, Path)):
            self.paths = [Path(root or "") / file for file in path]
            if not self.paths:
                raise DataError("the list of images is empty; expected a path or more")
            return
        path = Path(path)
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
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DataError(f"size is {size!r}; expected the side of the square in pixels, an integer of 1 or more")
        self.size, self.random_crop, self.flip = size, random_crop, flip
        self.background = check_background(background)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        return self._make_item(read_image(self.paths[index], self.background), str(self.paths[index]))

    def _make_item(self, picture: Any, name: str) -> Dict[str, Any]:
        (pixels,) = self._crop([picture])
        return {"image": (pixels / 127.5 - 1).astype(np.float32), "file_path_": name}

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
        self.n_labels = check_number("n_labels", n_labels, 2)
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
        max_damaged: how many items of each data set may be left out where they cannot be loaded; the next one takes the
            place of each. They are counted by each process, since it was started, and logged at the end.

    Raises:
        DataError: an argument is no such number; a data set is empty, or, while it is read, too many items cannot be
            loaded; with an item's file.
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
        max_damaged: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = check_number("batch_size", batch_size, 1)
        workers = min(batch_size * 2, os.cpu_count() or 1) if num_workers is None else num_workers
        self.num_workers = check_number("num_workers", workers)
        self.seed, self.max_damaged = check_number("seed", seed), check_number("max_damaged", max_damaged)
        configs = {"train": train, "validation": validation, "test": test}
        self.dataset_configs = {name: config for name, config in configs.items() if config is not None}
        self.datasets: Dict[str, Any] = {}
        #: what was given in Python: the argument ``dataset`` of a data set's class, which no YAML can hold
        self.given: Dict[str, Any] = {}
        self._trained_on: Optional[Dict[str, Any]] = None
        self._damage = {name: Damage(f"data.params.{name}", max_damaged) for name in configs}
        # Lightning takes a loader that a data module defines as data that it has
        if validation is None:
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        if test is None:
            self.test_dataloader = super().test_dataloader  # type: ignore[method-assign]

    def setup(self, stage: Optional[str] = None) -> None:
        for name, config in self.dataset_configs.items():
            if name in self.datasets:
                continue
            if name in self.given:
                config = {**config, "params": {**config["params"], "dataset": self.given[name]}}
            dataset = instantiate(config, f"data.params.{name}")
            if len(dataset) == 0:
                raise DataError(f"the data set data.params.{name} ({config['target']}) is empty")
            self.datasets[name] = dataset

    def check(self) -> None:
        """Load the first item of each data set; raises DataError where it cannot be."""
        for name, dataset in self.datasets.items():
            loaded = Items(dataset, self.seed, f"data.params.{name}", self.max_damaged)[0, 0]
            if loaded.failures:
                self._damage[name].add(loaded)

    def state_dict(self) -> Dict[str, Any]:
        """For the checkpoint: what is trained on, so that it is said where a run is resumed over something else."""
        if self._trained_on is None and "train" in self.datasets:
            self._trained_on = describe_files(self.datasets["train"])
        return {} if self._trained_on is None else {"train": self._trained_on}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        trainer: Any = self.trainer
        if trainer is not None and (trainer.state.fn != "fit" or not trainer.is_global_zero):
            return
        then, now = state.get("train", {}), self.state_dict().get("train", {})
        differing = [name for name in {**now, **then} if now.get(name) != then.get(name)]
        if then and now and differing:
            each = [
                f"other {name}"
                if isinstance(then.get(name, now.get(name)), str)
                else f"{now.get(name, 'no')} {name} and not {then.get(name, 'none')}"
                for name in differing
            ]
            _log.warning(
                "data.params.train are not the data that this run was trained on: %s; the batches will not be those of "
                "a run without a stop",
                ", ".join(each),
            )

    def teardown(self, stage: Optional[str] = None) -> None:
        self._tell_damage()

    def on_exception(self, exception: BaseException) -> None:
        self._tell_damage()

    def _tell_damage(self) -> None:
        """What was left out, once."""
        for name, damage in self._damage.items():
            shards = getattr(self.datasets.get(name), "damaged", {})
            for what, sentences in (
                ("shards were left out from the damage on", shards),
                ("images were left out", damage.sentences),
            ):
                if sentences:
                    first = next(iter(sentences.values()))
                    _log.warning("%s: %d damaged %s, such as: %s", damage.name, len(sentences), what, first)
                    sentences.clear()

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
        items = Items(self.datasets[name], self.seed, f"data.params.{name}", self.max_damaged)
        sampler = Order(items, processes, rank, shuffle=shuffle, seed=self.seed)
        return Batches(items, sampler, self.batch_size, self.num_workers, position, self._damage[name])
