"""Choosing codes for a map and counting the error, in as few passes over memory as there are.

On a CPU a training step's time outside of the products is the time of writing to fresh memory: the same operations one
by one, with autograd between them, take twice as many copies of the map.
"""

from typing import Any, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqct_plugin._torch import at_least_float32
from vqct_plugin.lookup import nearest
from vqct_plugin.slices import Slice
from vqct_plugin.table import mean_of


class Quantize(torch.autograd.Function):
    """``z_q, error, error, indices`` of a map z and codes, with a straight-through gradient.

    The two errors are one number, the sum over the slices of ``mean((q - z)^2)``: the first has z's gradient, the
    second that of the codes. ``z_q`` is q to the last bit, and hands its gradient to z as it is. It cannot be
    differentiated twice.

    Args of ``apply``:
        z: (B, C, ...), or (B, ..., C) with ``channels_last``; floating point.
        codes: (n, D) float32 or float64, C being D for each slice.
        slices: the slices of the channels.
        channels_last: see z.

    Returns:
        z_q like z and contiguous, two 0-d tensors, indices (N, T) int64.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, codes: Tensor, slices: Sequence[Slice], channels_last: bool
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        p, d = len(slices), codes.shape[1]
        rows = _by_slices(z, p, channels_last)
        rows = torch.empty(rows.shape, dtype=at_least_float32(z).dtype, device=z.device).copy_(rows)
        q = torch.empty_like(rows)
        chosen = []
        for s, vectors, quantized in zip(slices, rows.view(p, -1, d), q.view(p, -1, d)):
            indices = nearest(vectors, codes[s.first : s.last], s.topk) + s.first
            if s.topk == 1 and codes.dtype == q.dtype:
                torch.index_select(codes, 0, indices[:, 0], out=quantized)
            else:
                quantized.copy_(mean_of(codes, indices))
            chosen.append(indices)
        difference = rows.sub_(q)
        # vector by vector first: one sum in float32 over all of them would lose digits
        squares = difference.view(p, -1, d).norm(dim=2).pow(2)
        error = squares.mean(dim=1).sum() / d
        z_q = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        _by_slices(z_q, p, channels_last).copy_(q)
        indices = torch.cat(chosen, dim=1)
        if any(ctx.needs_input_grad[:2]):
            ctx.save_for_backward(difference, indices)
            ctx.slices, ctx.channels_last, ctx.codes_like = slices, channels_last, codes.new_empty(0)
            ctx.n, ctx.dtype = len(codes), z.dtype
        ctx.mark_non_differentiable(indices)
        return z_q, error, error.clone(), indices

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, of_z_q: Tensor, of_commitment: Tensor, of_codebook: Tensor, _: Any) -> Tuple[Any, ...]:
        difference, indices = ctx.saved_tensors
        p, d = len(ctx.slices), difference.shape[-1]
        scale = 2.0 / (difference.numel() / p)
        of_z = of_codes = None
        if ctx.needs_input_grad[0]:
            of_z = torch.empty(of_z_q.shape, dtype=ctx.dtype, device=of_z_q.device)
            through = _by_slices(of_z_q, p, ctx.channels_last)
            factor = (scale * of_commitment).to(difference.dtype)
            if of_z_q.dtype == difference.dtype:
                torch.addcmul(through, difference, factor, out=_by_slices(of_z, p, ctx.channels_last))
            else:
                _by_slices(of_z, p, ctx.channels_last).copy_(
                    torch.addcmul(through.to(difference.dtype), difference, factor)
                )
        if ctx.needs_input_grad[1]:
            of_codes = _sums_by_code(difference.view(p, -1, d), indices, ctx.slices, ctx.n)
            of_codes = of_codes.mul_(-scale * of_codebook).to(ctx.codes_like.dtype)
        return of_z, of_codes, None, None


def _by_slices(z: Tensor, p: int, channels_last: bool) -> Tensor:
    """A map as a view (p, B, L, D): for each of ``p`` slices of its channels, a vector for each position."""
    if channels_last:
        return z.view(z.shape[0], -1, p, z.shape[-1] // p).permute(2, 0, 1, 3)
    return z.view(z.shape[0], p, z.shape[1] // p, -1).permute(1, 0, 3, 2)


def _sums_by_code(rows: Tensor, indices: Tensor, slices: Sequence[Slice], n: int) -> Tensor:
    """(n, D): for each code the sum of the rows (p, N, D) that chose it; one of k that chose together gets a k-th."""
    shares, owners, first = [], [], 0
    for s, own in zip(slices, rows):
        shares.append(own if s.topk == 1 else (own / s.topk).repeat_interleave(s.topk, dim=0))
        owners.append(indices[:, first : first + s.topk].reshape(-1))
        first += s.topk
    every = rows.reshape(-1, rows.shape[2]) if all(s.topk == 1 for s in slices) else torch.cat(shares)
    # an embedding's gradient: parallel on a CPU, and the same from run to run on a GPU
    sums: Tensor = torch.ops.aten.embedding_dense_backward(every, torch.cat(owners), n, -1, False)
    return sums
