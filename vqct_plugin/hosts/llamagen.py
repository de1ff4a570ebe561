"""The quantizer for FoundationVision/LlamaGen, whose own returns four losses.

All its arguments are those of :class:`vqct_plugin.CodebookTransferQuantizer`; only what it returns is as its host
reads it. In the host's ``quantizer_config`` it is the ``target``.
"""

from typing import Any, Optional, Sequence

import torch
from torch import Tensor

from vqct_plugin._torch import is_fake
from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["LlamaGenQuantizer"]


class LlamaGenQuantizer(CodebookTransferQuantizer):
    """For FoundationVision/LlamaGen: four losses, and maps' shapes with the channels first.

    ``forward`` gives ``(z_q, (codebook loss, beta * commitment loss, 0, usage), (None, None, indices))``, usage being
    the share of the codes among the last 65,536 tokens of this process, as LlamaGen prints it. Its ``VQLoss`` adds the
    first three up: ``legacy`` has to be False, which is LlamaGen's way and the default here. LlamaGen's GPT draws one
    token per position; for it, train with ``parts_of_speech: joint``.
    """

    recent: Tensor

    def __init__(self, n_e: Any, e_dim: int, beta: float = 0.25, *, legacy: bool = False, **options: Any) -> None:
        if legacy:
            raise ValueError("legacy is true; LlamaGen weighs the commitment by beta, expected legacy: false")
        super().__init__(n_e, e_dim, beta, legacy=False, **options)
        # a plain tensor: not in checkpoints, so that they do not depend on when they were written, and in no average
        self.recent = torch.full((65_536,), -1, device="cpu")

    def forward(self, z: Tensor) -> Any:
        z_q, commitment, codebook, more, chosen = self._quantize_map(z)
        codebook = codebook if more is None else codebook + more  # the host adds its terms up
        indices = self._arrange_indices(chosen, z)
        zero = torch.zeros_like(commitment)
        return z_q, (codebook, self.beta * commitment, zero, self._usage(indices)), (None, None, indices)

    def get_codebook_entry(
        self, indices: Tensor, shape: Optional[Sequence[int]] = None, channel_first: bool = True
    ) -> Tensor:
        """As the parent's, ``shape`` being (B, C, H, W) unless ``channel_first`` is false."""
        return super().get_codebook_entry(indices, shape, channel_first)

    @torch.no_grad()
    def _usage(self, indices: Tensor) -> Any:
        """0-d, on the device: LlamaGen reads it when it prints, and no step waits for it."""
        if not self.training or is_fake(indices):
            return 0
        recent = self.recent.to(indices.device)
        new = indices.reshape(-1)[-len(recent) :]
        self.recent = torch.cat([recent, new])[-len(recent) :]
        used = torch.zeros(self.n_e + 1, device=indices.device)  # the first place is for tokens that are not there yet
        return used.index_fill_(0, self.recent + 1, 1.0)[1:].sum() / self.n_e
