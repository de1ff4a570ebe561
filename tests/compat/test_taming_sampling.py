"""taming's own sampler over two parts: each token is one that its place can have."""

import pytest
import torch

pytest.importorskip("taming")

from tests.hosts.toy import params
from tests.stage_2.test_transformer import first_stage, hosts, label_stage
from vqct_plugin.stage_2.layout import get_layout

RANDOM = "taming.modules.transformer.permuter.Random"


@pytest.mark.parametrize("topk", [1, 2])
@pytest.mark.parametrize("pkeep", [1.0, 0.0])
@pytest.mark.parametrize("start", [0, 5])
def test_tamings_sampler_draws_each_token_from_its_part(topk, pkeep, start):
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


def test_one_token_a_position_draws_from_all_codes():
    model = hosts(first_stage(parts_of_speech="joint")).eval()
    _, z = model.encode_to_z(torch.rand(4, 3, 16, 16) * 2 - 1)
    drawn = model.sample(z[:, :0], z[:, :1] * 0, steps=z.shape[1], sample=True, top_k=None)
    assert drawn.min() < 15 <= drawn.max()


def test_a_length_that_is_no_whole_number_of_positions_is_refused():
    model = hosts(first_stage()).eval()
    nothing = torch.zeros(1, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="x and steps are 127 tokens together; expected a multiple of 2"):
        model.sample(nothing, torch.zeros(1, 1, dtype=torch.long), steps=127)


@pytest.mark.parametrize("size", [(8, 8), (16, 8)])
def test_a_permuter_over_two_parts_is_refused_before_it_draws_or_trains(size):
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


def test_a_block_that_is_too_small_is_said_before_it_draws_or_trains():
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
