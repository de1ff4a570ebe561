"""taming's own stage 2 over our first stages: what of its config does not fit, said before anything is trained.

``taming.models.cond_transformer.Net2NetTransformer`` checks nothing of its config: a sequence longer than its
``block_size`` ends in a bare assertion at the first batch, a permuter of H*W positions leaves out all tokens but the
first of each, and a conditioning VQGAN without ``sane_index_shape`` ends in ``torch.cat``. The first two are refused
here, in a sentence; the last is served.

Its files stay as they are: three of its methods are wrapped while the program runs.
"""

import functools
import sys
from typing import Any, Optional

import torch
from torch import Tensor

from vqct_plugin.compat.taming_sampling import sample_each_token_from_its_part

_MODULE = "taming.models.cond_transformer"


def adapt_taming_stage_2() -> None:
    """Wrap taming's stage 2, once, if the program has imported it. Nothing changes for what has worked with it."""
    host = getattr(sys.modules.get(_MODULE), "Net2NetTransformer", None)
    if host is None or getattr(host, "_vqct_adapted", False):
        return
    sample, encode_to_c, configure_optimizers = host.sample, host.encode_to_c, host.configure_optimizers

    @functools.wraps(sample)
    def sample_checked(self: Any, x: Any, c: Any, steps: int, *args: Any, **kwargs: Any) -> Any:
        check_stage_2(self, conditions=c.shape[1], length=x.shape[1] + steps)
        with sample_each_token_from_its_part(self, c.shape[1], x.shape[1] + steps):
            return sample(self, x, c, steps, *args, **kwargs)

    @functools.wraps(encode_to_c)
    def encode_to_c_reshaped(self: Any, c: Any) -> Any:
        quantized, indices = encode_to_c(self, c)
        if isinstance(indices, Tensor) and indices.dim() == 1 and indices.numel() % c.shape[0] == 0:
            indices = indices.reshape(c.shape[0], -1)  # of a VQGAN without sane_index_shape
        return quantized, indices

    @functools.wraps(configure_optimizers)
    def configure_optimizers_checked(self: Any) -> Any:
        check_stage_2(self)  # the host's own launcher has nothing else of ours between building and training
        return configure_optimizers(self)

    host.sample, host.encode_to_c = sample_checked, encode_to_c_reshaped
    host.configure_optimizers, host._vqct_adapted = configure_optimizers_checked, True


def check_stage_2(model: Any, conditions: Optional[int] = None, length: Optional[int] = None) -> None:
    """Refuse a stage 2 of taming's whose config does not fit its first stage of ours; any other passes.

    Args:
        model: taming's ``Net2NetTransformer``.
        conditions, length: how many conditioning tokens there are, and tokens of an image; by default what the stages'
            own configs say, as far as they say it.

    Raises:
        ValueError: with what to write.
    """
    quantizer: Any = getattr(getattr(model, "first_stage_model", None), "quantize", None)
    config = getattr(model.transformer, "config", None)
    if not hasattr(quantizer, "tokens_per_position") or config is None or hasattr(model, "layout"):
        return  # a stock first stage; or our own transformer, which has a layout, and checks itself
    t = quantizer.tokens_per_position
    if length is not None and length % t:
        raise ValueError(
            f"x and steps are {length} tokens together; expected a multiple of {t}, the tokens of a position: a "
            "sequence is all first tokens of an image's positions, then all second ones, which its length tells apart"
        )
    expected = length if length is not None else count_tokens(model.first_stage_model)
    _check_permuter(model.permuter, t, expected)
    if config.vocab_size < quantizer.n_e:
        raise ValueError(
            f"vocab_size of the transformer is {config.vocab_size}; expected {quantizer.n_e} or more, the codes of the "
            "first stage"
        )
    codes = getattr(getattr(model.cond_stage_model, "quantize", None), "n_e", 0)
    if config.vocab_size < codes:
        raise ValueError(
            f"vocab_size of the transformer is {config.vocab_size}; expected {codes} or more, the codes of the "
            "conditioning stage: taming's transformer has one table for both, vqct_plugin.Net2NetTransformer two"
        )
    known = conditions if conditions is not None else count_condition_tokens(model)
    if expected is None:
        return
    needed = expected + max(known or 0, 1) - 1
    block_size = model.transformer.get_block_size()
    if block_size < needed:
        counted = "at least 1 conditioning token" if known is None else f"{known} conditioning token(s)"
        raise ValueError(
            f"block_size of the transformer is {block_size}; expected {needed} or more: {counted} and {expected} of an "
            f"image ({expected // t} positions of {t} token(s)), less one. With parts_of_speech: joint in the first "
            "stage a position has one token; with vqct_plugin.Net2NetTransformer it is one element"
        )


def _check_permuter(permuter: Any, t: int, length: Optional[int]) -> None:
    shuffle = getattr(permuter, "forward_shuffle_idx", None)
    if t == 1 or (shuffle is None and length is None):
        return
    places = torch.arange(len(shuffle) if length is None else length)  # type: ignore[arg-type]
    places = places if shuffle is None else places.to(shuffle.device)
    try:
        same = torch.equal(permuter(places[None])[0], places)
    except (IndexError, RuntimeError):
        same = False
    if not same:
        does = f"would mix the {t} tokens of a position with others"
        if shuffle is not None and len(shuffle) != length:
            does = (
                f"is one of {len(shuffle)} positions, and would leave out all but the first of a position's {t} tokens"
            )
        raise ValueError(
            f"the permuter {type(permuter).__name__} {does}; leave permuter_config out, or use "
            "vqct_plugin.Net2NetTransformer, whose permuters are of positions"
        )


def count_tokens(stage: Any) -> Optional[int]:
    """How many tokens a VQGAN makes of an image of its resolution; None where its encoder does not say."""
    encoder = getattr(stage, "encoder", None)
    resolution, levels = getattr(encoder, "resolution", None), getattr(encoder, "num_resolutions", None)
    if resolution is None or levels is None:
        return None
    side = int(resolution) // 2 ** (int(levels) - 1)
    return side * side * int(getattr(stage.quantize, "tokens_per_position", 1))


def count_condition_tokens(model: Any) -> Optional[int]:
    """How many conditioning tokens there are; None for a stage that does not say."""
    stage = model.cond_stage_model
    if model.be_unconditional or type(stage).__name__ == "Labelator":
        return 1
    if hasattr(stage, "quantize"):
        return count_tokens(stage) if model.downsample_cond_size < 0 else None
    if hasattr(stage, "down_factor"):  # CoordStage, of the first stage's images
        resolution = getattr(getattr(model.first_stage_model, "encoder", None), "resolution", None)
        return None if resolution is None else (int(resolution) // int(stage.down_factor)) ** 2
    return None
