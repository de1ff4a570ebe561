"""Images that are given in Python, in place of files: a data set, or a list, of pictures."""

from pathlib import Path
from typing import Any, Dict

import numpy as np

from vqct_plugin.runs.config import DataError
from vqct_plugin.runs.datasets import Images
from vqct_plugin.runs.image_files import BACKGROUND, convert_image

__all__ = ["GivenImages", "take_dataset"]


class GivenImages(Images):
    """The images of anything with ``__len__`` and ``__getitem__``: of a torch ``Dataset``, of a list of pictures.

    Args:
        dataset: its items are images, or tuples that begin with one (as torchvision's), or mappings with ``image``.
            An image is PIL's; or uint8, (H, W, 3) as numpy has it or (3, H, W) as torch does; or float, (3, H, W) from
            0 to 1, as torchvision's ``ToTensor`` gives. A mapping whose ``image`` is a float array (H, W, 3) is an item
            of taming's, in [-1, 1] and of its size already, and stays as it is.
        size, random_crop, flip, background: as for :class:`~vqct_plugin.runs.datasets.Images`.

    An item is that of ``Images``; its ``file_path_`` is its number.

    Raises:
        DataError: there is no item; when one is asked for, it is no image.
    """

    def __init__(
        self,
        dataset: Any,
        size: int,
        random_crop: bool = False,
        flip: bool = False,
        background: str = BACKGROUND,
    ) -> None:
        self._set_up(size, random_crop, flip, background)
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            what = type(dataset).__name__
            raise DataError(f"a {what} was given as data; expected a data set with __len__ and __getitem__, or a list")
        if len(dataset) == 0:
            raise DataError(f"the {type(dataset).__name__} that was given as data is empty; expected an image or more")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        index = range(len(self))[index]
        item, name = self.dataset[index], f"item {index}"
        if isinstance(item, dict):
            if "image" not in item:
                raise DataError(f"{name} has {', '.join(map(str, item))}; expected the key image")
            picture = item["image"]
            pixels = _to_array(picture)
            if pixels is not None and pixels.dtype.kind == "f" and pixels.ndim == 3 and pixels.shape[-1] == 3:
                return {"file_path_": name, **item}
        else:
            picture = item[0] if isinstance(item, (tuple, list)) and item else item
        return self._make_item(_to_picture(picture, name, self.background), name)


def take_dataset(
    dataset: Any, size: int, random_crop: bool = False, flip: bool = False, background: str = BACKGROUND
) -> Images:
    """What a YAML names where :func:`vqct_plugin.train` was given a data set: a table of Hugging Face's, or any other.

    Raises:
        DataError: it is a text, the data set's name in the YAML of a run; the data set has to be given again. Or as of
            :class:`~vqct_plugin.runs.hugging_face.HuggingFaceImages` and :class:`GivenImages`.
    """
    if isinstance(dataset, (str, Path)):
        raise DataError(
            f"the run was trained on data given in Python, a {dataset}, which no file holds; give it again: "
            "vqct_plugin.train(resume=RUN, data=...), or name other data"
        )
    options: Dict[str, Any] = {"random_crop": random_crop, "flip": flip, "background": background}
    if any(cls.__module__.split(".")[0] == "datasets" for cls in type(dataset).__mro__):
        from vqct_plugin.runs.hugging_face import HuggingFaceImages

        return HuggingFaceImages(dataset, size, **options)
    return GivenImages(dataset, size, **options)


def _to_array(picture: Any) -> Any:
    """A tensor or an array as an array; None for anything else."""
    if isinstance(picture, np.ndarray):
        return picture
    return picture.detach().cpu().numpy() if hasattr(picture, "detach") else None


def _to_picture(picture: Any, name: str, background: str) -> Any:
    """A PIL image of mode RGB."""
    from PIL import Image

    pixels = _to_array(picture)
    if pixels is None:
        if not isinstance(picture, Image.Image):
            raise DataError(f"{name} is a {type(picture).__name__}; expected an image: PIL's, an array or a tensor")
        return convert_image(picture, name, background)
    what = f"{name} is an array {tuple(pixels.shape)} of {pixels.dtype}"
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # also where one of them is NaN
            raise DataError(
                f"{what}, from {low:g} to {high:g}; expected floats from 0 to 1. What is in [-1, 1] already is given "
                "as taming's data sets give it: a mapping with image, (H, W, 3)"
            )
        pixels = (pixels * 255 + 0.5).astype(np.uint8)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or pixels.dtype != np.uint8:
        raise DataError(f"{what}; expected uint8 (H, W, 3) or (3, H, W), or floats (3, H, W) from 0 to 1")
    gray = pixels.shape[-1] == 1
    return convert_image(Image.fromarray(np.repeat(pixels, 3, axis=-1) if gray else pixels), name, background)
