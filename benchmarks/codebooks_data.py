"""Photographs for benchmarks/codebooks.py: crops to train on, tiles to judge by, and features of the tiles."""

import functools
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import numpy as np
import torch
from torch import Tensor

from vqct_plugin.runs.backbones import EfficientNetLite0
from vqct_plugin.runs.datasets import SUFFIXES
from vqct_plugin.runs.image_files import read_image

#: folders below --data, of each split
FOLDERS = {
    "train": ("photographs/imagenet", "photographs/clothing/train", "bsds500/train"),
    "validation": ("photographs/clothing/validation", "bsds500/val"),
    "test": ("photographs/clothing/test", "bsds500/test", "photographs/kodak"),
}


def list_photographs(data: Path, split: str) -> List[Path]:
    """All photographs of a split, in the order of their names.

    Raises:
        SystemExit: a folder is missing or has none.
    """
    found: List[Path] = []
    for folder in FOLDERS[split]:
        files = sorted(f for f in (data / folder).rglob("*") if f.suffix.lower() in SUFFIXES)
        if not files:
            raise SystemExit(f"{data / folder} has no photographs; --data is the folder that holds {folder}")
        found += files
    return found


class Crops:
    """Batches of random crops, mirrored half of the time; the same for everyone with the same seed.

    Args:
        photographs: (H, W, 3) uint8 each.
        side: of a crop, in pixels.
        seed: of the crops.
    """

    def __init__(self, photographs: Sequence[np.ndarray], side: int, seed: int) -> None:
        self.photographs = [p for p in photographs if min(p.shape[:2]) >= side]
        self.side, self.random = side, np.random.default_rng(seed)

    def batches(self, size: int, number: int) -> Iterator[Tensor]:
        """``number`` batches (size, 3, side, side) in [-1, 1]."""
        for _ in range(number):
            crops = []
            for i in self.random.integers(len(self.photographs), size=size):
                photograph = self.photographs[i]
                top, left = (int(self.random.integers(n - self.side + 1)) for n in photograph.shape[:2])
                crop = photograph[top : top + self.side, left : left + self.side]
                crops.append(crop[:, ::-1] if self.random.random() < 0.5 else crop)
            yield to_tensor(np.stack(crops))


def cut_tiles(photographs: Sequence[np.ndarray], side: int, most: int) -> Tensor:
    """(N, side, side, 3) uint8: the tiles of each photograph side by side from its middle, ``most`` of them at most."""
    tiles = []
    for photograph in photographs:
        rows, columns = (n // side for n in photograph.shape[:2])
        places = [(r, c) for r in range(rows) for c in range(columns)]
        places.sort(key=lambda at: abs(at[0] - (rows - 1) / 2) + abs(at[1] - (columns - 1) / 2))
        top, left = ((n % side) // 2 for n in photograph.shape[:2])
        for r, c in places[:most]:
            tiles.append(photograph[top + r * side : top + (r + 1) * side, left + c * side : left + (c + 1) * side])
    return torch.from_numpy(np.stack(tiles))


def to_tensor(pixels: Any) -> Tensor:
    """(N, H, W, 3) uint8 as (N, 3, H, W) float in [-1, 1]."""
    return torch.as_tensor(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Features:
    """The pooled 1,280 features of EfficientNet-Lite0, trained on ImageNet, of images enlarged to twice their side."""

    def __init__(self) -> None:
        self.net = EfficientNetLite0()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 1280) float64 of images (N, 3, H, W) in [-1, 1]."""
        large = torch.nn.functional.interpolate(images, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.net.pool(large).double()


@functools.lru_cache(maxsize=3)
def split_of(data: Path, split: str) -> List[np.ndarray]:
    """The photographs of a split, (H, W, 3) uint8 each; read once in a process."""
    return [np.asarray(read_image(file)) for file in list_photographs(data, split)]


def describe(data: Path) -> Dict[str, int]:
    """How many photographs each split has."""
    return {split: len(list_photographs(data, split)) for split in FOLDERS}
