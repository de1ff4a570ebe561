"""Words behind vector-quantize-pytorch's own modules, and ours inside its residual VQ."""

import copy
import doctest
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, assert_close, make_prior
from vqct_plugin.hosts import word_bridge
from vqct_plugin.hosts.vector_quantize import VectorQuantize
from vqct_plugin.hosts.word_bridge import WordBridge, WordTransform, write_codes

theirs = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")

CHECKOUT = os.environ.get("VQCT_VECTOR_QUANTIZE_PYTORCH")
LEARNED = {"learnable_codebook": True, "ema_update": False}


def bridge(dim=8, **options):
    return WordBridge(40, dim, **{"prior": make_prior(), "dropout": 0.0, **options})


def transform(dim=16, **options):
    return WordTransform(40, dim, **{"prior": make_prior(), "dropout": 0.0, **options})


def sim_vq(words, dim=16, **options):
    return theirs.SimVQ(
        dim, 40, codebook_transform=words, init_fn=words.number_rows, frozen_codebook_dim=words.digits, **options
    )


def trains(module, x, moving):
    """One step of an optimizer over all parameters: every one of ``moving`` has moved."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = [p.detach().clone() for p in moving]
    quantized, _, loss = module(x)
    (loss.sum() + (quantized - x).pow(2).sum()).backward()
    assert all(p.grad is not None for p in module.parameters()), "DDP refuses a parameter without a gradient"
    optimizer.step()
    assert moving
    assert all((p != b).any() for p, b in zip(moving, before))


#: their modules over words, and x for them
BRIDGED = [
    (lambda: theirs.VectorQuantize(8, 40, vq_bridge=bridge(), **LEARNED), (2, 6, 8)),
    (lambda: theirs.VectorQuantize(16, 40, codebook_dim=8, vq_bridge=bridge(), **LEARNED), (2, 6, 16)),
    (lambda: theirs.VectorQuantize(16, 40, codebook_dim=8, heads=2, vq_bridge=bridge(), **LEARNED), (2, 6, 16)),
    (
        lambda: theirs.VectorQuantize(
            16, 40, codebook_dim=8, heads=2, separate_codebook_per_head=True,
            vq_bridge=bridge(num_codebooks=2), **LEARNED,
        ),
        (2, 6, 16),
    ),
    (lambda: theirs.ResidualVQ(dim=8, num_quantizers=3, codebook_size=40, vq_bridge=bridge(), **LEARNED), (2, 6, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), BRIDGED)
def test_their_modules_learn_a_transfer_and_keep_its_codes(make, shape):
    module = make()
    bridges = [m for m in module.modules() if isinstance(m, WordBridge)]
    trains(module, torch.randn(shape, requires_grad=True), [p for b in bridges for p in b.parameters()])
    module.eval()
    x = torch.randn(shape)
    quantized, indices, _ = module(x)
    codebooks = len([m for m in module.modules() if hasattr(m, "vq_bridge")])
    assert write_codes(module) == codebooks
    again, same, _ = module(x)
    assert_close(again, quantized)
    assert torch.equal(same, indices)
    # of heads with one codebook theirs gives each head's code apart
    assert_close(module.get_output_from_indices(indices).reshape(quantized.shape), quantized)
    assert not any("prior" in key for key in module.state_dict())
    with pytest.raises(ValueError, match="was it written already"):
        write_codes(module)


def test_a_code_is_its_words_whatever_the_table_has():
    words = bridge()
    codes = words(torch.zeros(1, 40, 8))
    assert torch.equal(words(torch.randn(1, 40, 8)), codes)
    assert len(words.words) == 40
    words.codebooks[0].transfer.layer2.bias.data += 1.0
    assert_close(words(torch.zeros(1, 40, 8)), codes + 1)


def test_each_level_of_a_residual_may_have_a_transfer_of_its_own():
    residual = theirs.ResidualVQ(dim=8, num_quantizers=3, codebook_size=40, **LEARNED)
    prior = make_prior()
    residual.layers = torch.nn.ModuleList(
        [theirs.VectorQuantize(8, 40, vq_bridge=bridge(prior=prior), **LEARNED) for _ in range(3)]
    )
    trains(residual, torch.randn(2, 6, 8, requires_grad=True), [p for p in residual.parameters() if p.dim() == 2])
    assert write_codes(residual) == 3
    residual.eval()
    quantized, indices, _ = residual(torch.randn(2, 6, 8))
    assert_close(residual.get_output_from_indices(indices), quantized)
    assert not torch.equal(residual.codebooks[0], residual.codebooks[1])


@pytest.mark.parametrize("transfer", ["graph", {"target": "averages", "params": {"relatives": 3, "restart": 0.0}}])
def test_our_module_is_a_level_of_their_residual(transfer):
    """One prior, several levels; by averages too, which a bridge cannot have."""
    prior = make_prior()
    residual = theirs.ResidualVQ(dim=8, num_quantizers=3, codebook_size=40)
    residual.layers = torch.nn.ModuleList([VectorQuantize(8, 40, prior=prior, transfer=transfer) for _ in range(3)])
    x = torch.randn(2, 64, 8)
    errors = []
    optimizer = torch.optim.Adam(residual.parameters(), 1e-2) if transfer == "graph" else None
    for _ in range(15):
        quantized, indices, losses = residual(x)
        assert tuple(losses.shape) == (3,)
        if optimizer is not None:
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
        errors.append(float((quantized - x).detach().pow(2).mean()))
    assert errors[-1] < 0.8 * errors[0]
    residual.eval()
    quantized, indices, _ = residual(x)
    assert tuple(indices.shape) == (2, 64, 3)
    assert_close(residual.get_output_from_indices(indices), quantized)
    one = (x - residual.layers[0](x)[0]).pow(2).mean()
    assert (x - quantized).pow(2).mean() < 0.8 * one, "the further levels add nothing"


@pytest.mark.parametrize("channel_first", [False, True])
def test_simvq_over_words(channel_first):
    words = transform()
    module = sim_vq(words, channel_first=channel_first)
    x = torch.randn(2, 16, 6, requires_grad=True) if channel_first else torch.randn(2, 6, 16, requires_grad=True)
    trains(module, x, list(words.parameters()))
    module.eval()
    quantized, indices, _ = module(x)
    assert tuple(module.codebook.shape) == (40, 16)
    assert torch.equal(module.codebook, words.embedding.weight)
    assert_close(module.indices_to_codes(indices), quantized)
    rows = x.movedim(1, -1) if channel_first else x
    assert torch.equal(torch.cdist(rows, words.embedding.weight).argmin(-1), indices)


def test_a_residual_simvq_over_words():
    residual = theirs.ResidualSimVQ(dim=16, num_quantizers=3, codebook_size=40)
    prior = make_prior()
    residual.layers = torch.nn.ModuleList([sim_vq(transform(prior=prior)) for _ in range(3)])
    residual.eval()
    quantized, indices, _ = residual(torch.randn(2, 6, 16))
    assert tuple(indices.shape) == (2, 6, 3)
    assert_close(residual.get_output_from_indices(indices), quantized)


def test_the_examples_in_docstrings_run():
    assert doctest.testmod(word_bridge, extraglobs={"torch": torch}).failed == 0


def test_row_numbers_survive_a_cast():
    words = WordTransform(80, 4, prior=make_prior(), dropout=0.0)
    rows = words.number_rows(torch.randn(80, words.digits)).to(torch.bfloat16)
    assert torch.equal(words(rows), words.embedding.weight)
    assert torch.equal(words(rows[[79, 3]]), words.embedding.weight[[79, 3]])


def test_the_state_goes_there_and_back():
    module = sim_vq(transform())
    other = sim_vq(transform())
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.codebook, module.codebook)
    copied = copy.deepcopy(theirs.VectorQuantize(8, 40, vq_bridge=bridge(), **LEARNED))
    assert isinstance(copied._codebook.vq_bridge, WordBridge)


@pytest.mark.parametrize("cls", [WordBridge, WordTransform])
def test_what_a_bridge_cannot_have_is_refused(cls):
    with pytest.raises(ValueError, match="averages are moved by"):
        cls(40, 8, prior=make_prior(), transfer={"target": "averages", "params": {"relatives": 3}})
    with pytest.raises(ValueError, match="'joint', or one part"):
        cls(40, 8, prior=make_prior(), parts_of_speech=["adjective", "noun"])


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="build it with the module's codebook_size"):
        theirs.VectorQuantize(8, 41, vq_bridge=bridge(), **LEARNED)(torch.randn(2, 6, 8))
    words = transform()
    with pytest.raises(ValueError, match="expected codebook_size=40 and frozen_codebook_dim=6"):
        theirs.SimVQ(16, 40, codebook_transform=words, init_fn=words.number_rows)
    with pytest.raises(ValueError, match="init_fn=number_rows"):
        theirs.SimVQ(16, 40, codebook_transform=words)(torch.randn(2, 6, 16))


#: their tests of ``VectorQuantize`` that ours passes; those that cannot are in docs/vector_quantize_pytorch.md
PASSES = [
    "test_vq[",
    "test_vq_eval",
    "test_vq_lower_codebook",
    "test_vq_cosine_sim",
    "test_vq_multiheaded",
    "test_vq_3d",
]
CANNOT = [
    "test_vq_mask", "test_vq_expire_code", "test_directional_reparam", "test_vq_custom_ema_update_weighting",
    "test_accum_ema_update", "test_fvq",
]  # fmt: skip


@pytest.mark.skipif(CHECKOUT is None, reason="VQCT_VECTOR_QUANTIZE_PYTORCH names no checkout of it")
def test_their_own_tests_pass(tmp_path):
    """Their test file, unchanged, with our module under their name."""
    (tmp_path / "conftest.py").write_text(
        textwrap.dedent(
            """
            import vector_quantize_pytorch
            from vqct_plugin.hosts.vector_quantize import VectorQuantize

            vector_quantize_pytorch.VectorQuantize = VectorQuantize
            """
        )
    )
    text = (Path(CHECKOUT) / "tests" / "test_readme.py").read_text(encoding="utf-8")
    (tmp_path / "test_readme.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    chosen = " or ".join({*(name.rstrip("[") for name in PASSES), *CANNOT})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--rootdir", ".", ".", "-k", chosen],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    results = [line.split() for line in done.stdout.splitlines() if line.startswith(("PASSED ", "FAILED ", "ERROR "))]
    passed = {words[1].partition("::")[2] for words in results if words[0] == "PASSED"}
    for name in PASSES:
        assert any(test.startswith(name) for test in passed), done.stdout[-5000:]
    failed = {words[1].partition("::")[2].partition("[")[0] for words in results if words[0] != "PASSED"}
    assert failed == set(CANNOT), done.stdout[-5000:]
