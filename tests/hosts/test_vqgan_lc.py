"""What its host asks of ``VQGANLCQuantizer``, against the plain quantizer with the same weights."""

import pytest
import torch

from tests.conftest import make_prior
from tests.hosts.pairs import make_pair
from vqct_plugin.hosts.vqgan_lc import VQGANLCQuantizer


def test_vqgan_lcs_rows_decode_one_token_per_position():
    ours, _ = make_pair(VQGANLCQuantizer, parts_of_speech="joint")
    ours.eval()
    z_q, _, (_, _, indices) = ours(torch.randn(2, 16, 3, 3))
    rows = torch.nn.functional.embedding(indices.view(2, -1), ours.weight)
    assert torch.equal(rows.reshape(2, 3, 3, 16).permute(0, 3, 1, 2), z_q)
    with pytest.raises(ValueError, match="parts_of_speech: joint"):
        _ = VQGANLCQuantizer(40, 16, prior=make_prior()).weight
