"""The sections of the page: what each shows, as the template ``page.html`` takes it."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from vqct_plugin._drawing import color_places, format_colors
from vqct_plugin._version import __version__
from vqct_plugin.evaluation.figures import RunFigures
from vqct_plugin.evaluation.rates import describe_rate, label_rate
from vqct_plugin.evaluation.tables import list_notes, make_difference_rows, make_rows
from vqct_plugin.report import pictures
from vqct_plugin.report.codespace import (
    Step,
    find_neighbors,
    get_codebook,
    get_word_vectors,
    measure_moves,
    rank_moves,
    share_kept,
    take_step,
)
from vqct_plugin.report.curves import Curve, find_first
from vqct_plugin.report.embedding import DPI, embed_chart, embed_image, embed_pixels
from vqct_plugin.report.words import Tokens, find_commonest
from vqct_plugin.runs.health import judge_usage
from vqct_plugin.runs.load import Trained
from vqct_plugin.runs.words import has_words

_NEIGHBORS = 10
_ON_MAP = 400  # codes of a part on a map of the code space
_EXAMPLES = 6  # images with reconstructions; all of them have a word map
_GRADES = ("collapsed", "partly dead", "too few images", "alive")
_HEADLINE = {
    "collapsed": "The codebook has collapsed",
    "partly dead": "Part of the codebook is dead",
    "too few images": "Too few images to judge",
    "alive": "The codebook is alive",
}
_CURVES = (
    ("reconstruction", "reconstruction loss", True),
    ("in_use", "share of codes in use", False),
    ("perplexity", "perplexity", True),
)


class ReportedRun(NamedTuple):
    """A run and all that the page says of it."""

    figures: RunFigures
    trained: Trained
    tokens: Tokens
    words: List[str]
    parts: List[str]
    part_of_speech: np.ndarray
    curves: Dict[str, Curve]

    @property
    def name(self) -> str:
        return self.figures.name

    @property
    def label(self) -> str:
        """The name with the bits that the run spends on an image: no figure of it is read without them."""
        return label_rate(self.figures)


class Page:
    """The runs and the images that a page shows.

    Args:
        folder: where its pictures go.
        images: (N, 3, H, W) in [-1, 1].
        names: of each image, a path where it has one.
        tile: the side of the squares in which the models get them.
        models: the runs.
        words: whose neighbors to show; the most used where there are none.
    """

    def __init__(
        self,
        folder: Path,
        images: Tensor,
        names: Sequence[str],
        tile: int,
        models: Sequence[ReportedRun],
        words: Sequence[str],
    ) -> None:
        self.folder, self.images, self.tile, self.models, self.words = folder, images, tile, models, words
        self.names, self.sets = [Path(name).name for name in names], group_images(names)

    def draw(self, name: str, alt: str, draw: Any) -> Dict[str, Any]:
        """A chart for light and for dark; the light one is also a file of this name."""
        return embed_chart(draw, alt, self.folder / f"{name}.png")


def fill_sections(page: Page) -> Dict[str, Any]:
    """Everything that the template wants, by its names; ``planes`` of ``space`` are for the script, see
    :func:`vqct_plugin.report.explorer.make_data`."""
    space: List[Dict[str, Any]] = []
    for its in page.models:
        if has_words(its.trained.model.quantize):
            space.append(fill_space(page, its, sum(len(before["planes"]) for before in space)))
    tiles = ""
    if page.tile != page.images.shape[-1]:
        tiles = f" The images were encoded in tiles of {page.tile} pixels, as they were evaluated; hence the seams."
    return {
        "tiles": tiles,
        "summary": fill_summary(page),
        "reconstructions": fill_reconstructions(page),
        "use": fill_use(page),
        "space": space,
        "step": fill_step(page),
        "curves": fill_curves(page),
        "about": fill_about(page),
    }


def fill_summary(page: Page) -> Dict[str, Any]:
    """A card for each run, and the table."""
    cards = []
    for its in (model.figures for model in page.models):
        verdicts = [judge_usage(usage, part) for part, usage in its.usage.items()]
        worst = min(verdicts, key=lambda found: _GRADES.index(found.grade))
        ssim = f", {its.mean['ssim']:.3f} SSIM" if "ssim" in its.mean else ""  # images under 11 pixels have none
        quality = f"{its.mean['psnr']:.2f} dB PSNR{ssim}, {describe_rate(its)}."
        cards.append(
            {
                "name": its.name,
                "grade": worst.grade.replace(" ", "-"),
                "headline": _HEADLINE[worst.grade],
                "sentences": [*(f"{_capitalize(found.sentence)}." for found in verdicts), quality],
            }
        )
    figures = [model.figures for model in page.models]
    return {"cards": cards, "rows": fill_table(figures), "notes": fill_notes(figures)}


def fill_table(figures: Sequence[RunFigures]) -> List[Dict[str, List[str]]]:
    """The table of figures and, beside the models, how each differs from the first: title -> cells, each its lines.

    A figure that no model has has no row; the notes say why.
    """
    differences = make_difference_rows(figures)
    wanted = {f"{its.name} less {figures[0].name}" for its in figures[1:]}
    rows = []
    for row in make_rows(figures):
        title, *texts = row.values()
        if set(texts) == {"-"}:
            continue
        for pair in differences:
            if pair["difference"] in wanted:
                row[pair["difference"]] = pair.get(title, "")
        rows.append({column: text.replace(" (", "\n(").split("\n") for column, text in row.items()})
    return rows


def fill_notes(figures: Sequence[RunFigures]) -> List[str]:
    """The notes below the table; files are called by their names alone, wherever they are."""
    notes = [note[2:] for note in list_notes(figures)]
    for file in (file for its in figures for file in its.broken):
        notes = [note.replace(str(file), Path(file).name) for note in notes]
    return notes


def fill_reconstructions(page: Page) -> Dict[str, Any]:
    """Some images, each model's reconstructions and their error maps."""
    number = min(_EXAMPLES, len(page.images))
    places = [(2 * i + 1) * len(page.images) // (2 * number) for i in range(number)]
    of_models = {model.name: model.tokens.reconstructions[places] for model in page.models}
    labels = {model.name: model.label for model in page.models}
    figure = pictures.draw_reconstructions(page.images[places], {labels[name]: of_models[name] for name in of_models})
    figure.savefig(page.folder / "reconstructions.png", dpi=DPI, facecolor="white")
    columns = ["original"]
    for name in of_models:
        columns += [labels[name], f"{name}: error"]
    tiles = []
    for k, place in enumerate(places):
        original, of_what = page.images[place], page.names[place]
        tiles.append({"src": embed_image(original), "alt": f"original of {of_what}", "below": of_what})
        for name, found in of_models.items():
            error = float((original - found[k].clamp(-1, 1)).abs().mean())
            psnr = f"{pictures.compute_psnr(original, found[k]):.1f} dB"
            alt = f"{name}'s reconstruction of {of_what}, {psnr} PSNR"
            tiles.append({"src": embed_image(found[k]), "alt": alt, "below": psnr})
            pixels, mean = pictures.map_error(original, found[k]), f"{error:.3f}"
            alt = f"{name}'s error, {mean} on average"
            tiles.append({"src": embed_pixels(pixels), "alt": alt, "below": f"mean {mean}"})
    brightest = pictures.BRIGHTEST_ERROR
    scale = {
        "src": embed_pixels(
            pictures.map_error(torch.zeros(3, 1, 256), torch.linspace(0, brightest, 256).expand(3, 1, -1))
        ),
        "alt": f"the colors of the error maps, from 0 to {brightest}",
        "ticks": [f"{brightest * i / 4:g}" for i in range(4)] + [f"{brightest:g} or more"],
    }
    return {"columns": columns, "tiles": tiles, "scale": scale}


def fill_use(page: Page) -> List[Dict[str, Any]]:
    """How often each code of each part is chosen."""
    charts = []
    for i, its in enumerate(model.figures for model in page.models):
        for part, usage in its.usage.items():
            charts.append(
                page.draw(
                    f"use_{_make_slug(its.name)}_{part}",
                    f"{its.name}: {judge_usage(usage, part).sentence}",
                    lambda dark, f=its, p=part, c=i: pictures.draw_use(label_rate(f), p, f, c, dark),
                )
            )
    return charts


def fill_space(page: Page, model: ReportedRun, first: int = 0) -> Dict[str, Any]:
    """A model's code space before and after transfer: planes, neighbors, moves.

    ``first`` is how many planes the models before have; ``charts`` name them by their numbers.
    """
    name, part_of_speech, quantizer = model.name, model.part_of_speech, model.trained.model.quantize
    before = get_word_vectors(quantizer)
    after = get_codebook(quantizer).numpy()
    near = [
        find_neighbors(before, part_of_speech, _NEIGHBORS, "cosine"),
        find_neighbors(after, part_of_speech, _NEIGHBORS, "euclidean"),
    ]
    distance, counts = measure_moves(before, after), model.figures.counts.numpy()
    charts: List[Dict[str, Any]] = []
    every: List[Dict[str, Any]] = []
    for i, part in enumerate(model.parts):
        places = np.flatnonzero(part_of_speech == i)
        places = places[np.argsort(-counts[places], kind="stable")][:_ON_MAP]
        words = [model.words[k] for k in places]
        planes = pictures.project(before[places], after[places])
        shown: Dict[str, Any] = {"words": words, "colors": format_colors(color_places(planes[0]))}
        for points, kind, where in zip(planes, ("before", "after"), ("in the language model", "in the codebook")):
            title, file = (
                f"{_capitalize(pictures.make_plural(part))} {where}",
                f"space_{_make_slug(name)}_{part}_{kind}.png",
            )
            figure = pictures.draw_words(points, words, title, planes[0])
            figure.savefig(page.folder / file, dpi=DPI, facecolor="white")
            shown[kind] = _fit_square(points).round(4).tolist()
            alt = f"{name}: the {len(words)} most used {pictures.make_plural(part)} {where}"
            charts.append({"plane": first + len(every), "side": kind, "title": title, "alt": alt, "file": file})
        every.append(shown)
    chosen = [i for i, word in enumerate(model.words) if word in page.words]
    ends = []
    for part, (least, most) in zip(model.parts, rank_moves(distance, part_of_speech, 8)):
        farthest, closest = (", ".join(model.words[i] for i in side) for side in (most, least))
        ends.append({"part": _capitalize(pictures.make_plural(part)), "farthest": farthest, "least": closest})
    histogram = page.draw(
        f"moves_{_make_slug(name)}",
        f"{name}: how far codes moved; the median is {np.median(distance):.2f} of the codebook's radius",
        lambda dark: pictures.draw_moves(distance, part_of_speech, model.parts, dark),
    )
    return {
        "name": name,
        "label": model.label,
        "charts": charts,
        "planes": every,
        "near": [
            {
                "word": model.words[i],
                "part": model.parts[part_of_speech[i]],
                "sides": [[model.words[j] for j in side[i][:5] if j >= 0] for side in near],
                "moved": f"{distance[i]:.2f}",
            }
            for i in chosen or find_commonest(counts, part_of_speech, 6)
        ],
        "histogram": histogram,
        "kept": f"{share_kept(*near).mean():.0%}",
        "chance": f"{_share_by_chance(part_of_speech):.0%}",
        "ends": ends,
    }


def fill_step(page: Page) -> Dict[str, Any]:
    """What one step of training moves; nothing where no model learns its codes by its quantizer's own loss."""
    steps: Dict[str, Step] = {}
    for model in page.models:
        if not hasattr(model.trained.model.quantize, "temperature"):  # Gumbel codes are learned otherwise
            images = page.images[:8, :, : page.tile, : page.tile]
            steps[model.name] = take_step(model.trained.model, images, _get_learning_rate(model.trained.config))
    if not steps:
        return {}
    alt = "; ".join(f"{name}: one step moves {s.updated:,} of {len(s.distance):,} codes" for name, s in steps.items())
    return {
        "chart": page.draw("one_step", alt, lambda dark: pictures.draw_step(steps, dark)),
        "models": [
            {
                "name": name,
                "images": min(8, len(page.images)),
                "chosen": f"{int(step.chosen.sum()):,}",
                "updated": f"{step.updated:,}",
                "codes": f"{len(step.distance):,}",
            }
            for name, step in steps.items()
        ],
    }


def fill_curves(page: Page) -> List[Dict[str, Any]]:
    """The figures that the runs logged while they trained."""
    charts = []
    colors: Dict[str, int] = {}
    for kind, title, log in _CURVES:
        found: Dict[str, Curve] = {}
        for i, model in enumerate(page.models):
            for label, curve in _select_curves(model, kind):
                key = f"{model.label}, {label}" if label else model.label
                found[key] = curve
                colors[key] = i
        if found:
            alt = "; ".join(f"{key} ends at {curve.values[-1]:.3g}" for key, curve in found.items())
            charts.append(
                page.draw(
                    f"curve_{kind}",
                    f"{title}: {alt}",
                    lambda dark, f=found, t=title, g=log: pictures.draw_curve(f, t, colors, g, dark),
                )
            )
    return charts


def fill_about(page: Page) -> Dict[str, Any]:
    """Where everything is from."""
    return {
        "evaluated": f"{page.models[0].figures.images:,}",
        "shown": len(page.images),
        "side": page.images.shape[-1],
        "version": __version__,
        "torch": str(torch.__version__),
        "runs": [{"name": model.name, "checkpoint": _shorten(model.trained.checkpoint)} for model in page.models],
    }


def group_images(paths: Sequence[str]) -> List[str]:
    """Which images belong together: those of one folder where there are several, else those of one file."""
    folders = [Path(path).parent.name for path in paths]
    return folders if len(set(folders)) > 1 else [Path(path).name for path in paths]


def _select_curves(model: ReportedRun, kind: str) -> Iterator[Tuple[str, Curve]]:
    if kind == "reconstruction":
        for label, names in (
            ("training", ("train/rec_loss_step", "train/rec_loss", "train/rec_loss_epoch")),
            ("validation", ("val/rec_loss_epoch", "val/rec_loss")),
        ):
            curve = find_first(model.curves, *names)
            if curve is not None:
                yield label, curve
        return
    for part in model.figures.usage:
        curve = find_first(model.curves, f"train/{kind}/{part}")
        if curve is not None:
            yield "" if part == "codes" else pictures.make_plural(part), curve


def _get_learning_rate(config: Any) -> float:
    """taming's rule for one process: the base rate times the batch size."""
    batch_size = (config.get("data", {}).get("params") or {}).get("batch_size") or 1
    return float(config.model.get("base_learning_rate", 4.5e-6)) * float(batch_size)


def _share_by_chance(part_of_speech: np.ndarray) -> float:
    sizes = np.bincount(part_of_speech)
    chances = [min(1.0, _NEIGHBORS / max(size - 1, 1)) for size in sizes]
    return float(np.average(chances, weights=sizes))


def _fit_square(points: np.ndarray) -> np.ndarray:
    """(n, 2) in [0, 1], by one scale for both axes; the second axis points down, as on a page."""
    low, high = points.min(axis=0), points.max(axis=0)
    centered = (points - (low + high) / 2) / max(float((high - low).max()), 1e-12)
    fitted: np.ndarray = np.column_stack([centered[:, 0] + 0.5, 0.5 - centered[:, 1]])
    return fitted


def _shorten(checkpoint: Path) -> str:
    """A run's folder and its checkpoint in it; where that lies on somebody's machine is not for the page."""
    return "/".join(checkpoint.resolve().parts[-3:])


def _make_slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
