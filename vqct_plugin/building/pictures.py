"""A picture of a prior: its words in two dimensions, as in the paper's Figure 1, and how common they are."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from vqct_plugin._drawing import COLORS, in_two_dimensions, label_points
from vqct_plugin._files import write_whole
from vqct_plugin.building.captions import PathLike
from vqct_plugin.building.formats import BuildError
from vqct_plugin.prior import CodebookPrior

FORMATS = (".png", ".pdf", ".svg", ".jpg")
_ON_MAP = 600  # the commonest words of each part; more would be a cloud


def check_picture(path: PathLike) -> None:
    """Refuse before the long work what could not be drawn after it."""
    if Path(path).suffix.lower() not in FORMATS:
        raise BuildError(f"picture {path}: expected a name that ends in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise BuildError(f"{error}; a picture needs it: pip install 'vqct-plugin[pictures]'") from error


def draw_prior(prior: CodebookPrior, path: PathLike, overwrite: bool = False) -> None:
    """Draw a prior into a file, written whole or not at all.

    Above, for each part of speech, its 600 commonest words in two dimensions by t-SNE of their vectors' cosines, those
    labeled that can be read, the commonest first. Below, for each part, how often each word was seen and how many
    edges it has, the most first, both axes logarithmic.
    """
    check_picture(path)
    from matplotlib import rc_context

    figure = prior_figure(prior)
    data = io.BytesIO()
    suffix = Path(path).suffix.lower()
    stamps = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same prior gives the same picture
    with rc_context({"svg.hashsalt": "vqct_plugin"}):
        figure.savefig(data, format=suffix[1:], dpi=150, metadata=stamps.get(suffix))
    try:
        write_whole(Path(path), data.getvalue(), overwrite)
    except FileExistsError:
        raise BuildError(f"picture {path} exists; pass force=True to replace it") from None
    except OSError as error:
        raise BuildError(f"could not write the picture to {path}: {error}") from error


def prior_figure(prior: CodebookPrior) -> Any:
    """The picture, a ``matplotlib.figure.Figure``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(9 * len(prior.parts), 12), 14), layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(2, 1, height_ratios=[10, 4])
    maps = halves[0].subplots(1, len(prior.parts), squeeze=False)[0]
    figure.suptitle(prior.describe(), fontsize=10)
    for number, (axis, part) in enumerate(zip(maps, prior.parts)):
        places = np.flatnonzero(prior.part_of_speech == number)[:_ON_MAP]
        shown = "" if len(places) == prior.sizes[part] else f", the {len(places):,} commonest"
        axis.set_title(f"{prior.sizes[part]:,} {part}s{shown}", color=COLORS[number % len(COLORS)])
        points = in_two_dimensions(prior.vectors[places])
        axis.scatter(*points.T, s=5, color=COLORS[number % len(COLORS)], alpha=0.5, linewidths=0)
        axis.set_xticks([])
        axis.set_yticks([])
    counts, degrees = halves[1].subplots(1, 2)
    degree = np.bincount(prior.edges.reshape(-1), minlength=len(prior))
    for number, part in enumerate(prior.parts):
        of_part = prior.part_of_speech == number
        for axis, values in ((counts, prior.count), (degrees, degree)):
            ranked = np.sort(values[of_part])[::-1]
            ranked = ranked[ranked > 0]
            axis.loglog(np.arange(1, len(ranked) + 1), ranked, color=COLORS[number % len(COLORS)], label=f"{part}s")
    counts.set_title("times seen, the commonest word first")
    degrees.set_title("edges of a word, the most tied first")
    for axis in (counts, degrees):
        axis.set_xlabel("word, by rank")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.canvas.draw()  # where everything stands has to be known before labels can keep out of each other's way
    for number, (axis, _) in enumerate(zip(maps, prior.parts)):
        places = np.flatnonzero(prior.part_of_speech == number)[:_ON_MAP]
        label_points(axis, [prior.words[i] for i in places])
    return figure
