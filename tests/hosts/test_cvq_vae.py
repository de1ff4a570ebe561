"""What its host asks of ``CVQQuantizer``, against the plain quantizer with the same weights."""

import pytest
import torch

from tests.hosts.pairs import OPTIONS, make_pair
from vqct_plugin.hosts.cvq_vae import CVQQuantizer
from vqct_plugin.usage import CodebookUsage


@pytest.mark.parametrize("options", OPTIONS)
def test_cvqs_encodings_are_the_indices(options):
    ours, plain = make_pair(CVQQuantizer, legacy=False, **options)
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


def test_the_hosts_commitment_cost_weighs_the_commitment():
    """``beta * mean((sg(q) - z)^2) + mean((q - sg(z))^2)``, as CVQ-VAE's own quantizer has it."""
    ours, _ = make_pair(CVQQuantizer, legacy=False, beta=0.7)
    z = torch.randn(2, 16, 4, 4, requires_grad=True)
    z_q, loss, _ = ours(z)
    (gradient,) = torch.autograd.grad(loss, z)
    halves = (z - z_q).detach() * 2 / z[:, :8].numel()  # the parts' means are summed up
    torch.testing.assert_close(gradient, 0.7 * halves)
    torch.testing.assert_close(loss, 1.7 * ((z - z_q) ** 2).sum() / z[:, :8].numel())
    assert CVQQuantizer(40, 16, prior=ours.prior, legacy=True).legacy  # who writes it has it
