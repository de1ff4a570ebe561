"""Codes that are added: the sum of one code of each part that comes nearest to a vector.

Source: additive and residual quantization, Juang and Gray 1982; Babenko and Lempitsky, CVPR 2014. The search keeps
several candidates from part to part, a beam: of 8, the figure in docs/does_it_work.md.
"""

from typing import List, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin._operators import operator
from vqct_plugin._torch import at_least_float32, in_func_transform, tracing
from vqct_plugin.lookup import find_nearest
from vqct_plugin.slices import Slice

BEAM = 8
_COPIED = 1 << 22  # floats of what candidates leave over, at a time: 16 MB


def find_nearest_sum(z: Tensor, codes: Tensor, slices: Sequence[Slice]) -> Tensor:
    """Which code of each slice to add so that the sum comes near to each vector.

    The nearest codes of the first slice are candidates; each of them leaves a difference, whose nearest codes of the
    next slice make new candidates, of which the best go on. It is no exhaustive search: among all sums there may be a
    nearer one.

    Args:
        z: (N, D) floating point, finite.
        codes: (n, D) floating point, finite.
        slices: one for each code of the sum.

    Returns:
        (N, parts) int64, indices into ``codes``, without gradient.

    >>> codes = torch.tensor([[10.0], [20.0], [0.0], [3.0], [4.0]])
    >>> slices = [Slice("tens", 0, 2, 1), Slice("ones", 2, 5, 1)]
    >>> find_nearest_sum(torch.tensor([[12.9], [24.2]]), codes, slices)
    tensor([[0, 3],
            [1, 4]])
    """
    z, codes = at_least_float32(z.detach()), at_least_float32(codes.detach())
    if z.dtype != codes.dtype:
        z, codes = z.double(), codes.double()
    ends = [s.last for s in slices]
    if tracing() or in_func_transform():
        return _search(z, codes, ends)
    found: Tensor = _search_by_blocks(z, codes, ends)
    return found


@operator(
    "nearest_sum(Tensor z, Tensor codes, int[] ends) -> Tensor",
    lambda z, codes, ends: z.new_empty((z.shape[0], len(ends)), dtype=torch.int64),
)
def _search_by_blocks(z: Tensor, codes: Tensor, ends: Sequence[int]) -> Tensor:
    rows = max(_COPIED // (BEAM * BEAM * z.shape[1] if len(ends) > 2 else BEAM * z.shape[1]), 1)
    with torch.no_grad():
        return torch.cat([_search(some, codes, ends) for some in z.split(rows)])


def _search(z: Tensor, codes: Tensor, ends: Sequence[int]) -> Tensor:
    """Candidates (N, K, parts so far) and what they leave over (N, K, D), from slice to slice."""
    n, dim = z.shape
    over, chosen = z.unsqueeze(1), torch.zeros((n, 1, 0), dtype=torch.int64, device=z.device)
    first = 0
    for last in ends:
        own = codes[first:last]
        wanted = 1 if last == ends[-1] else min(BEAM, last - first)
        near = find_nearest(over.reshape(-1, dim), own, wanted)
        k = over.shape[1]
        left = (over.reshape(-1, 1, dim) - F.embedding(near, own)).view(n, k * wanted, dim)
        grown = torch.cat(
            [
                chosen.unsqueeze(2).expand(n, k, wanted, chosen.shape[2]).reshape(n, k * wanted, -1),
                (near + first).view(n, k * wanted, 1),
            ],
            dim=2,
        )
        kept = 1 if last == ends[-1] else min(BEAM, k * wanted)
        if kept < k * wanted:
            best = left.pow(2).sum(dim=2).topk(kept, dim=1, largest=False)[1]
            left = left.gather(1, best.unsqueeze(2).expand(n, kept, dim))
            grown = grown.gather(1, best.unsqueeze(2).expand(n, kept, grown.shape[2]))
        over, chosen, first = left, grown, last
    return chosen.squeeze(1)


def add_codes(codes: Tensor, indices: Tensor) -> Tensor:
    """(N, D): the sum of the codes at indices (N, parts), in the order of the parts."""
    return sum_up([F.embedding(own, codes) for own in indices.unbind(dim=1)])


def list_targets(z: Tensor, codes: Tensor, indices: Tensor) -> List[Tensor]:
    """What each part's code has to meet, (N, D) each: z, then z without the first code, and so on."""
    targets = [z]
    for own in indices.unbind(dim=1)[:-1]:
        targets.append(targets[-1] - F.embedding(own, codes).to(z.dtype))
    return targets


def sum_up(tensors: Sequence[Tensor]) -> Tensor:
    """The sum, always in the same order, so that it is the same to the last bit."""
    total = tensors[0]
    for more in tensors[1:]:
        total = total + more
    return total
