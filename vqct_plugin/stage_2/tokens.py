"""The tokens of a position, and the two orders in which they stand: (B, T, L), and one sequence (B, L*T)."""

from typing import Any, List, NamedTuple

from torch import Tensor


class Token(NamedTuple):
    """One of a position's tokens: its part's name, and the codes [first, last) that it may be."""

    name: str
    first: int
    last: int


def list_tokens(quantizer: Any) -> List[Token]:
    """The tokens of a position, in their order: one for a stock quantizer, topk for each part of ours."""
    slices = getattr(quantizer, "slices", None)
    if slices is None:
        n_e = getattr(quantizer, "n_e", None) or quantizer.n_embed
        return [Token("code", 0, int(n_e))]
    return [Token(s.name, s.first, s.last) for s in slices for _ in range(s.topk)]


def interleave(planar: Tensor) -> Tensor:
    """(B, T, L) to (B, L*T), all tokens of a position one after the other."""
    return planar.transpose(1, 2).reshape(planar.shape[0], -1)


def separate(sequence: Tensor, t: int) -> Tensor:
    """(B, L*T) to (B, T, L), the inverse of :func:`interleave` for T = t."""
    return sequence.reshape(sequence.shape[0], -1, t).transpose(1, 2).contiguous()
