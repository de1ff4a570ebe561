"""Drawing the tokens of an image from a stage 2, taming's own or ours, with a key-value cache."""

from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin.hosts._filtering import filtered
from vqct_plugin.hosts._stage_2 import Net2NetTransformer, Token, tokens_of


@torch.no_grad()
def sample_tokens(
    model: Any,
    c: Tensor,
    positions: int,
    temperature: float = 1.0,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
    *,
    generator: Union[torch.Generator, Sequence[torch.Generator], None] = None,
    callback: Callable[[int], Any] = lambda k: None,
    draw: bool = True,
    start: Optional[Tensor] = None,
) -> Tensor:
    """Draw all tokens of some images.

    Each token is drawn among the codes of its part only; taming's own transformer, over the joint vocabulary, could
    give others. Keys and values of what is behind are kept, so that each step is one position long.

    Args:
        model: a stage 2; its transformer's dropout is off meanwhile.
        c: (B, C) conditioning tokens, as ``model.encode_to_c`` gives them.
        positions: how many an image has, H * W of the first stage's map.
        temperature: logits are divided by it; smaller is surer.
        top_k: draw among the k likeliest codes.
        top_p: draw among the likeliest codes that together have this probability, at least one.
        generator: of the random numbers, on the device of c; or one for each image, which then does not depend on
            the others.
        callback: called with the number of each step.
        draw: False takes the likeliest code, whatever the rest says.
        start: (B, T, k) tokens of the first k positions, which are kept; for a model of ours only.

    Returns:
        (B, T, positions), in the order of the model's sequence.
    """
    check_request(model, c.shape[1], positions, temperature, top_k, top_p)

    def pick(logits: Tensor) -> Tensor:
        """(B,) places in the last dimension of logits (B, n)."""
        if not draw:
            return logits.argmax(dim=-1)
        probabilities = F.softmax(filtered(logits.float() / temperature, top_k, top_p), dim=-1)
        # the first code at which the probabilities so far exceed a random number: one number for a row
        so_far = probabilities.double().cumsum(dim=-1)
        return (so_far <= uniform(len(logits)) * so_far[:, -1:]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)

    def uniform(rows: int) -> Tensor:
        if isinstance(generator, (list, tuple)):
            each = [torch.rand(1, 1, generator=g, device=c.device, dtype=torch.float64) for g in generator]
            return torch.cat(each)
        one: Any = generator
        return torch.rand(rows, 1, generator=one, device=c.device, dtype=torch.float64)

    with _evaluating(model.transformer):
        if isinstance(model, Net2NetTransformer):
            return _sample_positions(model.transformer, c, positions, pick, callback, start)
        return _sample_sequence(model, c, positions, pick, callback)


def check_request(
    model: Any,
    conditioning: int,
    positions: int,
    temperature: float = 1.0,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
) -> None:
    """Refuse, by a ValueError, what :func:`sample_tokens` cannot draw; ``conditioning`` is how many tokens c has."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; expected a positive number")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k is {top_k!r}; expected an integer of 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p!r}; expected more than 0 and at most 1")
    ours = isinstance(model, Net2NetTransformer)
    tokens = positions if ours else positions * len(tokens_of(model.first_stage_model.quantize))
    length, block_size = conditioning + tokens - 1, model.transformer.get_block_size()
    if length > block_size:
        raise ValueError(
            f"{conditioning} conditioning tokens and {tokens} to draw make a sequence of {length}, and the "
            f"transformer's block_size is {block_size}; give the size of the map that it was trained on"
        )


def _sample_positions(
    transformer: Any, c: Tensor, positions: int, pick: Any, callback: Any, start: Optional[Tensor]
) -> Tensor:
    known = 0 if start is None else start.shape[2]
    x = transformer.cond_emb(c)
    drawn: List[Tensor] = []
    if start is not None and known:
        drawn = list(start.unbind(dim=2))
        x = torch.cat([x, transformer.embedded(start)], dim=1)
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
        x = transformer.embedded(drawn[-1].unsqueeze(2))
    return torch.stack(drawn, dim=2)


def _sample_sequence(model: Any, c: Tensor, positions: int, pick: Any, callback: Any) -> Tensor:
    """taming's own transformer: one sequence, all positions of the first token and then of the next."""
    transformer, tokens = model.transformer, tokens_of(model.first_stage_model.quantize)
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


class CachedBlocks:
    """Runs minGPT's blocks over the next elements of a sequence, and keeps the keys and values of those behind."""

    def __init__(self, blocks: Any, batch: int, length: int) -> None:
        self.blocks = list(blocks)
        self.batch, self.capacity, self.length = batch, length, 0
        self._keys: List[Tensor] = []
        self._values: List[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, t, C), the elements after those seen so far, through all blocks."""
        begin, end = self.length, self.length + x.shape[1]
        for i, block in enumerate(self.blocks):
            attention = block.attn
            h = block.ln1(x)
            query, key, value = (
                layer(h).view(self.batch, x.shape[1], attention.n_head, -1).transpose(1, 2)
                for layer in (attention.query, attention.key, attention.value)
            )
            if len(self._keys) == i:
                shape = (*key.shape[:2], self.capacity, key.shape[3])
                self._keys.append(key.new_empty(shape))
                self._values.append(value.new_empty(shape))
            self._keys[i][:, :, begin:end] = key
            self._values[i][:, :, begin:end] = value
            scores = query @ self._keys[i][:, :, :end].transpose(-2, -1) * key.shape[-1] ** -0.5
            if x.shape[1] > 1:  # a single new element sees all before it
                scores = scores.masked_fill(attention.mask[:, :, begin:end, :end] == 0, float("-inf"))
            attended = F.softmax(scores, dim=-1) @ self._values[i][:, :, :end]
            x = x + attention.proj(attended.transpose(1, 2).reshape(*x.shape))
            x = x + block.mlp(block.ln2(x))
        self.length = end
        return x


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    mode = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(mode)
