"""Pictures of trained models, each a ``matplotlib.figure.Figure``: on light paper, or for a dark page with
``dark=True``."""

import math
import textwrap
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from vqct_plugin._drawing import COLORS, color_places, colors, in_two_dimensions, label_points, theme
from vqct_plugin.evaluation.figures import RunFigures

__all__ = ["draw_use", "draw_reconstructions"]

#: the difference that an error map shows in its brightest color, of values in [-1, 1], mean over the channels
BRIGHTEST_ERROR = 0.5
#: the smallest text of a chart of the page, in points: in charts of ``_SIZE`` inches, three side by side on a screen of
#: 1440 pixels, and on a phone, it is seen in more than 11 pixels
SMALLEST_TEXT = 10
_SIZE = (3.9, 2.9)
_LINE = 46  # letters of a title's line


def draw_comparison(
    originals: Tensor, reconstructions: Mapping[str, Tensor], evaluations: Mapping[str, RunFigures]
) -> Any:
    """Originals, each model's reconstructions below them, and at the bottom the use of each model's codebook.

    Args:
        originals: (N, 3, H, W) in [-1, 1].
        reconstructions: of each model by name, shaped as the originals.
        evaluations: of each model by name, see :func:`vqct_plugin.evaluation.evaluate`.

    Returns:
        A ``matplotlib.figure.Figure``.

    In the charts of use, the codes of one part stand side by side, the most used first; the height of a code is the
    share of choices it took, on a logarithmic scale, and a code never chosen has no bar.
    """
    from matplotlib.figure import Figure

    rows: List[Tuple[str, Tensor]] = [("original", originals), *reconstructions.items()]
    charts = [(name, part) for name, evaluation in evaluations.items() for part in evaluation.usage]
    number = originals.shape[0]
    figure = Figure(figsize=(1.3 * number, 1.38 * len(rows) + 2.6), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.38 * len(rows), 2.6])
    upper, lower = halves
    axes = upper.subplots(len(rows), number, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for line, (name, images) in zip(axes, rows):
        for axis, image in zip(line, images):
            axis.imshow(_to_picture(image), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(name, fontsize=10)
    chart_axes = lower.subplots(1, len(charts), sharey=True, squeeze=False)[0]
    lower.suptitle("Which codes are used: the share of choices each code took, the most used first", fontsize=10)
    for axis, (name, part) in zip(chart_axes, charts):
        _plot_use(axis, name, part, evaluations[name], COLORS[list(evaluations).index(name) % len(COLORS)], line=200)
    chart_axes[0].set_ylabel("share of choices")
    return figure


def _plot_use(axis: Any, name: str, part: str, evaluation: Any, color: str, line: int = _LINE) -> None:
    usage = evaluation.usage[part]
    own = evaluation.counts[evaluation.part_of_speech == list(evaluation.usage).index(part)]
    share = own.sort(descending=True)[0].double().numpy() / max(usage.tokens, 1)
    used = share[: usage.in_use]
    axis.fill_between(np.arange(len(used) + 1), np.append(used, used[-1:]), step="post", color=color, linewidth=0)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")  # not powers, whose exponents are tiny
    axis.set_xlim(0, usage.codes)
    axis.spines[["top", "right"]].set_visible(False)
    title = f"{name}: {usage.in_use:,} of {usage.codes:,} {make_plural(part)} in use ({usage.share:.0%})"
    axis.set_title(f"{textwrap.fill(title, line)}\nperplexity {usage.perplexity:.0f}", fontsize=SMALLEST_TEXT)
    axis.set_xlabel("code, by use")


def make_plural(part: str) -> str:
    """What the codes of a part are called together."""
    return "codes" if part in ("codes", "code", "joint") else f"{part}s"


def draw_use(name: str, part: str, evaluation: Any, color: int = 0, dark: bool = False) -> Any:
    """How often each code of a part was chosen, the most used first: the paper's Figure 5 for one part of one model.

    Args:
        name: of the model.
        part: a key of ``evaluation.usage``.
        evaluation: figures of ``evaluate`` or ``evaluate_runs``.
        color: which of the colors that tell models apart.
    """
    from matplotlib.figure import Figure

    with theme(dark):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axis = figure.subplots()
        _plot_use(axis, name, part, evaluation, colors(dark)[color % len(COLORS)])
        axis.set_ylabel("share of choices")
    return figure


def map_error(original: Tensor, reconstruction: Tensor) -> np.ndarray:
    """(H, W, 3) uint8: where a reconstruction differs from its original, black for not at all.

    The color is the absolute difference, the mean over the channels, brightest from ``BRIGHTEST_ERROR`` on.

    Args:
        original, reconstruction: (3, H, W) in [-1, 1].
    """
    from matplotlib import colormaps

    error = (original.float() - reconstruction.float().clamp(-1, 1)).abs().mean(dim=0) / BRIGHTEST_ERROR
    colored: np.ndarray = colormaps["inferno"](error.clamp(0, 1).cpu().numpy(), bytes=True)[..., :3]
    return colored


def compute_psnr(original: Tensor, reconstruction: Tensor) -> float:
    """PSNR in dB of one image, (3, H, W) in [-1, 1]; what the reconstruction has beyond is cut off. Infinite where
    nothing differs."""
    error = float(((original.double() - reconstruction.double().clamp(-1, 1)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(4 / error)


def draw_reconstructions(originals: Tensor, of_models: Mapping[str, Tensor], dark: bool = False) -> Any:
    """Originals, and each model's reconstructions with their error maps below them: the paper's Figure 4. Under each
    reconstruction stands its PSNR, and beside the error maps what their colors mean.

    Args:
        originals: (N, 3, H, W) in [-1, 1].
        of_models: name -> reconstructions, shaped as the originals.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    nothing = [""] * len(originals)
    rows: List[Tuple[str, List[np.ndarray], List[str]]] = [("original", [*map(_to_picture, originals)], nothing)]
    for name, images in of_models.items():
        below = [f"{compute_psnr(original, image):.1f} dB" for original, image in zip(originals, images)]
        rows.append((name, [_to_picture(image) for image in images], below))
        rows.append((f"{name}, error", [map_error(*pair) for pair in zip(originals, images)], nothing))
    number = len(originals)
    with theme(dark):
        figure = Figure(figsize=(1.4 * number + 1.0, 1.5 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), number, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
        for line, (name, pictures, texts) in zip(axes, rows):
            for axis, picture, text in zip(line, pictures, texts):
                axis.set_xlabel(text, fontsize=9)
                axis.imshow(picture, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[["left", "bottom"]].set_visible(False)
            line[0].set_ylabel(name, fontsize=9)
        if of_models:
            scale = ScalarMappable(Normalize(0, BRIGHTEST_ERROR), "inferno")
            bar = figure.colorbar(scale, ax=axes, location="right", shrink=0.5, aspect=30, extend="max")
            bar.set_label("absolute difference, of values from -1 to 1", fontsize=9)
            bar.outline.set_visible(False)
    return figure


def project(before: np.ndarray, after: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Words (n, d) before and codes (n, D) after transfer in two dimensions each, (n, 2), by t-SNE: words are near by
    their directions, codes by distance, as they are looked up."""
    return in_two_dimensions(before), in_two_dimensions(after, "euclidean")


def draw_words(
    points: np.ndarray,
    words: Sequence[str],
    title: str,
    colored_by: Optional[np.ndarray] = None,
    dark: bool = False,
) -> Any:
    """Words in two dimensions: a half of the paper's Figures 1 and 3, see :func:`project`.

    Args:
        points: (n, 2).
        words: n words, the important ones first: these get their names.
        title: what the plane shows.
        colored_by: (n, 2) the plane whose places give the colors, see :func:`vqct_plugin._drawing.color_places`; with
            the plane before for both, mixed colors after are words that changed their neighbors.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    color = color_places(points if colored_by is None else colored_by)
    with theme(dark):
        figure = Figure(figsize=(7.0, 6.6), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        edge = "#8A8F98"  # light colors on light paper, dark ones on dark, are seen by it
        axis.scatter(points[:, 0], points[:, 1], s=20, color=color, edgecolors=edge, linewidths=0.5)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.set_title(title, fontsize=11)
        figure.canvas.draw()  # labels can only keep out of each other's way where everything stands
        label_points(axis, words, size=SMALLEST_TEXT)
    return figure


def draw_moves(distance: np.ndarray, part_of_speech: np.ndarray, parts: Sequence[str], dark: bool = False) -> Any:
    """How many codes moved how far by transfer, see :func:`vqct_plugin.report.codespace.moved`."""
    from matplotlib.figure import Figure

    with theme(dark):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axis = figure.subplots()
        edges = np.linspace(0, max(float(np.quantile(distance, 0.995)), 1e-9), 41)
        for i, part in enumerate(parts):
            own = np.minimum(distance[part_of_speech == i], edges[-1])
            axis.hist(
                own,
                [float(edge) for edge in edges],
                histtype="step",
                linewidth=1.8,
                color=colors(dark)[i % len(COLORS)],
            )
            axis.plot([], [], color=colors(dark)[i % len(COLORS)], label=make_plural(part))
        axis.set_xlim(0, edges[-1])
        axis.set_xlabel("move, in the codebook's radius")
        axis.set_ylabel("codes")
        _set_legend(figure)
    return figure


def draw_step(steps: Mapping[str, Any], dark: bool = False) -> Any:
    """How far each code of each model moves in one step of training, the farthest first.

    Args:
        steps: name -> what :func:`vqct_plugin.report.codespace.one_step` gives.
    """
    from matplotlib.figure import Figure

    with theme(dark):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axis = figure.subplots()
        for i, (name, step) in enumerate(steps.items()):
            ranked = np.sort(step.distance)[::-1]
            ranked = ranked[ranked > 0]
            share = (np.arange(len(ranked)) + 1) / max(len(step.distance), 1)
            color = colors(dark)[i % len(COLORS)]
            label = f"{name}: {step.updated:,} of {len(step.distance):,}"
            axis.plot(np.append(0, share), np.append(ranked[:1], ranked), color=color, linewidth=1.8, label=label)
            if 0 < len(ranked) < len(step.distance):
                axis.plot(share[-1:], ranked[-1:], "o", color=color, markersize=4)
        _set_logarithmic(axis)
        axis.set_xlim(0, 1)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set_xlabel("share of the codebook")
        axis.set_ylabel("distance moved")
        _set_legend(figure)
    return figure


def draw_curve(
    curves: Mapping[str, Tuple[Sequence[float], Sequence[float]]],
    title: str,
    models: Optional[Mapping[str, int]] = None,
    log: bool = False,
    dark: bool = False,
) -> Any:
    """One figure of training over its steps.

    Args:
        curves: label -> (steps, values).
        title: what the values are.
        models: label -> which of the colors that tell models apart; curves of one model get dashes of their own.
        log: a logarithmic axis of values.
    """
    from matplotlib.figure import Figure

    dashes = ("-", "--", ":", "-.")
    seen: Dict[int, int] = {}
    with theme(dark):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axis = figure.subplots()
        for i, (label, (steps, values)) in enumerate(curves.items()):
            number = i if models is None else models[label]
            dash = dashes[seen.get(number, 0) % len(dashes)]
            seen[number] = seen.get(number, 0) + 1
            marker = "o" if len(steps) == 1 else None
            color = colors(dark)[number % len(COLORS)]
            axis.plot(steps, values, dash, color=color, linewidth=1.6, marker=marker, markersize=4, label=label)
        if log:
            _set_logarithmic(axis)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("step")
        _set_legend(figure)
    return figure


def _set_legend(figure: Any) -> None:
    """Below the axes, where it hides no line, one label a line; the figure grows by it."""
    axis = figure.axes[0]
    handles, labels = axis.get_legend_handles_labels()
    labels = [textwrap.fill(label, _LINE - 6) for label in labels]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure.set_size_inches(_SIZE[0], _SIZE[1] + 0.18 * lines)
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=SMALLEST_TEXT, labelspacing=0.3)


def _set_logarithmic(axis: Any) -> None:
    """A logarithmic axis of values that reads 0.01, 0.02, 0.05, ..."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _to_picture(image: Tensor) -> np.ndarray:
    unit = ((image.detach().float().cpu() + 1) / 2).clamp(0, 1)
    picture: np.ndarray = (unit.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return picture
