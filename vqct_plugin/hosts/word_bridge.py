"""Words behind vector-quantize-pytorch's own modules: its ``vq_bridge=``, and ``codebook_transform=`` of its SimVQ.

Neither imports that package. Source: lucidrains/vector-quantize-pytorch 1.32 (MIT), ``Codebook.forward`` and
``sim_vq.py``; of the codes: Zhang et al., CVPR 2024.
"""

from typing import Any, List, Sequence, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin.averages import AveragesTransfer
from vqct_plugin.codebook import PriorLike, TransferredCodebook
from vqct_plugin.transfer import TransferLike

__all__ = ["WordBridge", "WordTransform", "write_codes"]


class _Words(TransferredCodebook):
    """One codebook over the words, by a transfer with a gradient."""

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        prior: PriorLike,
        parts_of_speech: Union[str, Sequence[str]],
        transfer: TransferLike,
        dropout: float,
        edge_weight: str,
    ) -> None:
        super().__init__(
            codebook_size,
            dim,
            prior=prior,
            parts_of_speech=parts_of_speech,
            topk=1,
            transfer=transfer,
            dropout=dropout,
            edge_weight=edge_weight,
            sane_index_shape=True,
        )
        if len(self.slices) != 1:
            raise ValueError(
                f"parts_of_speech is {parts_of_speech!r}; here a position has one code: expected 'joint', or one part"
            )
        if isinstance(self.transfer, AveragesTransfer):
            raise ValueError(
                "averages are moved by the vectors that chose them, which a bridge does not see; take another "
                "transfer, or vqct_plugin.hosts.vector_quantize.VectorQuantize"
            )

    def codes(self) -> Tensor:
        """(n, D), with dropout while training."""
        return self._codes_in_use()


class WordBridge(nn.Module):
    """``vq_bridge=`` of vector-quantize-pytorch's modules: the codes come from words.

    The table that comes in has no say: what is learned is the transfer. ``VectorQuantize`` and ``ResidualVQ`` take it
    with ``learnable_codebook=True, ema_update=False``; multi-head, projections, cross-entropy and quantizer dropout
    then are over words. Their ``codebook`` and ``get_output_from_indices`` read the table without its bridge: call
    :func:`write_codes` after training.

    Args:
        codebook_size: the number of codes, the most frequent words.
        dim: the channels of a code, there ``codebook_dim``.
        num_codebooks: the heads, where ``separate_codebook_per_head``; each has a transfer of its own.
        prior, parts_of_speech, transfer, dropout, edge_weight: as for :class:`vqct_plugin.CodebookTransferQuantizer`;
            one part or ``"joint"``, and a transfer that learns by gradient.

    Shapes: (num_codebooks, n, dim) in and out.

    >>> bridge = WordBridge(512, 64)
    >>> bridge(torch.zeros(1, 512, 64)).shape
    torch.Size([1, 512, 64])
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        num_codebooks: int = 1,
        *,
        prior: PriorLike = "default",
        parts_of_speech: Union[str, Sequence[str]] = "joint",
        transfer: TransferLike = "graph",
        dropout: float = 0.5,
        edge_weight: str = "count",
    ) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(
            _Words(codebook_size, dim, prior, parts_of_speech, transfer, dropout, edge_weight)
            for _ in range(num_codebooks)
        )

    @property
    def words(self) -> List[str]:
        """The word of each code."""
        first: Any = self.codebooks[0]
        return list(first.words)

    def forward(self, embed: Tensor) -> Tensor:
        codebooks: Any = self.codebooks
        codes = torch.stack([own.codes() for own in codebooks])
        if codes.shape != embed.shape:
            raise ValueError(
                f"the table to bridge has shape {tuple(embed.shape)}, and this bridge makes {tuple(codes.shape)}; "
                "build it with the module's codebook_size, its codebook_dim, and num_codebooks=heads where each has "
                "its own"
            )
        return codes.to(embed.dtype) + 0 * embed  # so that the table has a gradient, which is 0: DDP asks for one


class WordTransform(_Words):
    """``codebook_transform=`` of vector-quantize-pytorch's ``SimVQ``: the codes come from words.

    SimVQ passes its frozen codebook through the transform, once as a whole and once those rows that indices name. So
    the frozen codebook here only says which code a row is, in binary digits, and the transform knows the rest::

        words = WordTransform(1024, 64)
        SimVQ(64, 1024, codebook_transform=words, init_fn=words.number_rows, frozen_codebook_dim=words.digits)

    While training, ``indices_to_codes`` there has another dropout mask than the forward pass had.

    Args:
        codebook_size, dim, prior, parts_of_speech, transfer, dropout, edge_weight: as for :class:`WordBridge`.

    Shapes: (..., digits) to (..., dim).

    >>> words = WordTransform(512, 64)
    >>> words(words.number_rows(torch.randn(512, words.digits))).shape
    torch.Size([512, 64])
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        prior: PriorLike = "default",
        parts_of_speech: Union[str, Sequence[str]] = "joint",
        transfer: TransferLike = "graph",
        dropout: float = 0.5,
        edge_weight: str = "count",
    ) -> None:
        super().__init__(codebook_size, dim, prior, parts_of_speech, transfer, dropout, edge_weight)
        self.digits = max(1, (self.n_e - 1).bit_length())

    def number_rows(self, codebook: Tensor) -> Tensor:
        """``init_fn=``: which code each row of a frozen codebook (n, digits) is; 0 and 1, exact in any precision."""
        if tuple(codebook.shape) != (self.n_e, self.digits):
            raise ValueError(
                f"the frozen codebook has shape {tuple(codebook.shape)}; expected codebook_size={self.n_e} and "
                f"frozen_codebook_dim={self.digits}"
            )
        rows = torch.arange(self.n_e, device=codebook.device).unsqueeze(1)
        return (rows // self._powers(rows) % 2).to(codebook.dtype)

    def forward(self, rows: Tensor) -> Tensor:
        if rows.shape[-1] != self.digits:
            raise ValueError(
                f"the rows have shape {tuple(rows.shape)}; expected (..., {self.digits}): build SimVQ with "
                f"frozen_codebook_dim={self.digits} and init_fn=number_rows"
            )
        digits = rows.round().long()
        return F.embedding((digits * self._powers(digits)).sum(dim=-1), self.codes())

    def _powers(self, like: Tensor) -> Tensor:
        return 2 ** torch.arange(self.digits, device=like.device)


@torch.no_grad()
def write_codes(module: nn.Module) -> int:
    """Write the codes of every :class:`WordBridge` in a module into the table that it bridges, and take it away.

    What remains is vector-quantize-pytorch's alone: its ``codebook``, ``get_codes_from_indices`` and
    ``get_output_from_indices``, which read the table, are right, and no words are needed. For after training.

    Args:
        module: a ``VectorQuantize`` or ``ResidualVQ`` of vector-quantize-pytorch, or a model that has some.

    Returns:
        How many codebooks were written.

    Raises:
        ValueError: there is none.
    """
    written = 0
    codebooks: List[Any] = list(module.modules())
    for codebook in codebooks:
        bridge = getattr(codebook, "vq_bridge", None)
        if isinstance(bridge, WordBridge):
            training = bridge.training
            codebook.embed.copy_(bridge.eval()(codebook.embed))
            bridge.train(training)  # another codebook may have the same
            codebook.vq_bridge = None
            written += 1
    if not written:
        raise ValueError("the module has no codebook with a WordBridge as its vq_bridge; was it written already?")
    return written
