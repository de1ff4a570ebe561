"""taming's own sampler over a first stage with several parts of speech: each token is drawn from its part.

``taming.models.cond_transformer.Net2NetTransformer.sample`` draws any code for any token, and knows nothing of parts.
Where an image's sequence is all its adjectives and then all its nouns, it would draw nouns for adjectives, which have
no vector in that slice of the channels. The host's files stay as they are: its method is wrapped while the program
runs, in :mod:`vqct_plugin.compat.taming_stage_2`.
"""

from contextlib import contextmanager
from typing import Any, Iterator

import torch


@contextmanager
def sample_each_token_from_its_part(model: Any, conditions: int, length: int) -> Iterator[None]:
    """Within: the transformer's logits are -inf for codes that a token cannot be. ``length``: tokens of an image,
    a multiple of those of a position, in no order but its own."""
    quantizer = getattr(model.first_stage_model, "quantize", None)
    bounds = getattr(quantizer, "token_bounds", None)
    if bounds is None or bounds.shape[1] == 1:
        yield
        return
    tokens = bounds.shape[1]

    def mask(module: Any, inputs: Any, output: Any) -> Any:
        logits, *rest = output
        place = torch.arange(logits.shape[1], device=logits.device) + 1 - conditions  # what each position predicts
        first, last = bounds.to(logits.device)[:, (place.clamp(0, length - 1) * tokens) // length]
        code = torch.arange(logits.shape[2], device=logits.device)
        other = (code < first[:, None]) | (code >= last[:, None])
        return (logits.masked_fill(other, float("-inf")), *rest)

    handle = model.transformer.register_forward_hook(mask)
    try:
        yield
    finally:
        handle.remove()
