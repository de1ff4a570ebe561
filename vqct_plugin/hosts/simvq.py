"""The quantizer for youngsheen/SimVQ, whose own returns its losses apart.

All its arguments are those of :class:`vqct_plugin.CodebookTransferQuantizer`; only what it returns is as its host
reads it. In the host's ``quantconfig`` it is the ``target``.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["SimVQQuantizer"]


class LossBreakdown(NamedTuple):
    """What SimVQ's loss reads, 0-d tensors; VQCT has no entropies."""

    per_sample_entropy: Tensor
    codebook_entropy: Tensor
    commitment: Tensor
    avg_probs: Tensor


class SimVQQuantizer(CodebookTransferQuantizer):
    """For youngsheen/SimVQ's ``quantconfig``: ``((z_q, 0, indices), LossBreakdown)``.

    The whole loss of VQCT is the breakdown's ``commitment``, where SimVQ has its own.
    """

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        z_q, loss, (_, _, indices) = super().forward(z, *args, **kwargs)
        zero = torch.zeros_like(loss)
        return (z_q, zero, indices), LossBreakdown(zero, zero, loss, zero)
