"""The quantizer for hosts whose own returns something else than taming's ``VectorQuantizer2``.

Each class is :class:`vqct_plugin.CodebookTransferQuantizer` with all its arguments; only what it returns is put as
its host reads it. In a host's ``quantizer_config`` they are the ``target``.
"""

from typing import Any, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["CVQQuantizer", "LlamaGenQuantizer", "SimVQQuantizer", "VQGANLCQuantizer"]


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
        # not in checkpoints, so that they do not depend on when they were written
        self.register_buffer("recent", torch.full((65_536,), -1), persistent=False)

    def forward(self, z: Tensor) -> Any:  # type: ignore[override]
        z_q, commitment, codebook, chosen = self._quantized(z)
        b, _, h, w = z.shape
        indices = self._laid_out(chosen, b, h, w)
        zero = torch.zeros_like(commitment)
        return z_q, (codebook, self.beta * commitment, zero, self._usage(indices)), (None, None, indices)

    def get_codebook_entry(
        self, indices: Tensor, shape: Optional[Sequence[int]] = None, channel_first: bool = True
    ) -> Tensor:
        """As the parent's, ``shape`` being (B, C, H, W) unless ``channel_first`` is false."""
        return super().get_codebook_entry(indices, shape, channel_first)

    @torch.no_grad()
    def _usage(self, indices: Tensor) -> float:
        if not self.training:
            return 0
        new = indices.reshape(-1)[-len(self.recent) :]
        self.recent.copy_(torch.cat([self.recent, new])[-len(self.recent) :])
        return len(torch.unique(self.recent[self.recent >= 0])) / self.n_e


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


class CVQQuantizer(CodebookTransferQuantizer):
    """For lyndonzheng/CVQ-VAE: ``(z_q, loss, (perplexity, encodings, indices))``.

    ``perplexity`` is that of the batch's tokens, a 0-d tensor; ``encodings`` are one-hot, (B*T*H*W, n_e) float32, a row
    for each index: large for a large codebook, since CVQ-VAE asks for them at every step.
    """

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        z_q, loss, (_, _, indices) = super().forward(z, *args, **kwargs)
        flat = indices.reshape(-1)
        counts = torch.bincount(flat, minlength=self.n_e)
        frequency = counts[counts > 0].float() / flat.numel()
        perplexity = torch.exp(-(frequency * frequency.log()).sum())
        return z_q, loss, (perplexity, torch.nn.functional.one_hot(flat, self.n_e).float(), indices)


class VQGANLCQuantizer(CodebookTransferQuantizer):
    """For zh460045050/VQGAN-LC, which puts its codebook into ``tok_embeddings``, an ``nn.Embedding``, and reads
    ``tok_embeddings.weight`` to decode what its GPT draws, one token per position."""

    @property
    def weight(self) -> Tensor:
        """The codebook (n_e, e_dim), as of an ``nn.Embedding``.

        Raises:
            ValueError: with several tokens per position no single row is a position's vector.
        """
        if self.tokens_per_position != 1:
            raise ValueError(
                f"a position has {self.tokens_per_position} tokens, and VQGAN-LC's GPT decodes one row of the codebook "
                "for each; train the first stage with parts_of_speech: joint and topk: 1, or use "
                "get_codebook_entry(indices, shape)"
            )
        return self.embedding.weight
