"""The quantizer for bytedance/1d-tokenizer (TiTok and TA-TiTok), whose own returns a dictionary of losses.

All its arguments but one are those of :class:`vqct_plugin.CodebookTransferQuantizer`; what it returns is as its host
reads it. In the host's ``quantizer_config`` it is the ``target``.
"""

from typing import Any, Dict, Optional, Sequence

from torch import Tensor

from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["TiTokQuantizer"]


class TiTokQuantizer(CodebookTransferQuantizer):
    """For bytedance/1d-tokenizer: ``(z_q, {quantizer_loss, commitment_loss, codebook_loss, min_encoding_indices})``.

    ``quantizer_loss`` is the sum of the other two. ``beta`` weighs the commitment, as the host's ``commitment_cost``
    does: ``legacy`` has to be False, which is the default here. ``min_encoding_indices`` are (B, 1, N), and with T
    tokens per position (B, 1, T*N), per image all first tokens, then all second ones.

    Args:
        num_latent_tokens: N, the positions of an image; without it, flat indices can be decoded only where a position
            has one token.
    """

    def __init__(
        self,
        n_e: Any,
        e_dim: int,
        beta: float = 0.25,
        *,
        legacy: bool = False,
        num_latent_tokens: Optional[int] = None,
        **options: Any,
    ) -> None:
        if legacy:
            raise ValueError("legacy is true; TiTok weighs the commitment by beta, expected legacy: false")
        super().__init__(n_e, e_dim, beta, legacy=False, **options)
        self.num_latent_tokens = num_latent_tokens

    def forward(self, z: Tensor) -> Any:
        z_q, commitment, codebook, more, chosen = self._quantize_map(z)
        commitment = self.beta * commitment
        codebook = codebook if more is None else codebook + more
        losses: Dict[str, Tensor] = {
            "quantizer_loss": commitment + codebook,
            "commitment_loss": commitment,
            "codebook_loss": codebook,
            "min_encoding_indices": self._arrange_indices(chosen, z).reshape(z.shape[0], 1, -1),
        }
        return z_q.float(), losses

    def get_codebook_entry(
        self, indices: Tensor, shape: Optional[Sequence[int]] = None, channel_first: bool = False
    ) -> Tensor:
        """As the parent's. Flat indices without a shape, as the host has them, give the rows (B*N, C)."""
        if shape is not None or indices.dim() != 1:
            return super().get_codebook_entry(indices, shape, channel_first)
        if self.tokens_per_position == 1:
            return super().get_codebook_entry(indices)
        if self.num_latent_tokens is None:
            raise ValueError(
                f"a position has {self.tokens_per_position} tokens, and flat indices do not say how many positions an "
                "image has; build the quantizer with num_latent_tokens, or pass shape=(B, 1, N, C)"
            )
        per_image = self.tokens_per_position * self.num_latent_tokens
        if indices.numel() % per_image:
            raise ValueError(
                f"{indices.numel()} indices; expected a multiple of {per_image}, {self.tokens_per_position} tokens at "
                f"each of {self.num_latent_tokens} positions of an image"
            )
        return super().get_codebook_entry(indices.reshape(-1, per_image)).reshape(-1, self.e_dim)
