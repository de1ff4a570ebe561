"""How a stage 2 lays out an image's tokens: the one interface that taming's transformer and ours have.

Code that draws from a stage 2 needs its layout and nothing else of it. A stage 2 with a layout of its own has it as
``model.layout``; one without is taken for taming's.
"""

from abc import ABC, abstractmethod
from typing import Any, Callable, List, Optional

import torch
from torch import Tensor

from vqct_plugin.compat.taming_stage_2 import check_stage_2
from vqct_plugin.stage_2.cache import CachedBlocks
from vqct_plugin.stage_2.tokens import Token, interleave, list_tokens

#: from logits (B, n) to the place (B,) of the code that is drawn
Pick = Callable[[Tensor], Tensor]


class Layout(ABC):
    """How the T tokens of each of L positions stand in the sequence of a transformer."""

    @abstractmethod
    def count_elements(self, positions: int) -> int:
        """How many elements of the sequence, and so steps of drawing, these positions are."""

    @abstractmethod
    def draw(
        self, c: Tensor, positions: int, pick: Pick, callback: Callable[[int], Any], start: Optional[Tensor] = None
    ) -> Tensor:
        """(B, T, positions) tokens after the conditioning c (B, C), element by element.

        Args:
            c: the conditioning tokens.
            positions: how many an image has.
            pick: draws from the logits of the codes that a token may be.
            callback: called with the number of each step.
            start: (B, T, k) tokens of the first k positions, which are kept.
        """

    @abstractmethod
    def join(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, L) as the sequence (B, T*L) that the model's ``decode_to_img`` takes."""

    @abstractmethod
    def check(self) -> None:
        """Raise a ValueError for a model that would leave out tokens."""


def get_layout(model: Any) -> Layout:
    """The layout of a stage 2, taming's own or ours."""
    layout: Optional[Layout] = getattr(model, "layout", None)
    return JointLayout(model) if layout is None else layout


class PositionLayout(Layout):
    """Ours: a position is one element of the sequence, and each of its tokens has a head (:class:`PartsGPT`)."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    def count_elements(self, positions: int) -> int:
        return positions

    def draw(
        self, c: Tensor, positions: int, pick: Pick, callback: Callable[[int], Any], start: Optional[Tensor] = None
    ) -> Tensor:
        transformer = self.transformer
        known = 0 if start is None else start.shape[2]
        x = transformer.cond_emb(c)
        drawn: List[Tensor] = []
        if start is not None and known:
            drawn = list(start.unbind(dim=2))
            x = torch.cat([x, transformer.embed(start)], dim=1)
        cache = CachedBlocks(transformer.blocks, c.shape[0], c.shape[1] + positions)
        for k in range(known, positions):
            callback(k)
            past = cache.length
            h = transformer.ln_f(cache(x + transformer.pos_emb[:, past : past + x.shape[1]])[:, -1:])
            tokens: List[Tensor] = []
            for t, token in enumerate(transformer.tokens):
                previous = torch.stack(tokens, dim=1).unsqueeze(2) if tokens else c.new_empty((c.shape[0], 0, 1))
                tokens.append(pick(transformer.logits(h, previous, t)[:, 0]) + token.first)
            drawn.append(torch.stack(tokens, dim=1))
            x = transformer.embed(drawn[-1].unsqueeze(2))
        return torch.stack(drawn, dim=2)

    def join(self, tokens: Tensor) -> Tensor:
        return interleave(tokens)

    def check(self) -> None:
        return None


class JointLayout(Layout):
    """taming's: every token is an element, all positions of the first token and then of the next, in one vocabulary."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def tokens(self) -> List[Token]:
        """The tokens of a position."""
        return list_tokens(self.model.first_stage_model.quantize)

    def count_elements(self, positions: int) -> int:
        return positions * len(self.tokens)

    def draw(
        self, c: Tensor, positions: int, pick: Pick, callback: Callable[[int], Any], start: Optional[Tensor] = None
    ) -> Tensor:
        transformer, tokens = self.model.transformer, self.tokens
        length = len(tokens) * positions
        cache = CachedBlocks(transformer.blocks, c.shape[0], c.shape[1] + length)
        x, drawn = c, []
        for k in range(length):
            callback(k)
            token: Token = tokens[k // positions]
            past = cache.length
            h = cache(transformer.tok_emb(x) + transformer.pos_emb[:, past : past + x.shape[1]])[:, -1:]
            logits = transformer.head(transformer.ln_f(h))[:, 0, token.first : token.last]
            drawn.append(pick(logits) + token.first)
            x = drawn[-1].unsqueeze(1)
        return torch.stack(drawn, dim=1).reshape(c.shape[0], len(tokens), positions)

    def join(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(len(tokens), -1)

    def check(self) -> None:
        check_stage_2(self.model)
