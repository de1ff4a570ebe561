"""``vqct-report``: what trained models make of images, on one page that can be sent around."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from vqct_plugin._files import write_whole
from vqct_plugin._version import __version__
from vqct_plugin.evaluation.runs import (
    RunFigures,
    Settings,
    evaluate_runs,
    image_set,
    load_first_stage,
    notes,
    rows,
    settings_of,
)
from vqct_plugin.report import pictures
from vqct_plugin.report.codespace import (
    Step,
    codebook_of,
    moved,
    moves_by_word,
    nearest,
    neighbours_kept,
    one_step,
    word_vectors,
)
from vqct_plugin.report.curves import Curve, first_of, read_log
from vqct_plugin.report.words import Tokens, code_colours, commonest, counts_of, telling, tokens_of, words_of_codes
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.health import verdict
from vqct_plugin.runs.load import Trained

TEMPLATE = Path(__file__).parent.parent / "data" / "report.html"
_NEIGHBOURS = 10
_ON_MAP = 400  # codes of a part on a map of the code space
_EXAMPLES = 6  # images with reconstructions; all of them have a word map
_DPI = 160


class _Model(NamedTuple):
    """A run and all that the page tells of it."""

    figures: RunFigures
    trained: Trained
    tokens: Tokens
    words: List[str]
    parts: List[str]
    part_of_speech: np.ndarray
    curves: Dict[str, Curve]


def make_report(
    runs: Sequence[Union[str, Path]],
    output: Union[str, Path] = "report",
    *,
    images_shown: int = 24,
    size_shown: Optional[int] = None,
    words: Sequence[str] = (),
    force: bool = False,
    **settings: Any,
) -> Path:
    """Evaluate runs, stock or VQCT, and write ``index.html`` with pictures beside it.

    The page holds all that it shows; it asks for nothing from the network.

    Args:
        runs: run folders or checkpoints of first stages.
        output: a folder. ``evaluation/`` in it has the tables of :func:`~vqct_plugin.evaluation.runs.evaluate_runs`.
        images_shown: how many of the images are on the page: they have word maps, and the search looks through them.
        size_shown: the side of those images, a multiple of the evaluation's, which it is by default: more of the image
            is seen, and the models get it in tiles of the evaluation's size, as they were evaluated.
        words: whose neighbours to show; by default the most used.
        force: write over a report that is there.
        settings: as for ``evaluate_runs``.

    Returns:
        The page.

    Raises:
        ConfigError, DataError, CheckpointError: a run, its config or an image cannot be used; a report is there.
    """
    folder = Path(output)
    page = folder / "index.html"
    if page.exists() and not force:
        raise ConfigError(f"{page} exists; write over it with force (--force), or choose another folder")
    if images_shown < 1:
        raise ConfigError(f"images_shown is {images_shown!r}; expected 1 or more")
    if not runs:
        raise ConfigError("there is nothing to report on; give a run's folder or a checkpoint")
    of_evaluation = {name: value for name, value in settings.items() if name not in ("processes", "names")}
    every = [settings_of(run, folder / "evaluation", of_evaluation) for run in runs]
    trained = [load_first_stage(its) for its in every]
    described = [words_of_codes(its.model.quantize) for its in trained]
    _check_words(words, described)
    images, names, tile = _shown(trained[0], every[0], images_shown, size_shown)
    figures = evaluate_runs(runs, folder / "evaluation", **settings)
    models = []
    for run, its, model, of_codes in zip(runs, figures, trained, described):
        if torch.cuda.is_available():
            model.model.cuda()
        models.append(_Model(its, model, tokens_of(model.model, images, tile=tile), *of_codes, read_log(run)))
    report = _Report(folder, images, names, tile, models, words)
    write_whole(page, report.html().encode(), overwrite=True)
    return page


def _shown(first: Trained, its: Settings, number: int, size: Optional[int]) -> Tuple[Tensor, List[str], int]:
    """(N, 3, H, W) images spread over the set of the first run, for all; their names; and the side of a tile."""
    tile = int(image_set(its, first)[0][first.model.image_key].shape[0])
    if size is not None and (size < tile or size % tile):
        raise ConfigError(f"size_shown is {size}; expected a multiple of {tile}, the side of the images evaluated")
    items = image_set(its, first, size)
    number = min(number, len(items))
    places = [(2 * i + 1) * len(items) // (2 * number) for i in range(number)]
    chosen = [items[i] for i in places]
    batch = torch.utils.data.default_collate([{first.model.image_key: item[first.model.image_key]} for item in chosen])
    names = [str(item.get("file_path_", f"image {i}")) for i, item in zip(places, chosen)]
    images: Tensor = first.model.get_input(batch, first.model.image_key).float().cpu()
    return images, names, tile


def _check_words(words: Sequence[str], described: Sequence[Tuple[List[str], List[str], np.ndarray]]) -> None:
    known = {word for of_run, _, _ in described for word in of_run}
    for word in words:
        if word not in known:
            import difflib

            close = difflib.get_close_matches(word, sorted(known), n=3)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise ConfigError(f"no codebook of these runs has the word {word!r}{hint}")


class _Report:
    """The page, section by section."""

    def __init__(
        self,
        folder: Path,
        images: Tensor,
        names: List[str],
        tile: int,
        models: List[_Model],
        words: Sequence[str],
    ) -> None:
        self.folder, self.images, self.models, self.words = folder, images, models, words
        self.tile = tile
        self.names, self.sets = [Path(name).name for name in names], _sets(names)
        self._steps = {
            model.figures.name: one_step(
                model.trained.model, images[:8, :, :tile, :tile], _learning_rate(model.trained.config)
            )
            for model in models
            if not hasattr(model.trained.model.quantize, "temperature")  # Gumbel codes are learned otherwise
        }

    def html(self) -> str:
        early = [
            ("summary", "Does it work?", self._summary()),
            ("reconstructions", "Reconstructions", self._reconstructions()),
            ("use", "Which codes are used", self._use()),
        ]
        late = [
            ("space", "From words to codes", self._code_space()),
            ("step", "One step of training", self._one_step()),
            ("curves", "Learning curves", self._curves()),
            ("about", "How this was made", self._about()),
        ]
        in_template = [("words", "What the codes say", " "), ("search", "Find a word", " ")]
        nav = [f'<a href="#{key}">{_text(_IN_NAV[key])}</a>' for key, _, body in [*early, *in_template, *late] if body]
        page = TEMPLATE.read_text(encoding="utf-8")
        for mark, value in (
            ("{{title}}", _text(" and ".join(model.figures.name for model in self.models))),
            ("{{nav}}", "".join(nav)),
            ("{{tiles}}", self._tiles()),
            ("{{early}}", _sections(early)),
            ("{{late}}", _sections(late)),
            ("{{data}}", self._data()),
        ):
            page = page.replace(mark, value)
        return page

    # sections

    def _tiles(self) -> str:
        if self.tile == self.images.shape[-1]:
            return ""
        return f" The images were encoded in tiles of {self.tile} pixels, as they were evaluated; hence the seams."

    def _summary(self) -> str:
        cards = []
        for i, model in enumerate(self.models):
            its = model.figures
            verdicts = [(part, verdict(usage, part)) for part, usage in its.usage.items()]
            worst = min((found for _, found in verdicts), key=lambda found: _GRADES.index(found.grade))
            sentences = " ".join(f"<p>{_text(_capital(found.sentence))}.</p>" for _, found in verdicts)
            quality = f"{its.mean['psnr']:.2f} dB PSNR, {its.mean['ssim']:.3f} SSIM, {its.tokens:,} tokens an image."
            cards.append(
                f'<article class="card run{i % 4}"><h3>{_text(its.name)}</h3>'
                f'<p class="grade {worst.grade.replace(" ", "-")}">{_text(_HEADLINE[worst.grade])}</p>'
                f"{sentences}<p>{_text(quality)}</p></article>"
            )
        shown = rows([model.figures for model in self.models])
        head = "".join(f"<th scope=col>{_text(name)}</th>" for name in shown[0])
        lines = "".join(
            "<tr>" + "".join(
                f"<th scope=row>{_text(value)}</th>" if i == 0 else f"<td>{_text(value)}</td>"
                for i, value in enumerate(row.values())
            ) + "</tr>"
            for row in shown
        )  # fmt: skip
        remarks = "".join(f"<li>{_text(note[2:])}</li>" for note in notes([model.figures for model in self.models]))
        return (
            f'<div class="cards">{"".join(cards)}</div>'
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
            f'<ul class="notes">{remarks}</ul>'
        )

    def _reconstructions(self) -> str:
        number = min(_EXAMPLES, len(self.images))
        places = [(2 * i + 1) * len(self.images) // (2 * number) for i in range(number)]
        of_models = {model.figures.name: model.tokens.reconstructions[places] for model in self.models}
        figure = pictures.reconstructions(self.images[places], of_models)
        figure.savefig(self.folder / "reconstructions.png", dpi=_DPI, facecolor="white")
        columns = ["original"]
        for name in of_models:
            columns += [name, f"{name}: error"]
        cells = [f'<div class="head">{_text(column)}</div>' for column in columns]
        for k, place in enumerate(places):
            original = self.images[place]
            tiles = [(_pixels(original), f"original of {self.names[place]}")]
            for name, found in of_models.items():
                error = float((original - found[k].clamp(-1, 1)).abs().mean())
                tiles.append((_pixels(found[k]), f"{name}'s reconstruction of {self.names[place]}"))
                tiles.append((pictures.error_map(original, found[k]), f"{name}'s error, {error:.3f} on average"))
            cells += [
                f'<img class="tile" src="{_png(pixels)}" alt="{_text(alt)}" title="{_text(alt)}">'
                for pixels, alt in tiles
            ]
        return (
            "<p>Each row is an image of the evaluation. The error maps show where a reconstruction differs from "
            f"its original: black not at all, white by {pictures.BRIGHTEST_ERROR} or more, of values from -1 to 1."
            f"{self._tiles()}</p>"
            f'<div class="tiles" style="--columns: {len(columns)}">{"".join(cells)}</div>'
        )

    def _use(self) -> str:
        shown = []
        for i, model in enumerate(self.models):
            for part, usage in model.figures.usage.items():
                name = f"use_{_slug(model.figures.name)}_{part}"
                alt = f"{model.figures.name}: {verdict(usage, part).sentence}"
                shown.append(
                    self._picture(name, alt, lambda dark, m=model, p=part, c=i: pictures.code_use(
                        m.figures.name, p, m.figures, c, dark
                    ))
                )  # fmt: skip
        return (
            "<p>Every code stands on the axis, the most used first; its height is the share of all choices that it "
            "took, on a logarithmic scale. Where the colour ends, the codes are dead: no image uses them.</p>"
            f'<div class="charts">{"".join(shown)}</div>'
        )

    def _code_space(self) -> str:
        blocks = []
        for model in self.models:
            quantizer = model.trained.model.quantize
            if not hasattr(quantizer, "words"):
                continue
            blocks.append(self._code_space_of(model, quantizer))
        if not blocks:
            return ""
        return (
            "<p>A code begins as a word's vector in the language model, and a small graph network moves it to where "
            "the images need it. Words that images do not tell apart, or tell apart better than language does, "
            "change their neighbours.</p>" + "".join(blocks)
        )

    def _code_space_of(self, model: _Model, quantizer: Any) -> str:
        name, part_of_speech = model.figures.name, model.part_of_speech
        before, after = word_vectors(quantizer, _prior_of(model.trained.config)), codebook_of(quantizer).numpy()
        near = [
            nearest(before, part_of_speech, _NEIGHBOURS, "cosine"),
            nearest(after, part_of_speech, _NEIGHBOURS, "euclidean"),
        ]
        distance, kept = moved(before, after), neighbours_kept(*near)
        counts = model.figures.counts.numpy()
        charts = []
        for i, part in enumerate(model.parts):
            places = np.flatnonzero(part_of_speech == i)
            places = places[np.argsort(-counts[places], kind="stable")][:_ON_MAP]
            words = [model.words[k] for k in places]
            planes = pictures.planes(before[places], after[places])
            for points, kind, where in zip(planes, ("before", "after"), ("in the language model", "in the codebook")):
                title = f"{pictures.plural(part)} {where}"
                charts.append(
                    self._picture(
                        f"space_{_slug(name)}_{part}_{kind}",
                        f"{name}: the {len(words)} most used {title}",
                        lambda dark, p=points, w=words, t=title, f=planes[0]: pictures.word_plane(p, w, t, f, dark),
                    )
                )
        rows_of = []
        chosen = [i for i, word in enumerate(model.words) if word in self.words] or commonest(counts, part_of_speech, 6)
        for i in chosen:
            lists = ["".join(f"<span>{_text(model.words[j])}</span>" for j in side[i][:5] if j >= 0) for side in near]
            rows_of.append(
                f"<tr><th scope=row>{_text(model.words[i])}<small>{_text(model.parts[part_of_speech[i]])}</small></th>"
                f'<td class="words">{lists[0]}</td><td class="words">{lists[1]}</td><td>{distance[i]:.2f}</td></tr>'
            )
        ends = []
        for part, (least, most) in zip(model.parts, moves_by_word(distance, part_of_speech, 8)):
            far, close = (", ".join(model.words[i] for i in side) for side in (most, least))
            ends.append(
                f"<p><b>{_text(_capital(pictures.plural(part)))}</b> that moved farthest: {_text(far)}. "
                f"Least: {_text(close)}.</p>"
            )
        histogram = self._picture(
            f"moves_{_slug(name)}",
            f"{name}: how far codes moved; the median is {np.median(distance):.2f} of the codebook's radius",
            lambda dark: pictures.moves(distance, part_of_speech, model.parts, dark),
        )
        return (
            f"<h3>{_text(name)}</h3>"
            f'<div class="charts wide">{"".join(charts)}</div>'
            "<p>Near is near in these planes, far says little. A word keeps its colour from left to right: mixed "
            "colours are words that changed their company.</p>"
            "<h4>Nearest words, before and after</h4>"
            '<div class="scroll"><table class="near"><thead><tr><th scope=col>word</th><th scope=col>in the language '
            "model</th><th scope=col>in the codebook</th><th scope=col>moved</th></tr></thead>"
            f"<tbody>{''.join(rows_of)}</tbody></table></div>"
            "<h4>How far each code moved</h4>"
            f'<div class="beside">{histogram}<div><p>A move is what is left after the words\' vectors were laid '
            "upon the codes as well as turning, shifting and one scale can, in units of the codebook's radius: 0, a "
            f"word went with the others; 1, it went elsewhere. Of the ten nearest of a word, {kept.mean():.0%} are "
            f"still there, where chance would leave {_by_chance(part_of_speech):.0%}.</p>{''.join(ends)}</div></div>"
        )

    def _one_step(self) -> str:
        if not self._steps:
            return ""
        told = []
        for name, step in self._steps.items():
            told.append(
                f"<li><b>{_text(name)}</b>: a batch of {min(8, len(self.images))} images chose "
                f"{int(step.chosen.sum()):,} codes; the step moved {step.updated:,} of {len(step.distance):,}.</li>"
            )
        chart = self._picture(
            "one_step", _told_of(self._steps), lambda dark: pictures.one_step_moves(self._steps, dark)
        )
        return (
            "<p>In a codebook of single vectors only chosen codes learn; one that is never chosen stays where it is, "
            "and so is never chosen. In a transferred one a step moves the network behind all codes.</p>"
            f'<div class="beside">{chart}<ul>{"".join(told)}</ul></div>'
        )

    def _curves(self) -> str:
        charts = []
        colour = {}
        for kind, title, log in _CURVES:
            found: Dict[str, Curve] = {}
            for i, model in enumerate(self.models):
                name = model.figures.name
                for label, curve in _curves_of(model, kind):
                    key = f"{name}, {label}" if label else name
                    found[key] = curve
                    colour[key] = i
            if found:
                alt = "; ".join(f"{key} ends at {curve.values[-1]:.3g}" for key, curve in found.items())
                charts.append(
                    self._picture(
                        f"curve_{kind}",
                        f"{title}: {alt}",
                        lambda dark, f=found, t=title, g=log: pictures.learning_curve(f, t, colour, g, dark),
                    )
                )
        if not charts:
            return "<p>These runs have no log of figures (metrics.csv) in their folders.</p>"
        return f'<div class="charts">{"".join(charts)}</div>'

    def _about(self) -> str:
        lines = []
        for model in self.models:
            lines.append(f"<li>{_text(model.figures.name)}: <code>{_text(str(model.trained.checkpoint))}</code></li>")
        return (
            f"<p>{self.models[0].figures.images:,} images were evaluated; {len(self.images)} of them, spread over the "
            f"set, are on this page, {self.images.shape[-1]} pixels wide. vqct_plugin {_text(__version__)}, torch "
            f"{_text(torch.__version__)}. All tables and the figures of every image are in the folder "
            f"<code>evaluation</code> beside this page.</p><ul>{''.join(lines)}</ul>"
        )

    # what the script needs

    def _data(self) -> str:
        runs = []
        for model in self.models:
            codes = model.tokens.codes.numpy()
            counts = counts_of(model.tokens.codes, len(model.words))
            parts = [model.parts[model.part_of_speech[codes[0, t, 0, 0]]] for t in range(codes.shape[1])]
            vectors = codebook_of(model.trained.model.quantize).numpy()
            labels = list(dict.fromkeys(self.sets))
            of_sets = [counts[[i for i, label in enumerate(self.sets) if label == wanted]].sum(0) for wanted in labels]
            told = telling(np.stack(of_sets))
            runs.append(
                {
                    "name": model.figures.name,
                    "layers": [f"{part} {parts[:t].count(part) + 1}" if parts.count(part) > 1 else part
                               for t, part in enumerate(parts)],
                    "named": hasattr(model.trained.model.quantize, "words"),
                    "words": model.words,
                    "parts": model.parts,
                    "part": model.part_of_speech.tolist(),
                    "colours": code_colours(vectors, model.part_of_speech),
                    "maps": [image.reshape(codes.shape[1], -1).tolist() for image in codes],
                    "grid": [codes.shape[2], codes.shape[3]],
                    "telling": [[code for code, _ in told[labels.index(label)]] for label in self.sets],
                    "commonest": [commonest(row, model.part_of_speech, 4) for row in counts],
                }
            )  # fmt: skip
        data = {
            "size": [self.images.shape[2], self.images.shape[3]],
            "images": [
                {"name": name, "set": label if self.sets.count(label) > 1 else None, "src": _png(_pixels(image))}
                for name, label, image in zip(self.names, self.sets, self.images)
            ],
            "runs": runs,
        }
        return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")

    def _picture(self, name: str, alt: str, draw: Any) -> str:
        """A figure for light and for dark; the light one is also a file."""
        sources = []
        for dark in (False, True):
            figure = draw(dark)
            data = io.BytesIO()
            figure.savefig(data, format="png", dpi=_DPI)
            sources.append("data:image/png;base64," + base64.b64encode(data.getvalue()).decode())
            if not dark:
                figure.savefig(self.folder / f"{name}.png", dpi=_DPI, facecolor="white")
        return (
            f'<picture><source srcset="{sources[1]}" media="(prefers-color-scheme: dark)">'
            f'<img src="{sources[0]}" alt="{_text(alt)}"></picture>'
        )


_IN_NAV = {
    "summary": "Summary",
    "reconstructions": "Reconstructions",
    "use": "Codes in use",
    "words": "Words",
    "search": "Search",
    "space": "Code space",
    "step": "One step",
    "curves": "Learning curves",
    "about": "About",
}
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


def _sets(paths: Sequence[str]) -> List[str]:
    """Which images belong together: those of one folder where there are several, else those of one file."""
    folders = [Path(path).parent.name for path in paths]
    return folders if len(set(folders)) > 1 else [Path(path).name for path in paths]


def _sections(every: Sequence[Tuple[str, str, str]]) -> str:
    return "\n".join(
        f'<section id="{key}"><h2>{_text(title)}</h2>\n{body}</section>' for key, title, body in every if body
    )


def _curves_of(model: _Model, kind: str) -> Iterator[Tuple[str, Curve]]:
    curves = model.curves
    if kind == "reconstruction":
        for label, names in (
            ("training", ("train/rec_loss_step", "train/rec_loss", "train/rec_loss_epoch")),
            ("validation", ("val/rec_loss_epoch", "val/rec_loss")),
        ):
            curve = first_of(curves, *names)
            if curve is not None:
                yield label, curve
        return
    for part in model.figures.usage:
        curve = first_of(curves, f"train/{kind}/{part}")
        if curve is not None:
            yield "" if part == "codes" else pictures.plural(part), curve


def _learning_rate(config: Any) -> float:
    """taming's rule for one process: the base rate times the batch size."""
    batch_size = (config.get("data", {}).get("params") or {}).get("batch_size") or 1
    return float(config.model.get("base_learning_rate", 4.5e-6)) * float(batch_size)


def _prior_of(config: Any) -> str:
    """What the config says of the prior, wherever its quantizer stands."""
    params = config.model.get("params") or {}
    inner = (params.get("quantizer_config") or {}).get("params") or {}
    return str(params.get("prior") or inner.get("prior") or "default")


def _by_chance(part_of_speech: np.ndarray) -> float:
    sizes = np.bincount(part_of_speech)
    chances = [min(1.0, _NEIGHBOURS / max(size - 1, 1)) for size in sizes]
    return float(np.average(chances, weights=sizes))


def _told_of(steps: Dict[str, Step]) -> str:
    return "; ".join(f"{name}: one step moves {s.updated:,} of {len(s.distance):,} codes" for name, s in steps.items())


def _pixels(image: Tensor) -> np.ndarray:
    from vqct_plugin.evaluation.measures import as_bytes

    pixels: np.ndarray = as_bytes(image[None])[0]
    return pixels


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _text(value: str) -> str:
    return html.escape(value, quote=True)
