"""taming's own sampler over two parts: each token is one that its place can have."""

import pytest
import torch

pytest.importorskip("taming")

from tests.stage_2.test_transformer import first_stage, hosts


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
