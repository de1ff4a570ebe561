"""What its host asks of ``TiTokQuantizer``, against the plain quantizer with the same weights."""

import pytest
import torch

from tests.conftest import assert_close, make_prior
from tests.hosts.pairs import OPTIONS, make_pair
from vqct_plugin.hosts.quantizer_config import build_quantizer, with_host_options
from vqct_plugin.hosts.titok import TiTokQuantizer


def pair(**options):
    return make_pair(TiTokQuantizer, legacy=False, **{"transfer": "graph", **options})


@pytest.mark.parametrize("options", OPTIONS)
def test_titoks_dictionary_has_the_losses_apart(options):
    ours, plain = pair(**options)
    z = torch.randn(2, 16, 1, 6, requires_grad=True)
    z_q, found = ours(z)
    expected_z_q, loss, (_, _, indices) = plain(z)
    assert torch.equal(z_q, expected_z_q)
    assert_close(found["quantizer_loss"], loss)
    assert_close(found["commitment_loss"] + found["codebook_loss"], loss)
    assert_close(found["commitment_loss"], 0.25 * found["codebook_loss"])
    assert tuple(found["min_encoding_indices"].shape) == (2, 1, len(indices) // 2)
    assert torch.equal(found["min_encoding_indices"].reshape(-1), indices)
    found["quantizer_loss"].backward()
    assert all(p.grad is not None for p in ours.parameters())
    with torch.no_grad():  # as the host's second stage has it
        found["quantizer_loss"] *= 0
        assert found["codebook_loss"] > 0


def test_averages_have_no_codebook_loss():
    ours, plain = make_pair(TiTokQuantizer, legacy=False)
    z = torch.randn(2, 16, 1, 6)
    _, found = ours(z)
    assert found["codebook_loss"] == 0
    assert_close(found["quantizer_loss"], plain(z)[1])
    assert torch.equal(found["quantizer_loss"], found["commitment_loss"])


@pytest.mark.parametrize("options", OPTIONS)
def test_flat_indices_are_the_rows_of_the_map(options):
    """As the host decodes: ``get_codebook_entry(tokens.reshape(-1)).reshape(B, 1, N, -1)``."""
    ours, _ = make_pair(TiTokQuantizer, legacy=False, transfer="graph", **options)
    ours.eval().num_latent_tokens = 6
    z_q, found = ours(torch.randn(2, 16, 1, 6))
    tokens = found["min_encoding_indices"].squeeze(1)
    rows = ours.get_codebook_entry(tokens.reshape(-1)).reshape(2, 1, 6, -1)
    assert torch.equal(rows.permute(0, 3, 1, 2), z_q)
    assert torch.equal(ours.get_codebook_entry(tokens, (2, 1, 6, 16)), z_q)


def test_flat_indices_need_the_number_of_positions():
    ours, _ = pair()
    with pytest.raises(ValueError, match="build the quantizer with num_latent_tokens"):
        ours.get_codebook_entry(torch.zeros(24, dtype=torch.long))
    ours.num_latent_tokens = 6
    with pytest.raises(ValueError, match="expected a multiple of 12"):
        ours.get_codebook_entry(torch.zeros(13, dtype=torch.long))


def test_half_precision_comes_back_in_float32():
    ours, _ = pair()
    assert ours(torch.randn(2, 16, 1, 6).half())[0].dtype == torch.float32


def test_the_hosts_options_are_obeyed_or_refused():
    config = {"target": "vqct_plugin.hosts.titok.TiTokQuantizer", "params": {"prior": make_prior()}}
    host = {"n_e": 40, "e_dim": 16, "beta": 0.3, "l2_normalize": True, "num_latent_tokens": 6}
    built = build_quantizer(with_host_options(config, {"clustering_vq": False}), for_host="1d-tokenizer", **host)
    assert (built.beta, built.l2_normalize, built.num_latent_tokens, built.legacy) == (0.3, True, 6, False)
    with pytest.raises(ValueError, match=r"clustering_vq is True; .*set clustering_vq: false"):
        with_host_options(config, {"clustering_vq": True})
    with pytest.raises(ValueError, match=r"1d-tokenizer needs vqct_plugin\.hosts\.titok\.TiTokQuantizer"):
        build_quantizer({**config, "target": "vqct_plugin.Quantizer"}, for_host="1d-tokenizer", **host)
    with pytest.raises(ValueError, match="expected legacy: false"):
        TiTokQuantizer(40, 16, prior=make_prior(), legacy=True)
