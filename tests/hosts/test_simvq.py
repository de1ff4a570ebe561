"""What its host asks of ``SimVQQuantizer``, against the plain quantizer with the same weights."""

import pytest
import torch

from tests.hosts.pairs import OPTIONS, make_pair
from vqct_plugin.hosts.simvq import SimVQQuantizer


@pytest.mark.parametrize("options", OPTIONS)
def test_simvqs_breakdown_has_the_loss_as_its_commitment(options):
    ours, plain = make_pair(SimVQQuantizer, **options)
    z = torch.randn(2, 16, 4, 4)
    (z_q, embedding_loss, indices), breakdown = ours(z)
    expected_z_q, loss, (_, _, expected) = plain(z)
    assert torch.equal(z_q, expected_z_q)
    assert torch.equal(indices, expected)
    assert torch.equal(breakdown.commitment, loss)
    zeros = (embedding_loss, breakdown.per_sample_entropy, breakdown.codebook_entropy, breakdown.avg_probs)
    assert all(value.dim() == 0 and value == 0 for value in zeros)


@pytest.mark.parametrize("options", OPTIONS)
def test_maps_of_one_dimension_are_served_as_of_two(options):
    """(B, C, T), as of SimVQ's speech codec: what (B, C, T, 1) gives."""
    ours = make_pair(SimVQQuantizer, **options)[0].eval()
    z = torch.randn(2, 16, 12)
    (z_q, _, indices), breakdown = ours(z)
    (as_map, _, of_map), its = ours(z[..., None])
    assert z_q.shape == z.shape
    assert torch.equal(z_q, as_map[..., 0])
    assert torch.equal(indices, of_map)
    assert torch.equal(breakdown.commitment, its.commitment)
