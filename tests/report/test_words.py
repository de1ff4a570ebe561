"""Codes of images, and the words that tell images apart."""

import math
import re

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
from tests.conftest import make_prior
from tests.evaluation.test_metrics import Model
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.report.words import count_each_image, encode_images, find_commonest, find_telling
from vqct_plugin.runs.words import color_codes, list_words


def test_telling_words_are_those_of_the_contingency_table():
    """The log-likelihood ratio by scipy's test of a 2 x 2 table; of what is the rarer in a set, nothing."""
    stats = pytest.importorskip("scipy.stats")
    counts = np.random.RandomState(0).poisson(3, (4, 30)) + np.eye(4, 30, 2) * 12
    found = find_telling(counts, 5)
    for own, row in zip(counts, found):
        scores = []
        for code in range(30):
            others = counts[:, code].sum() - own[code]
            rest = own.sum() - own[code]
            remaining = counts.sum() - counts[:, code].sum() - rest
            poisson = stats.power_divergence(
                [own[code], others],
                np.array([own.sum(), counts.sum() - own.sum()]) * counts[:, code].sum() / counts.sum(),
                lambda_="log-likelihood",
            )[0]
            more = own[code] * (others + remaining) > others * (own[code] + rest)
            scores.append(poisson if more else 0.0)
        order = np.lexsort((np.arange(30), -np.array(scores)))[:5]
        assert [code for code, _ in row] == [int(i) for i in order if scores[i] > 0]
        for code, score in row:
            assert score == pytest.approx(scores[code])
    for i in range(4):
        assert found[i][0][0] == i + 2  # where twelve were added


def test_sets_that_are_alike_or_alone_have_nothing_to_tell():
    assert find_telling(np.ones((3, 5))) == [[], [], []]
    assert find_telling(np.array([[3, 1]])) == [[]]
    assert find_telling(np.array([[0, 0], [2, 1]])) == [[], []]


@pytest.mark.parametrize("options", [{}, {"topk": 2}, {"parts_of_speech": "joint"}])
def test_codes_stand_where_they_were_chosen(options):
    quantizer = CodebookTransferQuantizer(40, 8, prior=make_prior(), **options)
    model = Model(quantizer).train()
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    found = encode_images(model, images, batch_size=2)
    assert model.training
    model.eval()
    quantized, _, (_, _, _indices) = model.encode(images)
    t = quantizer.tokens_per_position
    assert found.codes.shape == (5, t, 4, 4)
    assert torch.equal(quantizer.get_codebook_entry(found.codes.reshape(-1), (5, 4, 4, 8)), quantized)
    counts = count_each_image(found.codes, 40)
    assert counts.sum() == 5 * t * 16
    assert counts[2, 7] == (found.codes[2] == 7).sum()


def test_large_images_are_encoded_in_tiles():
    model = Model(CodebookTransferQuantizer(40, 8, prior=make_prior())).eval()
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    found = encode_images(model, images, tile=16)
    assert found.codes.shape == (2, 2, 8, 12)
    one = encode_images(model, images[:, :, 16:, 16:32])
    assert torch.equal(found.codes[:, :, 4:, 4:8], one.codes)
    assert torch.equal(found.reconstructions[:, :, 16:, 16:32], one.reconstructions)
    with pytest.raises(ValueError, match="expected multiples of the tile's side, 20"):
        encode_images(model, images, tile=20)


@pytest.mark.parametrize("transfer", ["table", {"target": "averages", "params": {"arrange_steps": 0}}])
def test_codes_that_no_word_arranged_are_called_by_their_numbers(transfer):
    quantizer = CodebookTransferQuantizer(40, 8, prior=make_prior(), transfer=transfer)
    words, parts, _ = list_words(quantizer)
    assert (words[:2], len(words), tuple(parts)) == (["code 0", "code 1"], 40, quantizer.parts)


def test_stock_codes_are_called_by_their_numbers():
    quantize = pytest.importorskip("taming.modules.vqvae.quantize")
    words, parts, part_of_speech = list_words(quantize.VectorQuantizer2(3, 4, 0.25))
    assert (words, parts, part_of_speech.tolist()) == (["code 0", "code 1", "code 2"], ["code"], [0, 0, 0])
    quantizer = CodebookTransferQuantizer(40, 8, prior=make_prior())
    words, parts, part_of_speech = list_words(quantizer)
    assert (words, tuple(parts)) == (quantizer.words, quantizer.parts)
    assert part_of_speech.tolist() == quantizer.part_of_speech.tolist()


def test_like_codes_have_like_colors():
    angle = np.linspace(0, 2 * math.pi, 30, endpoint=False)
    circle = np.column_stack([np.cos(angle), np.sin(angle), 0.01 * np.random.RandomState(0).randn(30)])
    colors = color_codes(circle, np.zeros(30, dtype=int))
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors)
    rgb = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors], dtype=float)
    middle = rgb - rgb.mean(axis=0)
    across = (middle * np.roll(middle, 15, axis=0)).sum() / (middle**2).sum()
    beside = (middle * np.roll(middle, 1, axis=0)).sum() / (middle**2).sum()
    assert beside > 0.8
    assert across < -0.5


def test_the_commonest_of_each_part_are_in_use():
    assert find_commonest([5, 0, 9, 1, 0, 0], np.array([0, 0, 0, 1, 1, 1]), 2) == [2, 0, 3]


def test_words_of_indices_are_nested_like_them():
    quantizer = CodebookTransferQuantizer(40, 8, prior=make_prior(), sane_index_shape=True)
    _, _, (_, _, indices) = quantizer(torch.randn(2, 8, 3, 4))
    named = quantizer.words_of(indices)
    assert np.array(named).shape == (2, 2, 3, 4)
    assert named[1][1][2][3] == quantizer.words[indices[1, 1, 2, 3]]
    assert set(np.array(named)[:, 0].ravel()) <= set(quantizer.words[: quantizer.slices[0].last])
    assert quantizer.words_of(torch.tensor(3)) == quantizer.words[3]
    assert quantizer.words_of(torch.zeros(0, dtype=torch.long)) == []
    for bad, sentence in (
        (torch.tensor([40]), "run from 40 to 40; expected 0 to 39"),
        (torch.rand(2), "expected integ"),
    ):
        with pytest.raises(ValueError, match=sentence):
            quantizer.words_of(bad)


def test_words_of_remapped_indices(tmp_path):
    np.save(tmp_path / "used.npy", np.array([5, 3, 30]))
    quantizer = CodebookTransferQuantizer(
        40, 8, remap=str(tmp_path / "used.npy"), prior=make_prior(), parts_of_speech="joint"
    )
    assert quantizer.words_of(torch.tensor([1, 0, 2])) == [quantizer.words[i] for i in (3, 5, 30)]
