"""What pictures of words and codes have in common: colors, light and dark, points in a plane with their names."""

from contextlib import contextmanager
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np

# Told apart also by those who do not tell red from green (Okabe and Ito 2008); the second row on a dark ground.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
ON_DARK = ("#F28A46", "#56B4E9", "#2FC79A", "#E39CC6")
# A plane of colors by its corners: from blue to orange one way and from dark to light the other, which those who do not
# tell red from green see as well as anybody.
_CORNERS = ("#1A2A9E", "#8F2F00", "#86D0FF", "#FFE066")
_FEW = 12  # words too few for t-SNE to find a neighborhood
_BESIDE = (("left", (2, 1)), ("right", (-2, 1)))  # how a label is aligned, and its offset from its point
_AROUND = 1.0  # pixels kept free around a label


def colors(dark: bool = False) -> Tuple[str, ...]:
    """One color for each model or part of speech, in order."""
    return ON_DARK if dark else COLORS


def color_places(points: np.ndarray) -> np.ndarray:
    """(n, 2) points -> (n, 3) RGB in [0, 1]: points near each other have like colors.

    Each axis is taken by ranks, so that all of the colors are used, and any two of different places can be told apart
    without telling red from green.
    """
    x, y = (_rank(points[:, i])[:, None] for i in range(2))
    left, right, upper_left, upper_right = (
        np.array([int(corner[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for corner in _CORNERS
    )
    found: np.ndarray = (1 - y) * ((1 - x) * left + x * right) + y * ((1 - x) * upper_left + x * upper_right)
    return found


def format_colors(rgb: np.ndarray) -> List[str]:
    """(n, 3) RGB in [0, 1] as ``#rrggbb``."""
    return ["#" + "".join(f"{round(255 * float(channel)):02x}" for channel in row) for row in rgb]


def _rank(values: np.ndarray) -> np.ndarray:
    """0 for the smallest, 1 for the largest."""
    ranks: np.ndarray = np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(len(values) - 1, 1)
    return ranks


@contextmanager
def theme(dark: bool = False) -> Iterator[None]:
    """Within: figures whose text and axes can be read on a light or on a dark page, on a transparent ground."""
    from matplotlib import rc_context

    ink, faint = ("#ECEAE4", "#8A8F98") if dark else ("#1E2126", "#70757D")
    with rc_context(
        {
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": faint,
            "axes.titlecolor": ink,
            "xtick.color": faint,
            "ytick.color": faint,
            "xtick.labelcolor": ink,
            "ytick.labelcolor": ink,
            "grid.color": faint,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        yield


def in_two_dimensions(vectors: np.ndarray, metric: str = "cosine") -> np.ndarray:
    """(n, d) vectors -> (n, 2) points: t-SNE of their distances, or principal components where there are few of them.

    ``metric``: ``"cosine"``, of directions, or ``"euclidean"``.
    """
    exact = vectors.astype(np.float64)
    if metric == "cosine":
        exact /= np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    n = len(exact)
    if n < _FEW:
        points = np.zeros((n, 2))
        if n > 1:
            from sklearn.decomposition import PCA

            found = PCA(min(2, n, exact.shape[1])).fit_transform(exact)
            points[:, : found.shape[1]] = found
        return points
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (n - 1) / 3)
    start = "pca" if exact.shape[1] > 1 else "random"
    points = TSNE(2, perplexity=perplexity, metric=metric, init=start, random_state=0).fit_transform(exact)
    return np.asarray(points, dtype=np.float64)


def label_points(axis: Any, words: Sequence[str], size: float = 7) -> List[str]:
    """Write words beside the points of an axis' first scatter, the first ones first, each where it covers no other: to
    the right of its point, or to the left.

    The figure has to have been drawn, so that everything stands where it will. Returns the words that were written.
    """
    renderer = axis.figure.canvas.get_renderer() if hasattr(axis.figure, "canvas") else None
    frame = axis.get_window_extent(renderer)
    taken: List[Tuple[float, float, float, float]] = []
    written = []
    for word, place in zip(words, axis.collections[0].get_offsets()):
        text = axis.annotate(word, place, xytext=(2, 1), textcoords="offset points", fontsize=size)
        text.set_in_layout(False)  # none leaves the axis, and hundreds of them would keep the layout busy
        for side, offset in _BESIDE:
            text.set_ha(side)
            text.xyann = offset
            box = text.get_window_extent(renderer)
            corners = (box.x0 - _AROUND, box.y0 - _AROUND, box.x1 + _AROUND, box.y1 + _AROUND)
            inside = box.x0 >= frame.x0 and box.y0 >= frame.y0 and box.x1 <= frame.x1 and box.y1 <= frame.y1
            if inside and not any(_overlap(corners, other) for other in taken):
                taken.append(corners)
                written.append(word)
                break
        else:
            text.remove()
    return written


def _overlap(a: Tuple[float, float, float, float], b: Tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
