"""With a table for the transfer and one part, the quantizer is taming's ``VectorQuantizer2`` to the last bit."""

import contextlib
import io

import numpy as np
import pytest
import torch

from tests.conftest import make_prior
from vqct_plugin import CodebookTransferQuantizer

taming = pytest.importorskip("taming.modules.vqvae.quantize", reason="taming-transformers is not installed")

N_E, DIM = 70, 16


def both(table_scale=None, **options):
    """taming's quantizer and ours, built from the same seed; the seed alone makes their tables equal."""
    with contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(3)
        theirs = taming.VectorQuantizer2(N_E, DIM, 0.25, **options)
        torch.manual_seed(3)
        ours = CodebookTransferQuantizer(
            N_E, DIM, 0.25, **options, prior=make_prior(), parts_of_speech="joint", transfer="table"
        )
    if table_scale is not None:
        theirs.embedding.weight.data.normal_(std=table_scale)
        ours.transfer.table.weight.data.copy_(theirs.embedding.weight.data)
    return theirs, ours


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("table_scale", [None, 1.0])  # as initialized, where rounding decides many an index
@pytest.mark.parametrize("sane", [False, True])
@pytest.mark.parametrize("legacy", [True, False])
def test_values_loss_indices_and_gradients(legacy, sane, table_scale):
    theirs, ours = both(table_scale, legacy=legacy, sane_index_shape=sane)
    assert same_bits(theirs.embedding.weight, ours.embedding.weight)
    z = torch.randn(8, DIM, 12, 12)
    direction = torch.randn(8, DIM, 12, 12)
    results = []
    for quantizer in (theirs, ours):
        z_in = z.clone().requires_grad_()
        z_q, loss, (perplexity, encodings, indices) = quantizer(z_in)
        (loss + (z_q * direction).sum()).backward()
        weight = quantizer.embedding.weight if quantizer is theirs else quantizer.transfer.table.weight
        results.append((z_q, loss, indices, z_in.grad, weight.grad))
        assert (perplexity, encodings) == (None, None)
    for name, their, our in zip(("z_q", "loss", "indices", "grad of z", "grad of the table"), *results):
        assert same_bits(their, our), name


def test_the_host_rounds_some_indices_and_parity_keeps_them():
    """Why the table mode has a lookup of its own: exact distances would not give the host's indices."""
    from vqct_plugin.lookup import find_nearest

    theirs, ours = both()
    z = 1000 * torch.randn(8, DIM, 40, 40)
    indices = theirs(z)[2][2]
    vectors = z.permute(0, 2, 3, 1).reshape(-1, DIM)
    assert not torch.equal(indices, find_nearest(vectors, ours.embedding.weight)[:, 0])
    assert same_bits(indices, ours(z)[2][2])


@pytest.mark.parametrize("sane", [False, True])
@pytest.mark.parametrize("unknown", ["random", "extra", 5])
def test_remap(tmp_path, unknown, sane):
    used = np.random.RandomState(0).permutation(N_E)[:40]
    np.save(tmp_path / "used.npy", used)
    theirs, ours = both(1.0, remap=str(tmp_path / "used.npy"), unknown_index=unknown, sane_index_shape=sane)
    assert (theirs.re_embed, theirs.unknown_index) == (ours.re_embed, ours.unknown_index)
    z = torch.randn(3, DIM, 6, 6)
    results = []
    for quantizer in (theirs, ours):
        torch.manual_seed(11)  # "random" draws
        results.append(quantizer(z))
    assert same_bits(results[0][0], results[1][0])
    assert same_bits(results[0][1], results[1][1])
    indices = results[0][2][2]
    assert same_bits(indices, results[1][2][2])
    shape = (3, 6, 6, DIM)
    assert same_bits(theirs.get_codebook_entry(indices.clone(), shape), ours.get_codebook_entry(indices.clone(), shape))
    assert {"used"} <= set(ours.state_dict())


@pytest.mark.parametrize("shape", [None, (3, 6, 6, DIM)])
def test_codebook_entries(shape):
    theirs, ours = both(1.0)
    indices = torch.randint(0, N_E, (3 * 6 * 6,))
    assert same_bits(theirs.get_codebook_entry(indices, shape), ours.get_codebook_entry(indices, shape))
    if shape is None:
        maps = indices.view(3, 6, 6)
        assert same_bits(theirs.get_codebook_entry(maps, None), ours.get_codebook_entry(maps, None))


def test_the_exported_codebook_loads_into_taming():
    theirs, _ = both(1.0)
    prior = make_prior()
    ours = CodebookTransferQuantizer(N_E, DIM, prior=prior, parts_of_speech="joint").eval()
    theirs.load_state_dict(ours.export_codebook())
    z = torch.randn(2, DIM, 6, 6)
    assert torch.equal(theirs(z)[2][2], ours(z)[2][2])
    assert torch.allclose(theirs(z)[0], ours(z)[0], atol=1e-6)


def test_remap_refusals(tmp_path):
    prior = make_prior()
    np.save(tmp_path / "used.npy", np.arange(4))
    np.save(tmp_path / "beyond.npy", np.array([0, 70]))
    np.save(tmp_path / "floats.npy", np.zeros(4))
    joint = {"prior": prior, "parts_of_speech": "joint"}
    with pytest.raises(ValueError, match="a position has 2"):
        CodebookTransferQuantizer(N_E, DIM, remap=str(tmp_path / "used.npy"), prior=prior)
    for file in ("beyond", "floats"):
        with pytest.raises(ValueError, match="expected indices in"):
            CodebookTransferQuantizer(N_E, DIM, remap=str(tmp_path / f"{file}.npy"), **joint)
    with pytest.raises(ValueError, match="expected 'random', 'extra', or an integer"):
        CodebookTransferQuantizer(N_E, DIM, remap=str(tmp_path / "used.npy"), unknown_index="zero", **joint)


def test_the_convolution_before_it_gets_the_same_gradient_to_the_last_bit():
    """A bias's gradient is a sum over positions, whose order goes by the strides of the gradient that comes back."""
    gradients = []
    for quantizer in both():
        torch.manual_seed(5)
        before, after = torch.nn.Conv2d(8, DIM, 1), torch.nn.Conv2d(DIM, 8, 1)
        z_q, loss, _ = quantizer(before(torch.randn(2, 8, 16, 16)))
        (after(z_q).square().mean() + loss).backward()
        gradients.append([p.grad for module in (before, after, quantizer) for p in module.parameters()])
    assert all(same_bits(ours, theirs) for ours, theirs in zip(*gradients))
