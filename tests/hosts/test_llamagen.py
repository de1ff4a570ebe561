"""What its host asks of ``LlamaGenQuantizer``, against the plain quantizer with the same weights."""

import copy

import pytest
import torch

from tests.conftest import assert_close, make_prior
from tests.hosts.pairs import OPTIONS, make_pair
from vqct_plugin.hosts.llamagen import LlamaGenQuantizer


@pytest.mark.parametrize("options", OPTIONS)
def test_llamagens_four_losses_add_up(options):
    ours, plain = make_pair(LlamaGenQuantizer, legacy=False, **options)
    z = torch.randn(2, 16, 4, 4, requires_grad=True)
    z_q, (codebook, commitment, entropy, usage), (_, _, indices) = ours(z)
    (codebook + commitment + entropy).backward()
    gradient, weights = z.grad.clone(), [p.grad.clone() for p in ours.parameters()]
    z.grad = None
    expected_z_q, loss, (_, _, expected) = plain(z)
    loss.backward()
    assert torch.equal(z_q, expected_z_q)
    assert torch.equal(indices, expected)
    assert_close(codebook + commitment, loss)
    assert_close(gradient, z.grad)
    for weight, parameter in zip(weights, plain.parameters()):
        assert_close(weight, parameter.grad)
    assert f"{float(entropy):.4f}" == "0.0000"
    assert usage == len(indices.unique()) / 40


def test_llamagens_usage_is_of_the_last_tokens_while_training():
    ours, _ = make_pair(LlamaGenQuantizer, legacy=False, parts_of_speech="joint")
    ours.recent = torch.full((20,), -1)
    seen = []
    for _ in range(4):
        _, (_, _, _, usage), (_, _, indices) = ours(torch.randn(1, 16, 3, 3))
        seen += indices.tolist()
        assert usage == len(set(seen[-20:])) / 40
    ours.eval()
    before = ours.recent.clone()
    assert ours(torch.randn(1, 16, 3, 3))[1][3] == 0
    assert torch.equal(ours.recent, before)
    assert "recent" not in ours.state_dict()
    copy.deepcopy(ours)  # as its EMA does


def test_llamagens_shapes_have_the_channels_first():
    ours, _ = make_pair(LlamaGenQuantizer, legacy=False)
    ours.eval()
    z_q, _, (_, _, indices) = ours(torch.randn(2, 16, 3, 5))
    assert torch.equal(ours.get_codebook_entry(indices, (2, 16, 3, 5)), z_q)
    assert torch.equal(ours.get_codebook_entry(indices, (2, 3, 5, 16), channel_first=False), z_q)


def test_llamagens_loss_cannot_be_legacy():
    with pytest.raises(ValueError, match="expected legacy: false"):
        LlamaGenQuantizer(40, 16, prior=make_prior(), legacy=True)
