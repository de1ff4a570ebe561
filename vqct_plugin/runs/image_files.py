"""One image file as RGB: upright, at its own range, over a background; and what is not an image, named."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import numpy as np

from vqct_plugin.runs.config import DataError

BACKGROUND = "white"
_ORIENTATION = 274  # EXIF's number of it
#: EXIF's orientation -> PIL's way to turn an image upright
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def read_image(path: Union[str, Path], background: str = BACKGROUND) -> Any:
    """A file as a PIL image of mode RGB.

    It is turned as its EXIF data says; where these are damaged, it is taken as upright. Grays of 16 bits are read from
    0 to 65,535, floats from 0 to 1; what is transparent shows the background.

    Args:
        path: of the image.
        background: a color, by its name or as ``#rrggbb``.

    Raises:
        DataError: there is no such file, or it is damaged, or it holds several images, a side of one pixel, or values
            of unknown range; each with the file's path.
    """
    return _read(path, lambda image: _to_rgb(image, path, background))


def read_image_bytes(content: bytes, name: str, background: str = BACKGROUND) -> Any:
    """The content of an image file, that of a shard say, as :func:`read_image` reads a file; errors give the name."""
    return _read(name, lambda image: _to_rgb(image, name, background), content)


def convert_image(image: Any, name: str, background: str = BACKGROUND) -> Any:
    """An open PIL image as :func:`read_image` gives one of a file; errors give the name."""
    return _to_rgb(image, name, background)


def read_labels(path: Union[str, Path]) -> Any:
    """A label map as the PIL image that it is; raises DataError."""
    return _read(path, lambda image: image.copy())


def _read(path: Union[str, Path], convert: Callable[[Any], Any], content: Optional[bytes] = None) -> Any:
    from PIL import Image

    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            return convert(image)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no image {path}") from None
    except Exception as error:  # PIL's decoders and converters raise of every kind
        what = str(error).split(" <_io.BytesIO")[0]  # PIL's name of a content
        raise DataError(f"the image {path} cannot be read: {what}") from error


def _to_rgb(image: Any, path: Union[str, Path], background: str) -> Any:
    number = _count_images(image)
    if number > 1:
        raise DataError(f"the image {path} is {number} of them, an animation or pages; expected a single one")
    if min(image.size) < 2:
        width, height = image.size
        raise DataError(f"the image {path} is {width} x {height} pixels; expected 2 or more each way")
    image.load()
    image = _turn_upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale(image, path)
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return _lay_over(image, background)
    return image.convert("RGB")


def _turn_upright(image: Any) -> Any:
    from PIL import Image

    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # PIL raises of every kind on a damaged header, and the pixels are none the worse for it
        return image
    return image if turn is None else image.transpose(getattr(getattr(Image, "Transpose", Image), turn))


def check_background(background: str) -> str:
    """The same color; raises DataError for what is none."""
    from PIL import ImageColor

    try:
        opaque = len(ImageColor.getrgb(background)) == 3
    except (ValueError, AttributeError, TypeError):
        opaque = False
    if not opaque:
        raise DataError(f"background is {background!r}; expected a color's name, or #rrggbb")
    return background


def _count_images(image: Any) -> int:
    """How many images a file holds; the second picture of a camera's JPEG (MPO) and a TIFF's thumbnails are none."""
    frames = int(getattr(image, "n_frames", 1))
    if frames == 1 or image.format == "MPO":
        return 1
    if image.format != "TIFF":
        return frames
    number = 0
    width, height = image.size
    for frame in range(frames):
        image.seek(frame)
        number += image.size[0] >= width and image.size[1] >= height
    image.seek(0)
    return number


def _scale(image: Any, path: Union[str, Path]) -> Any:
    """Integers of more than 8 bits, or floats, of one channel."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    kind, top = ("floats", 1) if image.mode == "F" else ("integers", 65535)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= top):  # also where one of them is NaN
        raise DataError(
            f"the image {path} holds {kind} from {low:g} to {high:g}; expected 0 to {top:,}: rescale the values to "
            "this range"
        )
    gray = (values * (255 / top) + 0.5).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")


def _lay_over(image: Any, background: str) -> Any:
    from PIL import Image

    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(below, image).convert("RGB")


def list_files(dataset: Any) -> List[str]:
    """The files of a data set's items, in their order, where it is known: of ours, and of taming's; else nothing."""
    paths = getattr(dataset, "paths", None)
    if paths is None:
        for holder in (dataset, getattr(dataset, "data", None)):
            labels = getattr(holder, "labels", None)
            if isinstance(labels, dict) and "file_path_" in labels:
                paths = labels["file_path_"]
    found = [] if paths is None else [str(path) for path in paths]
    return found if len(found) == len(dataset) else []


def describe_files(dataset: Any) -> Dict[str, Any]:
    """What tells a data set from another, or from itself before its files changed, in a few words that a checkpoint
    can hold: the number of its images, and a hash of their files' names; or what its own ``describe_files()`` says.

    Not where the files are, nor when they were written: copies are the same. Files' contents are not read.
    """
    own = getattr(dataset, "describe_files", None)
    if own is not None:
        return dict(own())
    names = list_files(dataset)
    return {"images": len(dataset), **({"names of images": hash_names(names)} if names else {})}


def hash_names(paths: Sequence[Union[str, Path]]) -> str:
    """A hash of some paths in their order, below the folder that holds them all."""
    names = [str(path) for path in paths]
    folder = os.path.commonprefix([min(names), max(names)]).rpartition(os.sep)[0]  # noqa: RUF071
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name[len(folder) :]) + b"\0")
    return digest.hexdigest()
