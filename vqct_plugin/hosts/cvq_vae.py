"""The quantizer for lyndonzheng/CVQ-VAE, whose own returns one-hot encodings.

All its arguments are those of :class:`vqct_plugin.CodebookTransferQuantizer`; only what it returns is as its host
reads it. In the host's ``quantizer_config`` it is the ``target``.
"""

from typing import Any

import torch
from torch import Tensor

from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["CVQQuantizer"]


class CVQQuantizer(CodebookTransferQuantizer):
    """For lyndonzheng/CVQ-VAE: ``(z_q, loss, (perplexity, encodings, indices))``.

    ``perplexity`` is that of the batch's tokens, a 0-d tensor; ``encodings`` are one-hot, (B*T*H*W, n_e) float32, a row
    for each index: large for a large codebook, since CVQ-VAE asks for them at every step. ``legacy`` is False where it
    is not given, so that ``beta``, the host's ``commitment_cost``, weighs the commitment as with its own quantizer.
    """

    def __init__(self, n_e: Any, e_dim: int, beta: float = 0.25, *, legacy: bool = False, **options: Any) -> None:
        super().__init__(n_e, e_dim, beta, legacy=legacy, **options)

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        z_q, loss, (_, _, indices) = super().forward(z, *args, **kwargs)
        encodings = torch.nn.functional.one_hot(indices.reshape(-1), self.n_e).float()
        frequency = encodings.mean(dim=0)  # no step waits for a device: neither bincount nor a mask
        perplexity = torch.exp(-(frequency * frequency.clamp(min=1e-30).log()).sum())
        return z_q, loss, (perplexity, encodings, indices)
