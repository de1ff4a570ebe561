"""Choosing codes for a map and counting the error, in as few passes over memory as there are.

On a CPU a training step's time outside of the products is the time of writing to fresh memory: the same operations one
by one, with autograd between them, take twice as many copies of the map.
"""

from typing import Any, Sequence, Tuple

import torch
from torch import Tensor

from vqct_plugin._torch import at_least_float32, batched_by_vmap
from vqct_plugin.lookup import find_nearest
from vqct_plugin.slices import Slice
from vqct_plugin.table import average_codes


class Quantize(torch.autograd.Function):
    """``z_q, error, error, indices`` of a map z and codes, with a straight-through gradient.

    The two errors are one number, the sum over the slices of ``mean((q - z)^2)``: the first has z's gradient, the
    second that of the codes. ``z_q`` is q to the last bit, and hands its gradient to z as it is. A NaN of z is one in
    the errors, and off the CPU, where no error can be raised at once, in z_q.

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
        rows = split_slices(z, p, channels_last)
        rows = torch.empty(rows.shape, dtype=at_least_float32(z).dtype, device=z.device).copy_(rows)
        q = torch.empty_like(rows)
        chosen = []
        for s, vectors, quantized in zip(slices, rows.view(p, -1, d), q.view(p, -1, d)):
            indices = find_nearest(vectors, codes[s.first : s.last], s.topk) + s.first
            if s.topk == 1 and codes.dtype == q.dtype:
                torch.index_select(codes, 0, indices[:, 0], out=quantized)
            else:
                quantized.copy_(average_codes(codes, indices))
            chosen.append(indices)
        difference = rows.sub_(q)
        # vector by vector first: one sum in float32 over all of them would lose digits
        squares = difference.view(p, -1, d).norm(dim=2).pow(2)
        error = squares.mean(dim=1).sum() / d
        if z.device.type != "cpu":
            q = torch.where(torch.isnan(difference), difference, q)
        z_q = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        split_slices(z_q, p, channels_last).copy_(q)
        indices = torch.cat(chosen, dim=1)
        if any(ctx.needs_input_grad[:2]):
            ctx.save_for_backward(z, codes, difference, indices)
            ctx.slices, ctx.channels_last = slices, channels_last
        ctx.mark_non_differentiable(indices)
        return z_q, error, error.clone(), indices

    @staticmethod
    def backward(ctx: Any, of_z_q: Tensor, of_commitment: Tensor, of_codebook: Tensor, _: Any) -> Tuple[Any, ...]:
        z, codes, difference, indices = ctx.saved_tensors
        if torch.is_grad_enabled() or batched_by_vmap(of_z_q):  # these gradients have gradients, or are many
            return _gradients(ctx, z, codes, indices, of_z_q, of_commitment, of_codebook)
        p, d = len(ctx.slices), codes.shape[1]
        scale = 2.0 * p / z.numel()
        of_z = of_codes = None
        if ctx.needs_input_grad[0]:
            of_z = torch.empty(z.shape, dtype=z.dtype, device=z.device)
            out = split_slices(of_z, p, ctx.channels_last)
            through = split_slices(of_z_q, p, ctx.channels_last)
            factor = (scale * of_commitment).to(difference.dtype)
            if of_z_q.dtype == z.dtype == difference.dtype:
                torch.addcmul(through, difference, factor, out=out)
            else:
                out.copy_(torch.addcmul(through.to(difference.dtype), difference, factor))
        if ctx.needs_input_grad[1]:
            owners, shares = list_shares(difference.view(p, -1, d), indices, ctx.slices)
            # an embedding's gradient: parallel on a CPU, and the same from run to run on a GPU
            sums = torch.ops.aten.embedding_dense_backward(shares, owners, len(codes), -1, False)
            of_codes = sums.mul_(-scale * of_codebook).to(codes.dtype)
        return of_z, of_codes, None, None


def _gradients(
    ctx: Any, z: Tensor, codes: Tensor, indices: Tensor, of_z_q: Tensor, of_commitment: Tensor, of_codebook: Tensor
) -> Tuple[Any, ...]:
    """The gradients by operations that have gradients of their own: for penalties of gradients, and for vmap."""
    p, d = len(ctx.slices), codes.shape[1]
    scale = 2.0 * p / z.numel()
    rows = at_least_float32(split_slices(z, p, ctx.channels_last))
    tokens = indices.split([s.topk for s in ctx.slices], dim=1)
    q = torch.stack([average_codes(codes, own) for own in tokens]).to(rows.dtype).view(rows.shape)
    of_rows = split_slices(of_z_q, p, ctx.channels_last) + scale * of_commitment * (rows - q.detach())
    of_z = of_rows.permute(1, 2, 0, 3) if ctx.channels_last else of_rows.permute(1, 0, 3, 2)
    owners, shares = list_shares((q - rows.detach()).reshape(p, -1, d), indices, ctx.slices)
    sums = torch.zeros_like(codes).index_add(0, owners, shares.to(codes.dtype))
    return of_z.reshape(z.shape).to(z.dtype), scale * of_codebook * sums, None, None


def split_slices(z: Tensor, p: int, channels_last: bool) -> Tensor:
    """A map as (p, B, L, D), a view of it where it is contiguous: for each of ``p`` slices of its channels, a vector
    for each position."""
    if channels_last:
        return z.reshape(z.shape[0], -1, p, z.shape[-1] // p).permute(2, 0, 1, 3)
    return z.reshape(z.shape[0], p, z.shape[1] // p, -1).permute(1, 0, 3, 2)


def list_shares(rows: Tensor, indices: Tensor, slices: Sequence[Slice]) -> Tuple[Tensor, Tensor]:
    """Indices (M,) of codes, and what each of these gets of the rows (p, N, D) that chose it, (M, D): one of k codes
    that were chosen together gets a k-th."""
    owners = torch.cat([own.reshape(-1) for own in indices.split([s.topk for s in slices], dim=1)])
    if all(s.topk == 1 for s in slices):
        return owners, rows.reshape(-1, rows.shape[2])
    shares = [(own / s.topk).repeat_interleave(s.topk, dim=0) for s, own in zip(slices, rows)]
    return owners, torch.cat(shares)
