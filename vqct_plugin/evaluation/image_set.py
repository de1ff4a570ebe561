"""The images that models are evaluated on."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch.utils.data.dataloader import default_collate

from vqct_plugin.runs.build import build_validation_set
from vqct_plugin.runs.config import ConfigError, DataError
from vqct_plugin.runs.datasets import Images
from vqct_plugin.runs.image_files import list_files
from vqct_plugin.runs.load import Trained


def build_image_set(
    trained: Trained,
    images: Any = None,
    size: Optional[int] = None,
    limit: Optional[int] = None,
    shown: Optional[int] = None,
) -> Any:
    """The images to evaluate: of a folder or list file, or the config's validation set.

    Args:
        trained: a loaded first stage.
        images: a folder or list file of images; None for the validation set.
        size: the side of the squares that they are cropped to; None for the model's resolution.
        limit: only the first ``limit`` images.
        shown: a side other than the evaluation's, to look at them.

    Raises:
        ConfigError, DataError: these cannot be evaluated.
    """
    encoder = trained.model.encoder
    factor = get_factor(trained.model)
    if getattr(encoder, "in_channels", 3) != 3:
        raise ConfigError(
            f"the model of {trained.checkpoint} encodes {encoder.in_channels} channels; expected 3, of images"
        )
    side = shown or size or encoder.resolution
    if side % factor:
        raise ConfigError(f"size is {side}; expected a multiple of {factor}, the model's downsampling factor")
    if images is not None:
        items: Any = Images(images, side)
    elif size is not None:
        raise ConfigError("size goes with images; the config's validation set has its own")
    else:
        config = trained.config
        if shown is not None:
            from omegaconf import OmegaConf

            config = OmegaConf.merge(config, {"data": {"params": {"validation": {"params": {"size": shown}}}}})
        items = build_validation_set(config)
    if len(items) == 0:
        raise DataError("the validation set has no image")
    return torch.utils.data.Subset(items, range(min(len(items), limit or len(items))))


class Broken(NamedTuple):
    """An item that cannot be read: its file, or its place, and why, and its place in the set. A value, so that a
    worker's traceback stays out."""

    name: str
    why: str
    place: int


class Readable(torch.utils.data.Dataset):
    """A data set whose items that cannot be read are of class :class:`Broken`."""

    def __init__(self, items: Any) -> None:
        self.items = items
        whole = list_files(items.dataset)
        self.files = [whole[i] for i in items.indices] if whole else []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Union[Broken, Dict[str, Any]]:
        try:
            item: Dict[str, Any] = self.items[index]
            return item
        except Exception as error:  # of any data set
            name = self.files[index] if self.files else f"item {index}"
            if isinstance(error, DataError):
                return Broken(name, str(error), index)
            return Broken(name, f"{name} cannot be loaded: {type(error).__name__}: {error}", index)


def collate_readable(items: List[Any]) -> Tuple[Optional[Dict[str, Any]], List[Broken]]:
    """(batch of the items that could be read, or None; those that could not)."""
    good = [item for item in items if not isinstance(item, Broken)]
    return default_collate(good) if good else None, [item for item in items if isinstance(item, Broken)]


def take_readable(items: Any, places: Sequence[int]) -> List[Tuple[int, Any]]:
    """(place, item) of a subset's items at these places; instead of one that cannot be read, or is taken, the next.

    Raises:
        DataError: no item can be read.
    """
    readable = Readable(items)
    found: Dict[int, Any] = {}
    broken = Broken("", "there is no image", -1)
    for place in places:
        for k in range(len(items)):
            at = (place + k) % len(items)
            item = None if at in found else readable[at]
            if isinstance(item, Broken):
                broken = item
            elif item is not None:
                found[at] = item
                break
    if not found:
        raise DataError(broken.why)
    return sorted(found.items())


def get_factor(model: Any) -> int:
    """How many pixels of a side make one position."""
    factor: int = 2 ** (model.encoder.num_resolutions - 1)
    return factor
