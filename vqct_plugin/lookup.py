"""The k nearest codes of each vector: in bounded memory, no N x n matrix, and no slower than one.

The distance |z - e|^2 = |z|^2 + |e|^2 - 2 z·e is compared without its first term, which all codes share. A common mean
is taken off both first, which changes no distance: where codes and vectors lie far from the origin, the products would
round away what tells them apart. Scores come from matrix products in float32, a tile of vectors by codes at a time.

Measured against the exact order in float64, one choice in some ten thousand differs, between codes whose distances
agree to seven digits. An exact comparison afterwards was in this place once; it took up to ten times the time.
"""

from typing import List, Tuple

import torch
from torch import Tensor

from vqct_plugin._operators import operator
from vqct_plugin._torch import at_least_float32, exact_float32_products, in_func_transform, tracing, without_autocast

__all__ = ["find_nearest"]

# On a CPU a tile's scores stay in the cache between the product and the search for its minima; 2 MB and 16 MB.
_TILE_SCORES = {"cpu": 1 << 19, "other": 1 << 22}
_TILE_CODES = {"cpu": 2048, "other": 8192}
_LEAST_VECTORS = 64  # of a tile, so that a product is worth its name
_COPIED = 1 << 22  # floats of vectors, or of codes, copied at a time: 16 MB
_GROUP = 64  # scores of which the CPU first finds the least, then where it is: a vectorized pass and a short search


def find_nearest(z: Tensor, codes: Tensor, k: int = 1) -> Tensor:
    """The k nearest codes of each vector by squared Euclidean distance, the nearest first.

    Distances are computed in float32 (in float64 where an argument has it), whatever autocast or TF32 say. Codes whose
    computed distances are equal come lowest index first, as ``argmin`` has it; equal codes may be rounded apart, where
    a matrix product adds up a block's last columns in another order. The host does not wait for a device.

    Args:
        z: (N, D) floating point, finite.
        codes: (n, D) floating point, finite.
        k: from 1 to n.

    Returns:
        (N, k) int64, without gradient.

    Source: Zhang et al., CVPR 2024, the quantization step; there k is 1 for nouns and ``topk`` for adjectives.

    >>> find_nearest(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), k=2)
    tensor([[1, 2]])
    """
    if z.dim() != 2 or codes.dim() != 2 or z.shape[1] != codes.shape[1]:
        raise ValueError(f"z {tuple(z.shape)} and codes {tuple(codes.shape)}: expected (N, D) and (n, D) of one D")
    if not 1 <= k <= codes.shape[0]:
        raise ValueError(f"k is {k}; expected 1 to {codes.shape[0]}, the number of codes")
    z, codes = at_least_float32(z.detach()), at_least_float32(codes.detach())
    if z.dtype != codes.dtype:
        z, codes = z.double(), codes.double()
    if tracing() or in_func_transform():
        return _nearest_at_once(z, codes, k)
    found: Tensor = _nearest(z, codes, k)
    return found


def find_nearest_as_taming(z: Tensor, codes: Tensor) -> Tensor:
    """The nearest code by the float32 arithmetic of taming's ``VectorQuantizer2``, term by term: (N,) int64.

    Where two codes are nearly as close this keeps the choice that rounding makes there, so that a learned table gives
    the host's indices to the last bit. It goes by blocks of vectors; a block has the bits of the whole.
    """
    z, codes = z.detach(), codes.detach()
    if tracing() or in_func_transform():
        return _taming_scores(z, codes).argmin(dim=1)
    found: Tensor = _nearest_as_taming(z, codes)
    return found


@operator(
    "nearest(Tensor z, Tensor codes, int k) -> Tensor",
    lambda z, codes, k: z.new_empty((z.shape[0], k), dtype=torch.int64),
)
def _nearest(z: Tensor, codes: Tensor, k: int) -> Tensor:
    with torch.no_grad(), without_autocast(z.device), exact_float32_products():
        mean = codes.mean(dim=0)
        rows = max(_COPIED // z.shape[1], 1)
        return torch.cat([_nearest_by_tiles(some - mean, codes, mean, k) for some in z.split(rows)])


def _nearest_by_tiles(z: Tensor, codes: Tensor, mean: Tensor, k: int) -> Tensor:
    """``z``: without ``mean`` already; ``codes``: with it."""
    n, dim = codes.shape
    cpu = z.device.type == "cpu"
    kind = "cpu" if cpu else "other"
    width = max(min(_TILE_CODES[kind], _COPIED // dim, n), k)
    rows = min(max(_TILE_SCORES[kind] // width, _LEAST_VECTORS), z.shape[0])
    scores = z.new_empty(rows, width + -width % _GROUP)
    values = indices = None
    for first in range(0, n, width):
        tile = codes[first : first + width] - mean
        norms = torch.sum(tile**2, dim=1)
        m = len(tile)
        whole = m + -m % _GROUP
        scores[:, m:whole] = float("inf")  # no code stands there
        found = []
        for block in z.split(rows):
            torch.addmm(norms, block, tile.t(), alpha=-2, out=scores[: len(block), :m])
            found.append(_smallest(scores[: len(block), :whole], k, cpu))
        new_values, new_indices = torch.cat([v for v, _ in found]), torch.cat([i for _, i in found]) + first
        if values is None or indices is None:
            values, indices = new_values, new_indices
        else:  # what was found earlier has the lower indices, and stands first
            both = torch.cat([values, new_values], dim=1)
            values, at = _smallest(both, k, False)
            indices = torch.cat([indices, new_indices], dim=1).gather(1, at)
    assert indices is not None
    return indices.clamp_(max=n - 1)  # where a diverged code made every score infinite


def _smallest(values: Tensor, k: int, grouped: bool) -> Tuple[Tensor, Tensor]:
    """The k smallest of each row and where they are, equal ones lowest index first. May put infinity in their places.

    Not ``topk``: that breaks ties as it likes. ``grouped``: the rows are whole groups of ``_GROUP``.
    """
    found: List[Tuple[Tensor, Tensor]] = []
    for _ in range(k):
        if found:
            values.scatter_(1, found[-1][1], float("inf"))
        found.append(_least(values, grouped))
    return found[0] if k == 1 else (torch.cat([v for v, _ in found], dim=1), torch.cat([at for _, at in found], dim=1))


def _least(values: Tensor, grouped: bool) -> Tuple[Tensor, Tensor]:
    if not grouped or values.shape[1] < 2 * _GROUP:
        least, at = values.min(dim=1, keepdim=True)
        return least, at
    groups = values.as_strided((len(values), values.shape[1] // _GROUP, _GROUP), (values.stride(0), _GROUP, 1))
    least, group = groups.amin(dim=2).min(dim=1, keepdim=True)
    own = groups[torch.arange(len(groups), device=group.device), group.squeeze(1)]
    return least, own.argmin(dim=1, keepdim=True) + group * _GROUP


def _nearest_at_once(z: Tensor, codes: Tensor, k: int) -> Tensor:
    """The same from torch's plainest operators, for graphs that run without this package; an N x n matrix."""
    mean = codes.mean(dim=0)
    z, codes = z - mean, codes - mean
    scores = codes.pow(2).sum(dim=1) - 2 * (z @ codes.t())
    found = []
    for _ in range(k):
        found.append(scores.argmin(dim=1, keepdim=True))
        if len(found) < k:
            scores = scores.scatter(1, found[-1], float("inf"))
    return torch.cat(found, dim=1)


@operator(
    "nearest_as_taming(Tensor z, Tensor codes) -> Tensor",
    lambda z, codes: z.new_empty(z.shape[0], dtype=torch.int64),
)
def _nearest_as_taming(z: Tensor, codes: Tensor) -> Tensor:
    rows = max(_TILE_SCORES["cpu" if z.device.type == "cpu" else "other"] // codes.shape[0], 16)
    with torch.no_grad(), without_autocast(z.device):
        return torch.cat([_taming_scores(some, codes).argmin(dim=1) for some in z.split(rows)])


def _taming_scores(z: Tensor, codes: Tensor) -> Tensor:
    norms = torch.sum(z**2, dim=1, keepdim=True) + torch.sum(codes**2, dim=1)
    return norms - 2 * torch.einsum("bd,nd->bn", z, codes)
