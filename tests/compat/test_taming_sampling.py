"""taming's own sampler over two parts: each token is one that its place can have."""

import pytest
import torch

pytest.importorskip("taming")

from tests.conftest import make_prior
from tests.hosts.toy import params
from tests.stage_2.test_transformer import first_stage as subclass_stage
from tests.stage_2.test_transformer import hosts, label_stage
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.hosts.quantizer_config import build_quantizer
from vqct_plugin.stage_2.layout import get_layout

Net2NetTransformer = import_taming("taming.models.cond_transformer").Net2NetTransformer
mingpt = import_taming("taming.modules.transformer.mingpt")
GPT, sample_with_past = mingpt.GPT, mingpt.sample_with_past
RANDOM = "taming.modules.transformer.permuter.Random"


class PatchedVQModel(import_taming().VQModel):
    """taming's, with what the patch adds to it."""

    def __init__(self, quantizer_config=None, **options):
        super().__init__(**options)
        self.quantize = build_quantizer(quantizer_config, n_e=options["n_embed"], e_dim=options["embed_dim"], beta=0.25)


def patched_stage(n_embed=40, **options):
    config = {"target": "vqct_plugin.Quantizer", "params": {"prior": make_prior(), "dropout": 0.0, **options}}
    target = f"{__name__}.PatchedVQModel"
    return {"target": target, "params": {**params(n_embed=n_embed), "quantizer_config": config}}


@pytest.fixture(params=[subclass_stage, patched_stage])
def first_stage(request, monkeypatch):
    """A first stage by either route, in a process in which no other has adapted taming's stage 2."""
    for host in (Net2NetTransformer, GPT):
        if getattr(host, "_vqct_adapted", False):
            monkeypatch.setattr(host, "_vqct_adapted", False)
            for name, method in list(vars(host).items()):
                if getattr(method, "__module__", None) == "vqct_plugin.compat.taming_stage_2" or (
                    hasattr(method, "__code__") and "taming_stage_2" in method.__code__.co_filename
                ):
                    monkeypatch.setattr(host, name, method.__wrapped__)
    return request.param


@pytest.mark.parametrize("topk", [1, 2])
@pytest.mark.parametrize("pkeep", [1.0, 0.0])
@pytest.mark.parametrize("start", [0, 5])
def test_tamings_sampler_draws_each_token_from_its_part(first_stage, topk, pkeep, start):
    torch.manual_seed(0)
    model = hosts(first_stage(topk=topk), pkeep=pkeep, block_size=500).eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    quantized, z = model.encode_to_z(x)
    _, c = model.encode_to_c(x)
    if pkeep == 0:
        c, start = torch.zeros_like(z), 0  # one pass: taming then takes the condition for its noise
    drawn = model.sample(z[:, :start], c, steps=z.shape[1] - start, sample=True, top_k=40)
    assert drawn.shape == z.shape
    first, last = model.first_stage_model.quantize.token_bounds
    tokens = drawn.view(2, topk + 1, -1)
    assert (tokens >= first[:, None]).all()
    assert (tokens < last[:, None]).all()
    assert torch.isfinite(model.decode_to_img(drawn, quantized.shape)).all()
    assert not model.transformer._forward_hooks  # nothing is left behind


def test_one_token_a_position_draws_from_all_codes(first_stage):
    model = hosts(first_stage(parts_of_speech="joint")).eval()
    _, z = model.encode_to_z(torch.rand(4, 3, 16, 16) * 2 - 1)
    drawn = model.sample(z[:, :0], z[:, :1] * 0, steps=z.shape[1], sample=True, top_k=None)
    assert drawn.min() < 15 <= drawn.max()


def test_a_length_that_is_no_whole_number_of_positions_is_refused(first_stage):
    model = hosts(first_stage()).eval()
    nothing = torch.zeros(1, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="x and steps are 127 tokens together; expected a multiple of 2"):
        model.sample(nothing, torch.zeros(1, 1, dtype=torch.long), steps=127)


@pytest.mark.parametrize("size", [(8, 8), (16, 8)])
def test_a_permuter_over_two_parts_is_refused_before_it_draws_or_trains(first_stage, size):
    """Of the positions it would leave tokens out, of all tokens it would mix the parts."""
    params = dict(zip("HW", size))
    permuter = {"target": "taming.modules.transformer.permuter.ZCurve" if size == (8, 8) else RANDOM, "params": params}
    model = hosts(first_stage(), permuter_config=permuter).eval()
    model.learning_rate = 1e-3
    sentence = "the permuter (ZCurve is one of 64 positions|Random would mix)"
    with pytest.raises(ValueError, match=sentence):
        model.sample(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long), steps=128)
    with pytest.raises(ValueError, match=sentence):
        model.configure_optimizers()
    hosts(first_stage(parts_of_speech="joint"), permuter_config={**permuter, "params": {"H": 8, "W": 8}})


def test_a_block_that_is_too_small_is_said_before_it_draws_or_trains(first_stage):
    model = hosts(first_stage(), block_size=127).eval()
    model.learning_rate = 1e-3
    sentence = "block_size of the transformer is 127; expected 128 or more: 1 conditioning token"
    with pytest.raises(ValueError, match=sentence):
        model.configure_optimizers()
    with pytest.raises(ValueError, match=sentence):
        model.sample(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long), steps=128)
    model = hosts(first_stage(n_embed=30), label_stage(), block_size=300, vocab_size=30, cond_stage_key="segmentation")
    with pytest.raises(ValueError, match="is 30; expected 40 or more, the codes of the conditioning stage"):
        get_layout(model).check()
    with pytest.raises(ValueError, match="vocab_size of the transformer is 39; expected 40 or more"):
        get_layout(hosts(first_stage(), vocab_size=39)).check()


def test_a_stock_first_stage_is_left_alone():
    stock = {"target": "taming.models.vqgan.VQModel", "params": params()}
    model = hosts(stock, block_size=40).eval()
    model.learning_rate = 1e-3
    model.configure_optimizers()
    drawn = model.sample(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long), steps=7)
    assert drawn.shape == (1, 7)


def test_sample_with_past_is_refused_over_two_parts_and_serves_one(first_stage):
    """The script's import of it is older than the model, as in ``scripts/sample_fast.py``."""
    c = torch.zeros(2, 1, dtype=torch.long)
    model = hosts(first_stage()).eval()
    with pytest.raises(
        ValueError, match=r"sample_with_past draws any code .* has 2 tokens.* use the model's own method"
    ):
        sample_with_past(c, model.transformer, steps=128)
    joint = hosts(first_stage(parts_of_speech="joint")).eval()
    assert sample_with_past(c, joint.transformer, steps=3).shape == (2, 3)
    assert sample_with_past(c, GPT(40, 20, n_layer=1, n_head=1, n_embd=8).eval(), steps=3).shape == (2, 3)


def test_tokens_of_a_scripts_own_loop_are_checked_where_they_are_decoded(first_stage):
    """``sample_conditional.py`` and ``make_samples.py`` call the transformer themselves, and give (B, H, W)."""
    model = hosts(first_stage()).eval()
    quantized, z = model.encode_to_z(torch.rand(2, 3, 16, 16) * 2 - 1)
    model.decode_to_img(z, quantized.shape)
    z[1, 3] = 39
    with pytest.raises(ValueError, match=r"token 1 of 2 of position 3 of image 1 is code 39; .* method sample"):
        model.decode_to_img(z, quantized.shape)
    joint = hosts(first_stage(parts_of_speech="joint")).eval()
    quantized, z = joint.encode_to_z(torch.rand(2, 3, 16, 16) * 2 - 1)
    joint.decode_to_img(z.view(2, 8, 8), quantized.shape)
    with pytest.raises(ValueError, match="is code 40; expected one of 0 to 39"):
        joint.decode_to_img(z.fill_(40).view(2, 8, 8), quantized.shape)
