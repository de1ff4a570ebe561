"""The table's columns stand under each other; the picture shows what it is given."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from vqct_plugin.evaluation.tables import format_table
from vqct_plugin.report.pictures import draw_comparison
from vqct_plugin.usage import CodebookUsage


def evaluation(indices, part_of_speech, parts):
    usage = CodebookUsage(part_of_speech, parts)
    usage.update(torch.tensor(indices))
    return SimpleNamespace(usage=usage.compute(), counts=usage.total_counts(), part_of_speech=usage.part_of_speech)


@pytest.fixture
def figure():
    torch.manual_seed(0)
    originals = torch.rand(3, 3, 8, 8) * 2 - 1
    stock = evaluation([0, 0, 0, 5], [0] * 9, ("codes",))
    ours = evaluation([0, 1, 1, 2, 4, 5], [0, 0, 0, 1, 1, 1, 1], ("adjective", "noun"))
    reconstructions = {"stock": -originals, "VQCT": originals}
    return draw_comparison(originals, reconstructions, {"stock": stock, "VQCT": ours}), originals


def test_rows_are_the_original_and_each_model(figure):
    figure, originals = figure
    shown = [axis for axis in figure.get_axes() if axis.images]
    assert len(shown) == 9
    first = np.asarray(shown[0].images[0].get_array())
    assert np.array_equal(first, ((originals[0].permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8))
    negative = np.asarray(shown[3].images[0].get_array()).astype(int)
    assert np.abs(first.astype(int) + negative - 255).max() <= 1


def test_each_part_has_its_chart_with_its_share(figure):
    charts = [axis for axis in figure[0].get_axes() if not axis.images]
    titles = [chart.get_title() for chart in charts]
    assert titles[0].startswith("stock: 2 of 9 codes in use (22%)")
    assert titles[1].startswith("VQCT: 3 of 3 adjectives in use (100%)")
    assert titles[2].startswith("VQCT: 2 of 4 nouns in use (50%)")
    assert [chart.get_xlim() for chart in charts] == [(0, 9), (0, 3), (0, 4)]
    heights = charts[0].collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(0.75)


def test_the_figure_can_be_drawn(figure):
    file = io.BytesIO()
    figure[0].savefig(file, format="png")
    assert file.getvalue()[:4] == b"\x89PNG"


def test_a_table_in_markdown():
    assert format_table([{"model": "stock", "PSNR": "18 dB"}, {"model": "VQCT", "PSNR": "20.1 dB"}]) == (
        "| model | PSNR    |\n|-------|---------|\n| stock | 18 dB   |\n| VQCT  | 20.1 dB |"
    )
