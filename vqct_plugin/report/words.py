"""What the codes of an image say: the word of each position, and the words that tell images apart."""

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

__all__ = ["encode_images", "Tokens"]


class Tokens(NamedTuple):
    """The codes of some images.

    Attributes:
        reconstructions: (N, 3, H, W), from these codes.
        codes: (N, T, h, w) int64, T tokens at each of h x w positions, indices into the whole codebook.
    """

    reconstructions: Tensor
    codes: Tensor


@torch.no_grad()
def encode_images(model: Any, images: Tensor, batch_size: int = 16, tile: Optional[int] = None) -> Tokens:
    """Encode and decode images by a first stage, stock or VQCT.

    Args:
        model: a taming ``VQModel``; is put into evaluation mode while this runs.
        images: (N, 3, H, W) in [-1, 1].
        batch_size: images at once; it changes nothing but the memory that is needed.
        tile: encode squares of this side, side by side, for images larger than those that the model is evaluated on.
    """
    if tile is not None and tuple(images.shape[-2:]) != (tile, tile):
        return _encode_tiles(model, images, batch_size, tile)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    reconstructions, codes = [], []
    try:
        for batch in images.split(batch_size):
            quantized, _, (_, _, indices) = model.encode(batch.to(device))
            b, _, h, w = quantized.shape
            reconstructions.append(model.decode(quantized).float().cpu())
            codes.append(indices.reshape(b, -1, h, w).cpu())
    finally:
        model.train(was_training)
    return Tokens(torch.cat(reconstructions), torch.cat(codes))


def _encode_tiles(model: Any, images: Tensor, batch_size: int, tile: int) -> Tokens:
    rows, columns = (side // tile for side in images.shape[-2:])
    if (rows * tile, columns * tile) != tuple(images.shape[-2:]):
        raise ValueError(f"images of {tuple(images.shape[-2:])} pixels; expected multiples of the tile's side, {tile}")
    cut = rearrange(images, "n c (r h) (k w) -> (n r k) c h w", r=rows, k=columns)
    found = encode_images(model, cut, batch_size)
    return Tokens(*(rearrange(x, "(n r k) c h w -> n c (r h) (k w)", r=rows, k=columns) for x in found))


def count_each_image(codes: Tensor, number: int) -> np.ndarray:
    """(N, number): how often each image of codes (N, T, h, w) has each code."""
    return np.stack([np.bincount(image.reshape(-1).numpy(), minlength=number) for image in codes])


def find_telling(counts: np.ndarray, number: int = 6) -> List[List[Tuple[int, float]]]:
    """The codes that tell each set of images from the others.

    Those that occur in it more often than among the others, by the log-likelihood ratio of the two rates (Dunning,
    *Accurate methods for the statistics of surprise and coincidence*, 1993).

    Args:
        counts: (S, n) how often each of S sets has each of n codes.
        number: at most this many for each set.

    Returns:
        For each set its (code, G2), the most telling first; codes that are not more frequent in it are left out.
    """
    counts = np.asarray(counts, dtype=np.float64)
    inside, total = counts.sum(axis=1, keepdims=True), counts.sum()
    others = counts.sum(axis=0, keepdims=True) - counts
    outside = total - inside
    if len(counts) < 2:
        return [[] for _ in counts]
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = (counts + others) / total
        here = np.where(counts > 0, counts * np.log(counts / (inside * rate)), 0.0)
        there = np.where(others > 0, others * np.log(others / (outside * rate)), 0.0)
        ratio = np.where(counts * outside > others * inside, 2 * (here + there), 0.0)
    ratio = np.nan_to_num(ratio)
    found = []
    for row in ratio:
        order = np.lexsort((np.arange(len(row)), -row))[:number]
        found.append([(int(i), float(row[i])) for i in order if row[i] > 0])
    return found


def find_commonest(counts: Union[Sequence[int], np.ndarray], part_of_speech: np.ndarray, number: int) -> List[int]:
    """The ``number`` most used codes of each part, those in use only."""
    found: List[int] = []
    array = np.asarray(counts)
    for part in np.unique(part_of_speech):
        places = np.flatnonzero(part_of_speech == part)
        order = places[np.lexsort((places, -array[places]))][:number]
        found += [int(i) for i in order if array[i] > 0]
    return found
