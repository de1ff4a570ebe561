"""What its host asks of ``CVQQuantizer``, against the plain quantizer with the same weights."""

import pytest
import torch

from tests.hosts.pairs import OPTIONS, make_pair
from vqct_plugin.hosts.cvq_vae import CVQQuantizer
from vqct_plugin.usage import CodebookUsage


@pytest.mark.parametrize("options", OPTIONS)
def test_cvqs_encodings_are_the_indices(options):
    ours, plain = make_pair(CVQQuantizer, **options)
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
