"""Pictures of trained models: reconstructions beside originals, and the use of every code."""

from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from vqct_plugin.evaluation.metrics import Evaluation

# One colour a model, told apart also by those who do not tell red from green (Okabe and Ito 2008).
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")


def comparison(originals: Tensor, reconstructions: Mapping[str, Tensor], evaluations: Mapping[str, Evaluation]) -> Any:
    """Originals, each model's reconstructions below them, and at the bottom the use of each model's codebook.

    Args:
        originals: (N, 3, H, W) in [-1, 1].
        reconstructions: of each model by name, shaped as the originals.
        evaluations: of each model by name, see :func:`vqct_plugin.evaluation.metrics.evaluate`.

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
            axis.imshow(_as_picture(image), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(name, fontsize=10)
    chart_axes = lower.subplots(1, len(charts), sharey=True, squeeze=False)[0]
    lower.suptitle("Which codes are used: the share of choices each code took, the most used first", fontsize=10)
    for axis, (name, part) in zip(chart_axes, charts):
        _draw_use(axis, name, part, evaluations[name], COLOURS[list(evaluations).index(name) % len(COLOURS)])
    chart_axes[0].set_ylabel("share of choices")
    return figure


def _draw_use(axis: Any, name: str, part: str, evaluation: Evaluation, colour: str) -> None:
    usage = evaluation.usage[part]
    own = evaluation.counts[evaluation.part_of_speech == list(evaluation.usage).index(part)]
    share = own.sort(descending=True)[0].double().numpy() / max(usage.tokens, 1)
    used = share[: usage.in_use]
    axis.fill_between(np.arange(len(used) + 1), np.append(used, used[-1:]), step="post", color=colour)
    axis.set_yscale("log")
    axis.set_xlim(0, usage.codes)
    axis.spines[["top", "right"]].set_visible(False)
    label = part if part == "codes" else f"{part}s"
    axis.set_title(
        f"{name}: {usage.in_use:,} of {usage.codes:,} {label} in use ({usage.share:.0%})\nperplexity "
        f"{usage.perplexity:.0f}",
        fontsize=9,
    )
    axis.set_xlabel("code, by use")


def _as_picture(image: Tensor) -> np.ndarray:
    unit = ((image.detach().float().cpu() + 1) / 2).clamp(0, 1)
    picture: np.ndarray = (unit.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return picture


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of one set of columns as a Markdown table, its columns aligned for a terminal too."""
    columns = list(rows[0])
    width: Dict[str, int] = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    lines = ["| " + " | ".join(c.ljust(width[c]) for c in columns) + " |"]
    lines.append("|" + "|".join("-" * (width[c] + 2) for c in columns) + "|")
    lines += ["| " + " | ".join(row[c].ljust(width[c]) for c in columns) + " |" for row in rows]
    return "\n".join(lines)
