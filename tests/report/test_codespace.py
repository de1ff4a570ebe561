"""Neighbors, moves and one step of training, against what they are by other means."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
from tests.conftest import make_prior
from vqct_plugin.prior import CodebookPrior
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.report.codespace import (
    find_neighbors,
    get_codebook,
    get_word_vectors,
    measure_moves,
    rank_moves,
    share_kept,
    take_step,
)

PARTS = np.repeat([0, 1], [15, 25])


@pytest.fixture
def vectors():
    return np.random.RandomState(0).randn(40, 6).astype(np.float32)


def test_the_nearest_are_those_of_scikit_learn(vectors):
    neighbors = pytest.importorskip("sklearn.neighbors")
    for metric in ("cosine", "euclidean"):
        found = find_neighbors(vectors, PARTS, 5, metric)
        for part in (0, 1):
            places = np.flatnonzero(part == PARTS)
            own = vectors[places]
            expected = neighbors.NearestNeighbors(n_neighbors=6, metric=metric).fit(own).kneighbors(own)[1][:, 1:]
            assert np.array_equal(found[places], places[expected])


def test_a_part_of_few_codes_has_few_neighbors(vectors):
    found = find_neighbors(vectors[:5], np.array([0, 0, 0, 1, 1]), 4, "euclidean")
    assert ((found >= 0).sum(axis=1) == [2, 2, 2, 1, 1]).all()
    assert found[3, 0] == 4


def test_neighbors_kept_counts_the_common_ones():
    before = np.array([[1, 2, 3], [0, 2, 3], [1, -1, -1]])
    after = np.array([[3, 1, 9], [7, 8, 9], [1, -1, -1]])
    assert share_kept(before, after) == pytest.approx([2 / 3, 0, 1])


def test_what_moves_all_alike_moves_none(vectors):
    """Shifted, turned, mirrored, scaled: no code has moved; one that was pushed away has, and no other as far."""
    random = np.random.RandomState(1)
    turn, _ = np.linalg.qr(random.randn(6, 6))
    after = 0.3 * vectors @ turn + random.randn(6)
    assert measure_moves(vectors, after) == pytest.approx(np.zeros(40), abs=1e-5)
    after[7] += 3 * np.linalg.norm(after - after.mean(axis=0), axis=1).max()
    distance = measure_moves(vectors, after)
    assert distance.argmax() == 7
    assert distance[7] > 2 * np.delete(distance, 7).max()


def test_moves_are_those_of_scipys_procrustes(vectors):
    spatial = pytest.importorskip("scipy.spatial")
    after = np.random.RandomState(2).randn(40, 6)
    distance = measure_moves(vectors, after)
    theirs, ours, _ = spatial.procrustes(after, vectors)  # both of Frobenius norm 1: the radius is 1 / sqrt(40)
    assert distance == pytest.approx(np.linalg.norm(theirs - ours, axis=1) * np.sqrt(40), rel=1e-5)


def test_more_dimensions_before_are_reduced_to_the_codes(vectors):
    wide = np.random.RandomState(3).randn(40, 2) @ np.random.RandomState(4).randn(2, 30)
    plane = wide @ np.linalg.svd(wide - wide.mean(0), full_matrices=False)[2][:2].T
    assert measure_moves(wide, plane) == pytest.approx(np.zeros(40), abs=1e-5)
    assert measure_moves(plane, np.pad(plane, ((0, 0), (0, 3)))) == pytest.approx(np.zeros(40), abs=1e-5)
    least, most = rank_moves(np.arange(40.0), PARTS, 2)[1]
    assert (least, most) == ([15, 16], [39, 38])


def test_words_vectors_are_the_priors():
    whole = CodebookPrior.load()
    quantizer = CodebookTransferQuantizer(300, 8)
    vectors = get_word_vectors(quantizer)
    for i in (0, 150, 299):
        part = quantizer.parts[quantizer.part_of_speech[i]]
        assert np.array_equal(vectors[i], whole.vectors[whole.index(quantizer.words[i], part)].astype(np.float32))


class Model(torch.nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantize = quantizer
        self.encoder = torch.nn.Conv2d(3, 8, 4, 4)
        self.quant_conv = torch.nn.Identity()


def test_one_step_moves_all_transferred_codes_and_of_a_table_those_chosen():
    """The paper's point, by the gradient as a second method; the model itself stays as it was."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    for transfer in ("graph", "table"):
        quantizer = CodebookTransferQuantizer(40, 8, prior=make_prior(), transfer=transfer, dropout=0.0)
        model = Model(quantizer).eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        step = take_step(model, images, 1e-3)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not model.training
        assert all(p.grad is None for p in model.parameters())
        with torch.no_grad():
            z = model.encoder(images)
        _, loss, (_, _, indices) = quantizer(z)
        chosen = np.zeros(40, dtype=bool)
        chosen[indices.numpy()] = True
        assert np.array_equal(step.chosen, chosen)
        assert 0 < chosen.sum() < 40
        if transfer == "table":
            assert np.array_equal(step.distance > 0, chosen)
            loss.backward()
            assert np.array_equal((quantizer.transfer.table.weight.grad != 0).any(dim=1).numpy(), chosen)
            assert step.distance[chosen] == pytest.approx(np.full(chosen.sum(), 1e-3 * 2), rel=1e-2)  # Adam: 4 channels
        else:
            assert step.updated == 40


def test_the_stock_quantizers_codebook_is_found():
    quantize = pytest.importorskip("taming.modules.vqvae.quantize")
    stock = quantize.VectorQuantizer2(40, 8, 0.25)
    assert torch.equal(get_codebook(stock), stock.embedding.weight)
    step = take_step(Model(stock), torch.rand(1, 3, 8, 8))
    assert np.array_equal(step.distance > 0, step.chosen)
    assert step.updated <= 4
