"""Real photographs that come with a PyPI package, for ``vqct-demo``: scikit-image's color ones."""

import random
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
from torch.utils.data import Dataset

__all__ = ["Photographs"]

#: scikit-image's color photographs that lie in its wheel (its other ones are downloaded, and not used)
FILES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)

SHORTER_SIDE = 400


class Photographs(Dataset):
    """Crops of scikit-image's photographs, the larger ones scaled down to 400 pixels on their shorter side.

    The right-hand quarter of every photograph is held out: crops for training never touch it, and validation sees
    nothing else.

    Args:
        split: ``"train"``, random crops of the left three quarters, flipped left to right half the time; or
            ``"validation"``, the tiles of the right-hand quarter, side by side, always the same.
        size: the side of a crop, in pixels.
        length: how many crops make an epoch of training.

    An item is what taming's data sets give: ``image`` (size, size, 3) float32 in [-1, 1], and ``file_path_``.
    """

    def __init__(self, split: str, size: int = 64, length: int = 1024) -> None:
        if split not in ("train", "validation"):
            raise ValueError(f"split is {split!r}; expected 'train' or 'validation'")
        self.split, self.size, self.length = split, size, length
        self.photographs = [_read(name) for name in FILES]
        self.borders = [photograph.shape[1] * 3 // 4 for photograph in self.photographs]
        for name, photograph, border in zip(FILES, self.photographs, self.borders):
            most = min(photograph.shape[0], photograph.shape[1] - border)
            if not 1 <= size <= most:
                raise ValueError(f"size is {size}; expected 1 to {most}, the shorter side of what {name} holds out")
        self.tiles = [tile for i in range(len(FILES)) for tile in self._list_tiles(i)]

    def _list_tiles(self, i: int) -> List[Any]:
        height, width = self.photographs[i].shape[:2]
        rows = range(0, height - self.size + 1, self.size)
        columns = range(self.borders[i], width - self.size + 1, self.size)
        return [(i, row, column) for row in rows for column in columns]

    def __len__(self) -> int:
        return self.length if self.split == "train" else len(self.tiles)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self.split == "validation":
            i, row, column = self.tiles[index]
            crop = self.photographs[i][row : row + self.size, column : column + self.size]
        else:  # Python's generator, which the launcher seeds for each item
            i = random.randrange(len(FILES))
            row = random.randint(0, self.photographs[i].shape[0] - self.size)
            column = random.randint(0, self.borders[i] - self.size)
            crop = self.photographs[i][row : row + self.size, column : column + self.size]
            if random.random() < 0.5:
                crop = crop[:, ::-1]
        return {"image": (crop / 127.5 - 1).astype(np.float32), "file_path_": FILES[i]}


def _read(name: str) -> np.ndarray:
    try:
        import skimage
        from PIL import Image
    except ImportError as error:
        raise ImportError("the photographs come with scikit-image: pip install 'vqct-plugin[demo]'") from error
    file = Path(skimage.__file__).parent / "data" / name
    with Image.open(file) as image:
        image = image.convert("RGB")
        scale = SHORTER_SIDE / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        return np.asarray(image)
