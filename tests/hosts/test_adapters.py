"""What the hosts' own interfaces ask for, against the plain quantizer with the same weights."""

import copy

import pytest
import torch

from tests.conftest import assert_close, make_prior
from vqct_plugin.hosts.cvq_vae import CVQQuantizer
from vqct_plugin.hosts.llamagen import LlamaGenQuantizer
from vqct_plugin.hosts.simvq import SimVQQuantizer
from vqct_plugin.hosts.vqgan_lc import VQGANLCQuantizer
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.usage import CodebookUsage

OPTIONS = [{}, {"topk": 2}, {"parts_of_speech": "joint"}]


def pair(cls, **options):
    """An adapter and a plain quantizer of the same weights, both without dropout."""
    options = {"prior": make_prior(), "dropout": 0.0, **options}
    ours = cls(40, 16, **options)
    plain = CodebookTransferQuantizer(40, 16, **{"legacy": cls is not LlamaGenQuantizer, **options})
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("options", OPTIONS)
def test_llamagens_four_losses_add_up(options):
    ours, plain = pair(LlamaGenQuantizer, **options)
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
    ours, _ = pair(LlamaGenQuantizer, parts_of_speech="joint")
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
    ours, _ = pair(LlamaGenQuantizer)
    ours.eval()
    z_q, _, (_, _, indices) = ours(torch.randn(2, 16, 3, 5))
    assert torch.equal(ours.get_codebook_entry(indices, (2, 16, 3, 5)), z_q)
    assert torch.equal(ours.get_codebook_entry(indices, (2, 3, 5, 16), channel_first=False), z_q)


def test_llamagens_loss_cannot_be_legacy():
    with pytest.raises(ValueError, match="expected legacy: false"):
        LlamaGenQuantizer(40, 16, prior=make_prior(), legacy=True)


@pytest.mark.parametrize("options", OPTIONS)
def test_simvqs_breakdown_has_the_loss_as_its_commitment(options):
    ours, plain = pair(SimVQQuantizer, **options)
    z = torch.randn(2, 16, 4, 4)
    (z_q, embedding_loss, indices), breakdown = ours(z)
    expected_z_q, loss, (_, _, expected) = plain(z)
    assert torch.equal(z_q, expected_z_q)
    assert torch.equal(indices, expected)
    assert torch.equal(breakdown.commitment, loss)
    zeros = (embedding_loss, breakdown.per_sample_entropy, breakdown.codebook_entropy, breakdown.avg_probs)
    assert all(value.dim() == 0 and value == 0 for value in zeros)


@pytest.mark.parametrize("options", OPTIONS)
def test_cvqs_encodings_are_the_indices(options):
    ours, plain = pair(CVQQuantizer, **options)
    z = torch.randn(2, 16, 4, 4)
    z_q, loss, (perplexity, encodings, indices) = ours(z)
    expected_z_q, expected_loss, (_, _, expected) = plain(z)
    assert torch.equal(z_q, expected_z_q)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(encodings.argmax(dim=1), expected)
    assert torch.equal(indices, expected)
    assert (encodings.sum(1) == 1).all()
    usage = CodebookUsage(40)
    usage.update(expected)
    assert perplexity.item() == pytest.approx(usage.compute()["codes"].perplexity, rel=1e-5)


def test_vqgan_lcs_rows_decode_one_token_per_position():
    ours, _ = pair(VQGANLCQuantizer, parts_of_speech="joint")
    ours.eval()
    z_q, _, (_, _, indices) = ours(torch.randn(2, 16, 3, 3))
    rows = torch.nn.functional.embedding(indices.view(2, -1), ours.weight)
    assert torch.equal(rows.reshape(2, 3, 3, 16).permute(0, 3, 1, 2), z_q)
    with pytest.raises(ValueError, match="parts_of_speech: joint"):
        _ = VQGANLCQuantizer(40, 16, prior=make_prior()).weight
