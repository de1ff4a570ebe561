"""Drawing the tokens of an image from a stage 2, taming's own or ours, with a key-value cache."""

from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin.compat.filtering import filter_logits
from vqct_plugin.stage_2.layout import get_layout

__all__ = ["sample_tokens"]


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
    give others. Keys and values of earlier elements are kept, so that each step computes only the next one.

    Args:
        model: a stage 2; its transformer's dropout is off meanwhile.
        c: (B, C) conditioning tokens, as ``model.encode_to_c`` gives them.
        positions: how many an image has, H * W of the first stage's map.
        temperature: logits are divided by it; below 1, likely codes become likelier.
        top_k: draw among the k likeliest codes.
        top_p: draw among the likeliest codes that together have this probability, at least one.
        generator: of the random numbers, on the device of c; or one for each image, which then does not depend on
            the others.
        callback: called with the number of each step.
        draw: False takes the likeliest code, whatever the other arguments are.
        start: (B, T, k) tokens of the first k positions, which are kept; for a model of ours only.

    Returns:
        (B, T, positions), in the order of the model's sequence.
    """
    check_request(model, c.shape[1], positions, temperature, top_k, top_p)

    def pick(logits: Tensor) -> Tensor:
        """(B,) places in the last dimension of logits (B, n)."""
        if not draw:
            return logits.argmax(dim=-1)
        probabilities = F.softmax(filter_logits(logits.float() / temperature, top_k, top_p), dim=-1)
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
        return get_layout(model).draw(c, positions, pick, callback, start)


def check_request(
    model: Any,
    conditioning: int,
    positions: int,
    temperature: float = 1.0,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
) -> None:
    """Raise a ValueError for what :func:`sample_tokens` cannot draw; ``conditioning`` is how many tokens c has."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; expected a positive number")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k is {top_k!r}; expected an integer of 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p!r}; expected more than 0 and at most 1")
    tokens = get_layout(model).count_elements(positions)
    length, block_size = conditioning + tokens - 1, model.transformer.get_block_size()
    if length > block_size:
        raise ValueError(
            f"{conditioning} conditioning tokens and {tokens} to draw make a sequence of {length}, and the "
            f"transformer's block_size is {block_size}; give the size of the map that it was trained on"
        )


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    mode = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(mode)
