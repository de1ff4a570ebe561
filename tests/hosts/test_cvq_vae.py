"""What its host asks of ``CVQQuantizer``, against the plain quantizer with the same weights."""

import pytest
import torch

from tests.conftest import assert_close
from tests.hosts.pairs import OPTIONS, make_pair
from vqct_plugin.hosts.cvq_vae import CVQQuantizer, obey_options
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
    ours, _ = make_pair(CVQQuantizer, legacy=False, beta=0.7, transfer="graph")
    z = torch.randn(2, 16, 4, 4, requires_grad=True)
    z_q, loss, _ = ours(z)
    (gradient,) = torch.autograd.grad(loss, z)
    halves = (z - z_q).detach() * 2 / z[:, :8].numel()  # the parts' means are summed up
    assert_close(gradient, 0.7 * halves)
    assert_close(loss, 1.7 * ((z - z_q) ** 2).sum() / z[:, :8].numel())
    assert CVQQuantizer(40, 16, prior=ours.prior, legacy=True).legacy  # who writes it has it


BY_DEFAULT = {"distance": "cos", "anchor": "closest", "first_batch": False, "contras_loss": False}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("distance", "dot", "cos"), ("anchor", "random", "closest"), ("first_batch", True, "false"),
     ("contras_loss", True, "false")],
)  # fmt: skip
def test_an_option_of_the_hosts_own_quantizer_is_refused_by_name(name, value, wanted):
    config = {"target": "vqct_plugin.hosts.cvq_vae.CVQQuantizer"}
    obey_options(config, **BY_DEFAULT)
    with pytest.raises(ValueError, match=f"{name} is {value!r}; .* set {name}: {wanted}"):
        obey_options(config, **{**BY_DEFAULT, name: value})


def test_a_cosine_that_is_not_had_is_said(caplog):
    config = {"target": "vqct_plugin.hosts.cvq_vae.CVQQuantizer"}
    assert obey_options(config, **BY_DEFAULT) == {**config, "params": {}}
    assert "looks for the nearest code by l2" in caplog.text
    caplog.clear()
    obey_options(config, **{**BY_DEFAULT, "distance": "l2"})
    obey_options({**config, "params": {"l2_normalize": False}}, **BY_DEFAULT)
    assert not caplog.text
