"""taming's own stage 2 over our first stages: what of its config does not fit, said before anything is trained.

``taming.models.cond_transformer.Net2NetTransformer`` checks nothing of its config: a sequence longer than its
``block_size`` ends in a bare assertion at the first batch, a permuter of H*W positions leaves out all tokens but the
first of each, and a conditioning VQGAN without ``sane_index_shape`` ends in ``torch.cat``. The first two are refused
here, in a sentence; the last is served.

Its samplers draw any code for any token. Its method ``sample`` is served; ``sample_with_past``, which its script
``sample_fast.py`` uses, is refused over several tokens a position; and what a loop of a script's own draws is checked
where it is decoded.

Its files stay as they are: methods of its classes are wrapped while the program runs.
"""

import functools
import sys
import weakref
from typing import Any, Optional

import torch
from torch import Tensor

from vqct_plugin.compat.taming_sampling import sample_each_token_from_its_part

_MODULE, _GPT_MODULE = "taming.models.cond_transformer", "taming.modules.transformer.mingpt"
#: taming's transformers of this process: its GPT alone does not know which first stage its tokens are of
_models: Any = weakref.WeakSet()


def adapt_taming_stage_2() -> None:
    """Wrap taming's stage 2, once, if the program has imported it. Nothing changes for what has worked with it."""
    _refuse_sample_with_past()
    host = getattr(sys.modules.get(_MODULE), "Net2NetTransformer", None)
    if host is None or getattr(host, "_vqct_adapted", False):
        return
    sample, encode_to_c, configure_optimizers = host.sample, host.encode_to_c, host.configure_optimizers
    decode_to_img, init_cond_stage = host.decode_to_img, host.init_cond_stage_from_ckpt

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

    @functools.wraps(decode_to_img)
    def decode_to_img_checked(self: Any, index: Any, zshape: Any) -> Any:
        check_tokens(self, index)
        return decode_to_img(self, index, zshape)

    @functools.wraps(init_cond_stage)
    def init_cond_stage_remembered(self: Any, *args: Any, **kwargs: Any) -> Any:
        _models.add(self)  # every constructor comes here, after the first stage, which may be what wraps this
        return init_cond_stage(self, *args, **kwargs)

    host.sample, host.encode_to_c = sample_checked, encode_to_c_reshaped
    host.decode_to_img, host.init_cond_stage_from_ckpt = decode_to_img_checked, init_cond_stage_remembered
    host.configure_optimizers, host._vqct_adapted = configure_optimizers_checked, True


def _refuse_sample_with_past() -> None:
    """Wrap what ``sample_with_past`` calls: scripts have imported that function by its name, and keep it."""
    gpt: Any = getattr(sys.modules.get(_GPT_MODULE), "GPT", None)
    if gpt is None or getattr(gpt, "_vqct_adapted", False):
        return
    forward_with_past = gpt.forward_with_past

    @functools.wraps(forward_with_past)
    def forward_with_past_checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = next((model for model in _models if getattr(model, "transformer", None) is self), None)
        quantizer = getattr(getattr(model, "first_stage_model", None), "quantize", None)
        t = getattr(quantizer, "tokens_per_position", 1)
        if t > 1 and not hasattr(model, "layout"):
            raise ValueError(
                f"sample_with_past draws any code for any token, and a position of the first stage has {t} tokens, "
                "each of its own part; use the model's own method sample, or vqct_plugin.Net2NetTransformer, or a "
                "first stage with parts_of_speech: joint"
            )
        return forward_with_past(self, *args, **kwargs)

    gpt.forward_with_past, gpt._vqct_adapted = forward_with_past_checked, True


def check_tokens(model: Any, index: Tensor) -> None:
    """Refuse tokens that a picture cannot be made of; a device is waited for, as a picture is no hot path.

    Args:
        model: taming's ``Net2NetTransformer``.
        index: (B, tokens of an image), or (B, H, W), as it is given to ``decode_to_img``.

    Raises:
        ValueError: a token that its place cannot have, where the first stage is of ours.
    """
    bounds = getattr(getattr(model.first_stage_model, "quantize", None), "token_bounds", None)
    if bounds is None or index.dim() < 2 or index[0].numel() % bounds.shape[1]:
        return  # a stock first stage; or a number of tokens that the quantizer itself refuses
    tokens = index.cpu().reshape(len(index), bounds.shape[1], -1)
    first, last = bounds.cpu()[:, :, None]
    wrong = torch.nonzero((tokens < first) | (tokens >= last))
    if len(wrong):
        image, token, position = wrong[0].tolist()
        raise ValueError(
            f"token {token + 1} of {bounds.shape[1]} of position {position} of image {image} is code "
            f"{int(tokens[image, token, position])}; expected one of {int(first[token])} to {int(last[token]) - 1}: "
            "draw tokens with the model's own method sample, which keeps each in its part, or use "
            "vqct_plugin.Net2NetTransformer"
        )


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
