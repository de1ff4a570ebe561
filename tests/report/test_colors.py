"""Colors that mean something can be told apart, also by those who do not tell red from green."""

import re
from colorsys import hls_to_rgb
from pathlib import Path

import numpy as np
import pytest

from tests.report.sight import SIGHTS, measure_least, parse, see
from vqct_plugin._drawing import COLORS, ON_DARK, color_places, format_colors
from vqct_plugin.report import page
from vqct_plugin.runs.words import color_codes

CSS = (Path(page.__file__).parent / "page.css").read_text(encoding="utf-8")
OF_RUNS = np.array(re.findall(r"--run\d: (#[0-9a-f]{6})", CSS)).reshape(2, 4)  # on light, on dark
TOLD_APART = 15  # in CIELAB, where 2 or 3 can just be seen side by side


def grid(n):
    return np.array([[i, j] for i in range(n) for j in range(n)], dtype=float)


def test_the_measure_finds_colors_that_look_alike():
    """A circle of hues, which maps had once: some of it is one color without red and green. Grays are gray to all."""
    hues = [hls_to_rgb(i / 12, 0.55, 0.7) for i in range(12)]
    assert measure_least(hues, "full") > TOLD_APART
    assert measure_least(hues, "protanopia") < 6
    assert measure_least(hues, "deuteranopia") < 6
    grays = np.repeat(np.linspace(0.1, 1, 5)[:, None], 3, axis=1)
    for sight in SIGHTS:
        assert see(grays, sight) == pytest.approx(see(grays, "full"), abs=0.1)


@pytest.mark.parametrize("sight", SIGHTS)
def test_codes_that_are_far_apart_have_colors_that_are(sight):
    assert measure_least(color_places(grid(4)), sight) > TOLD_APART
    vectors = np.random.RandomState(0).randn(2, 6)
    codes = grid(4) * [3, 1] @ vectors  # a plane in a space of six dimensions, longer one way
    colors = color_codes(codes, np.zeros(16, dtype=int))
    assert measure_least([parse(color) for color in colors], sight) > TOLD_APART / 3


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("colors", [COLORS, ON_DARK, *OF_RUNS], ids=["charts", "dark charts", "page", "dark page"])
def test_models_are_told_apart(colors, sight):
    assert measure_least([parse(color) for color in colors], sight) > TOLD_APART


def test_colors_are_written_as_pages_read_them():
    assert format_colors(np.array([[0, 0.5, 1]])) == ["#0080ff"]
    assert color_places(np.zeros((1, 2))).shape == (1, 3)
