import numpy as np
import pytest

from tests.conftest import make_prior
from vqct_plugin.building.formats import BuildError
from vqct_plugin.prior import DEFAULT_FILE, CodebookPrior

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from vqct_plugin._drawing import _overlap, in_two_dimensions
from vqct_plugin.building.pictures import draw_prior, prior_figure


def test_labels_name_words_and_cover_no_other():
    figure = prior_figure(CodebookPrior.load(DEFAULT_FILE).select({"adjective": 60, "noun": 90}))
    renderer = figure.canvas.get_renderer()
    for axis, least in zip(figure.axes[:2], (30, 40)):
        boxes = [text.get_window_extent(renderer) for text in axis.texts]
        assert len(boxes) > least
        corners = [(box.x0, box.y0, box.x1, box.y1) for box in boxes]
        assert not any(_overlap(a, b) for i, a in enumerate(corners) for b in corners[:i])
    assert {"red", "black"} <= {text.get_text() for text in figure.axes[0].texts}


def test_words_alike_are_near_each_other_on_the_map():
    prior = CodebookPrior.load(DEFAULT_FILE).select({"adjective": 200, "noun": 1})
    points = in_two_dimensions(prior.vectors[:200])
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    colors = [prior.index(word, "adjective") for word in ("red", "blue", "yellow", "green", "black", "white")]
    assert apart[np.ix_(colors, colors)].mean() < 0.6 * apart.mean()


@pytest.mark.parametrize("n", [1, 2, 5, 11, 12, 40])
def test_few_words_are_no_error(n):
    points = in_two_dimensions(np.random.RandomState(0).randn(n, 4).astype(np.float32))
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()


def test_the_distributions_are_the_priors():
    prior = make_prior()
    counts, degrees = prior_figure(prior).axes[2:4]
    for number, part in enumerate(prior.parts):
        of_part = np.flatnonzero(prior.part_of_speech == number)
        seen = counts.lines[number].get_ydata().tolist()
        assert seen == sorted((int(c) for c in prior.count[of_part] if c), reverse=True)
        tied = [len(prior.neighbors(prior.words[i], part)) for i in of_part]
        assert degrees.lines[number].get_ydata().tolist() == sorted((d for d in tied if d), reverse=True)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".jpg"])
def test_a_picture_is_a_file_of_its_kind_and_the_same_each_time(tmp_path, suffix):
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".jpg": b"\xff\xd8"}
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        draw_prior(make_prior(), file)
    assert files[0].read_bytes().startswith(begins[suffix])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_existing_picture_and_another_kind_are_refused(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(BuildError, match="exists; pass force=True"):
        draw_prior(make_prior(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "mine"
    draw_prior(make_prior(), tmp_path / "a.png", overwrite=True)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(BuildError, match=r"expected a name that ends in \.png"):
        draw_prior(make_prior(), tmp_path / "a.txt")
