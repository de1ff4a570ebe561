"""The k nearest codes of each vector: exact, in bounded memory, no N x n matrix.

The distance |z - e|^2 = |z|^2 + |e|^2 - 2 z·e is compared without its first term, which all codes share. Scores come
from one matrix product a block of vectors, in float32; where rounding could have changed the order, the codes in
question are compared again in float64, by the difference itself.
"""

from typing import Any, Callable, Dict, Tuple

import torch
from torch import Tensor

from vqct_plugin._torch import at_least_float32, compiling, exact_float32_products, without_autocast

# Scores of one block. On CPU a block stays in the cache between the product and the search for its minima.
_BLOCK_SCORES_CPU = 1 << 20  # 4 MB
_BLOCK_SCORES_GPU = 1 << 23  # 32 MB
_PAIRS_AT_ONCE = 1 << 19  # float64 values of the pairs compared again: 4 MB
# On a GPU, how many codes beyond the k nearest are compared again in float64. A fixed number, because asking how many
# are needed would make the host wait for the device.
_SPARE_GPU = 3


def nearest(z: Tensor, codes: Tensor, k: int = 1) -> Tensor:
    """The k nearest codes of each vector by squared Euclidean distance, the nearest first.

    Exact: the order is that of the distances in float64; codes at equal distance come lowest index first, as
    ``argmin`` has it. On a GPU the host does not wait for the device, and the float64 comparison covers the ``k + 3``
    codes nearest in float32: exact unless more than three further codes lie within a float32 rounding error.

    Args:
        z: (N, D) floating point, finite.
        codes: (n, D) floating point, finite.
        k: from 1 to n.

    Returns:
        (N, k) int64, without gradient.

    Source: Zhang et al., CVPR 2024, the quantization step; there k is 1 for nouns and ``topk`` for adjectives.

    >>> nearest(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), k=2)
    tensor([[1, 2]])
    """
    if z.dim() != 2 or codes.dim() != 2 or z.shape[1] != codes.shape[1]:
        raise ValueError(f"z {tuple(z.shape)} and codes {tuple(codes.shape)}: expected (N, D) and (n, D) of one D")
    if not 1 <= k <= codes.shape[0]:
        raise ValueError(f"k is {k}; expected 1 to {codes.shape[0]}, the number of codes")
    return _as_an_operator("nearest", z.detach(), codes.detach(), k)


def nearest_as_taming(z: Tensor, codes: Tensor) -> Tensor:
    """The nearest code by the float32 arithmetic of taming's ``VectorQuantizer2``, term by term: (N,) int64.

    Where two codes are nearly as close this keeps the choice that rounding makes there, so that a learned table gives
    the host's indices to the last bit. It goes by blocks of vectors; a block has the bits of the whole.
    """
    return _as_an_operator("nearest_as_taming", z.detach(), codes.detach())


def _nearest(z: Tensor, codes: Tensor, k: int) -> Tensor:
    with torch.no_grad(), without_autocast(z.device), exact_float32_products():
        z, codes = at_least_float32(z), at_least_float32(codes)
        if z.dtype != codes.dtype:
            z, codes = z.double(), codes.double()
        return _nearest_in_blocks(z, codes, k)


def _nearest_as_taming(z: Tensor, codes: Tensor) -> Tensor:
    with torch.no_grad():
        norms = torch.sum(codes**2, dim=1)
        found = []
        for block in z.split(_rows_of_a_block(z, codes)):
            scores = torch.sum(block**2, dim=1, keepdim=True) + norms - 2 * torch.einsum("bd,nd->bn", block, codes)
            found.append(torch.argmin(scores, dim=1))
        return torch.cat(found)


def _rows_of_a_block(z: Tensor, codes: Tensor) -> int:
    scores = _BLOCK_SCORES_CPU if z.device.type == "cpu" else _BLOCK_SCORES_GPU
    return max(scores // codes.shape[0], 16)


def _nearest_in_blocks(z: Tensor, codes: Tensor, k: int) -> Tensor:
    n = codes.shape[0]
    size = max(_PAIRS_AT_ONCE // max(codes.shape[1], 1), 1)
    norms = torch.cat([some.double().pow(2).sum(1) for some in codes.split(size)])
    largest_norm = norms.max().sqrt().to(z.dtype)
    norms = norms.to(z.dtype)
    rows = min(_rows_of_a_block(z, codes), max(z.shape[0], 1))
    scores = z.new_empty(rows, n)
    transposed = codes.t()
    found = torch.empty(z.shape[0], k, dtype=torch.int64, device=z.device)
    for start in range(0, z.shape[0], rows):
        block = z[start : start + rows]
        block_scores = scores[: block.shape[0]]
        torch.addmm(norms, block, transposed, beta=1, alpha=-2, out=block_scores)
        if z.device.type == "cpu":
            found[start : start + rows] = _exact_on_cpu(block, codes, block_scores, k, largest_norm)
        else:
            found[start : start + rows] = _exact_without_waiting(block, codes, block_scores, k)
    return found


def _rounding_error(z: Tensor, dim: int, largest_norm: Tensor) -> Tensor:
    """(N, 1): no score of a vector is further from its true value (the usual bound of a dot product's rounding)."""
    unit = torch.finfo(z.dtype).eps / 2
    size = largest_norm * (largest_norm + 2 * z.norm(dim=1, keepdim=True))
    return (dim + 4) * (unit * 1.01 * size + torch.finfo(z.dtype).tiny)


def _exact_on_cpu(z: Tensor, codes: Tensor, scores: Tensor, k: int, largest_norm: Tensor) -> Tensor:
    values, indices = _smallest(scores, k)
    error = 2 * _rounding_error(z, codes.shape[1], largest_norm)
    last = values[:, -1:]
    following = scores.amin(dim=1, keepdim=True)  # _smallest left infinities where it took a code; all, if k is n
    gaps = torch.cat([values, following], dim=1)
    certain = (gaps[:, 1:] - gaps[:, :-1] > error).all(dim=1)  # a NaN compares false: not certain
    if not bool(certain.all()):
        doubtful = torch.nonzero(~certain).squeeze(1)
        again = scores[doubtful].scatter_(1, indices[doubtful], values[doubtful])
        candidates = ~(again > last[doubtful] + error[doubtful])  # with a NaN, every code is one
        indices[doubtful] = _settled(z[doubtful], codes, candidates, k)
    return indices


def _settled(z: Tensor, codes: Tensor, candidates: Tensor, k: int) -> Tensor:
    """The k nearest among the candidates (R, n) of each vector, by differences in float64."""
    row, column = torch.nonzero(candidates, as_tuple=True)
    z64 = z.double()
    if row.numel() * 8 < candidates.numel():  # as a rule a handful for each vector
        distances = torch.full(candidates.shape, float("inf"), dtype=torch.float64)
        size = max(_PAIRS_AT_ONCE // codes.shape[1], 1)
        for r, c in zip(row.split(size), column.split(size)):
            distances[r, c] = (z64[r] - codes[c].double()).pow(2).sum(1)
    else:  # many codes are alike, as in a collapsed codebook
        distances = _all_distances(z64, codes)
    return _smallest(distances, k)[1]


def _all_distances(z64: Tensor, codes: Tensor) -> Tensor:
    size = max(_PAIRS_AT_ONCE // codes.shape[1], 1)
    by_difference = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(z64, c.double(), compute_mode=by_difference) for c in codes.split(size)], dim=1)


def _exact_without_waiting(z: Tensor, codes: Tensor, scores: Tensor, k: int) -> Tensor:
    candidates = _smallest(scores, min(k + _SPARE_GPU, codes.shape[0]))[1]
    candidates = candidates.sort(dim=1)[0]  # so that the first of equal distances has the lowest index
    distances = (z.double().unsqueeze(1) - codes[candidates].double()).pow(2).sum(-1)
    return candidates.gather(1, _smallest(distances, k)[1])


def _smallest(values: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    """The k smallest of each row and where they are, equal ones lowest index first. Puts infinity in their places.

    Not ``topk``: that breaks ties as it likes.
    """
    taken_values, taken = [], []
    for _ in range(k):
        value, index = values.min(dim=1, keepdim=True)
        values.scatter_(1, index, float("inf"))
        taken_values.append(value)
        taken.append(index)
    return torch.cat(taken_values, dim=1), torch.cat(taken, dim=1)


_FUNCTIONS: Dict[str, Callable[..., Tensor]] = {"nearest": _nearest, "nearest_as_taming": _nearest_as_taming}


def _as_an_operator(name: str, *args: Any) -> Tensor:
    """Call a function above; under ``torch.compile`` as one operator, which is not looked into.

    What is above depends on the values (are any doubtful?), which would break the compiled graph in pieces.
    """
    if compiling() and hasattr(torch.ops.vqct_plugin, name):
        found: Tensor = getattr(torch.ops.vqct_plugin, name)(*args)
        return found
    return _FUNCTIONS[name](*args)


if hasattr(torch, "library") and hasattr(torch.library, "custom_op"):  # since torch 2.4
    _nearest_operator = torch.library.custom_op("vqct_plugin::nearest", _nearest, mutates_args=())
    _nearest_operator.register_fake(lambda z, codes, k: z.new_empty(z.shape[0], k, dtype=torch.int64))
    _taming_operator = torch.library.custom_op("vqct_plugin::nearest_as_taming", _nearest_as_taming, mutates_args=())
    _taming_operator.register_fake(lambda z, codes: z.new_empty(z.shape[0], dtype=torch.int64))
