"""The quantizer for zh460045050/VQGAN-LC, which reads its codebook as an ``nn.Embedding``.

All its arguments are those of :class:`vqct_plugin.CodebookTransferQuantizer`; only what it returns is as its host
reads it. In the host's ``quantizer_config`` it is the ``target``.
"""

from torch import Tensor

from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["VQGANLCQuantizer"]


class VQGANLCQuantizer(CodebookTransferQuantizer):
    """For zh460045050/VQGAN-LC, which puts its codebook into ``tok_embeddings``, an ``nn.Embedding``, and reads
    ``tok_embeddings.weight`` to decode what its GPT draws, one token per position."""

    @property
    def weight(self) -> Tensor:
        """The codebook (n_e, e_dim), as in an ``nn.Embedding``.

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
