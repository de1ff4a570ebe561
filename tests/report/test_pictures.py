"""The table's columns stand under each other; the picture shows what it is given."""

import io
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from vqct_plugin._drawing import _overlap
from vqct_plugin.evaluation.tables import format_table
from vqct_plugin.report import pictures
from vqct_plugin.report.embedding import DPI, LEGIBLE, embed_chart, measure_text
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


NAME = "2026-11-23T12-00-00_a_run_whose_name_is_long_as_vqct-train_makes_them"


def make_charts():
    """One of each kind that a page has, with names that are long."""
    ours = evaluation([0, 1, 1, 2, 4, 5], [0, 0, 0, 1, 1, 1, 1], ("adjective", "noun"))
    random = np.random.RandomState(0)
    step = SimpleNamespace(distance=random.rand(50), updated=50)
    curve = ([1, 2, 3], [0.5, 0.2, 0.03])
    return {
        "use": lambda dark: pictures.draw_use(NAME, "noun", ours, 0, dark),
        "moves": lambda dark: pictures.draw_moves(random.rand(50), np.repeat([0, 1], 25), ["adjective", "noun"], dark),
        "step": lambda dark: pictures.draw_step({NAME: step, "stock": step}, dark),
        "curve": lambda dark: pictures.draw_curve(
            {f"{NAME}, validation": curve}, "reconstruction loss", None, True, dark
        ),
    }


@pytest.mark.parametrize("kind", ["use", "moves", "step", "curve"])
def test_text_of_charts_is_legible_where_three_stand_side_by_side(kind, tmp_path):
    """Of all text that is drawn, exponents too, and inside of the figure."""
    draw = make_charts()[kind]
    chart = embed_chart(draw, "of a test", tmp_path / "a.png")
    assert chart["least"] <= 320  # pixels of a page: a phone's, and a third of a wide page
    figure = draw(False)
    figure.canvas.draw()
    assert measure_text(figure) * 320 / (figure.get_size_inches()[0] * 72) >= LEGIBLE
    texts = [t for t in figure.findobj(lambda it: hasattr(it, "get_fontsize")) if t.get_visible() and t.get_text()]
    assert not any("^" in text.get_text() for text in texts)
    for text in figure.legends[0].get_texts() if figure.legends else [figure.axes[0].title]:
        box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.x1 <= figure.bbox.width, text


@pytest.mark.parametrize("words", [150, 400])
def test_names_on_a_plane_do_not_collide(words):
    """As the file is written, which has more pixels than the figure that was laid out."""
    points = np.random.RandomState(0).randn(words, 2)
    figure = pictures.draw_words(points, [f"word{i}" for i in range(words)], "Nouns in the codebook")
    figure.set_dpi(DPI)
    figure.savefig(io.BytesIO(), dpi=DPI)
    axis = figure.axes[0]
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) > 60
    corners = [(box.x0, box.y0, box.x1, box.y1) for box in boxes]
    assert not any(_overlap(a, b) for a, b in itertools.combinations(corners, 2))
    inside = axis.get_window_extent()
    assert all(box.x0 >= inside.x0 - 1 and box.x1 <= inside.x1 + 1 for box in boxes)
    assert axis.texts[0].get_text() == "word0"  # the most used


def test_psnr_is_that_of_scikit_image_and_stands_under_each_reconstruction():
    metrics = pytest.importorskip("skimage.metrics")
    torch.manual_seed(0)
    originals = torch.rand(3, 3, 8, 8) * 2 - 1
    found = originals + 0.2 * torch.randn(3, 3, 8, 8)
    expected = [
        metrics.peak_signal_noise_ratio(a.double().numpy(), b.double().clamp(-1, 1).numpy(), data_range=2)
        for a, b in zip(originals, found)
    ]
    assert [pictures.compute_psnr(a, b) for a, b in zip(originals, found)] == pytest.approx(expected)
    assert pictures.compute_psnr(originals[0], originals[0]) == math.inf
    figure = pictures.draw_reconstructions(originals, {"VQCT": found})
    below = [axis.get_xlabel() for axis in figure.axes[3:6]]
    assert below == [f"{value:.1f} dB" for value in expected]
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "absolute difference, of values from -1 to 1"
    assert bar.get_ylim() == (0, pictures.BRIGHTEST_ERROR)
