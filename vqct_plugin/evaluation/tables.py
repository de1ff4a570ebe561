"""The figures of runs as tables: for people, and as files for other programs."""

import csv
import io
import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from vqct_plugin._files import write_whole
from vqct_plugin.evaluation.differences import Difference, compute_differences
from vqct_plugin.evaluation.figures import RunFigures
from vqct_plugin.evaluation.measure import Figure
from vqct_plugin.evaluation.rates import warn_of_rates
from vqct_plugin.runs.config import DataError

#: what :func:`write_tables` writes
FILES = ("table.md", "table.tex", "figures.csv", "differences.csv", "figures.json", "images.csv")
#: what TeX would take for a command
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of one set of columns as a Markdown table, its columns aligned for a terminal too."""
    rows = [{_escape_bar(c): _escape_bar(text) for c, text in row.items()} for row in rows]
    columns = list(rows[0])
    width: Dict[str, int] = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    lines = ["| " + " | ".join(c.ljust(width[c]) for c in columns) + " |"]
    lines.append("|" + "|".join("-" * (width[c] + 2) for c in columns) + "|")
    lines += ["| " + " | ".join(row[c].ljust(width[c]) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def _escape_bar(text: str) -> str:
    return text.replace("|", "\\|")


def format_latex(rows: Sequence[Mapping[str, str]], notes: Sequence[str] = ()) -> str:
    """Rows of one set of columns as a LaTeX ``tabular`` that needs no package; notes as comments above it."""
    columns = list(rows[0])
    lines = [f"% {note}" for note in notes]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\hline"]
    lines += [" & ".join(map(_escape_tex, columns)) + r" \\", r"\hline"]
    lines += [" & ".join(_escape_tex(row[c]) for c in columns) + r" \\" for row in rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


def _escape_tex(text: str) -> str:
    escaped = "".join(_TEX.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


def make_rows(figures: Sequence[RunFigures]) -> List[Dict[str, str]]:
    """The table, as text: a row for each figure, a column for each model; means with their intervals."""
    shown: Dict[str, Any] = {"images": lambda its: f"{its.images:,}"}
    if any(its.photographs != its.images for its in figures):
        shown["of photographs"] = lambda its: f"{its.photographs:,}"
    for name, figure in _list_figures(figures).items():
        shown[figure.title] = partial(_format_figure, name=name, digits=figure.digits)
    shown["codes in use"] = lambda its: join_parts(its, lambda u: f"{u.in_use:,} of {u.codes:,}")
    shown["perplexity"] = lambda its: join_parts(its, lambda u: f"{u.perplexity:.0f}")
    shown["dead codes"] = lambda its: join_parts(its, lambda u: f"{len(u.dead):,}")
    shown["tokens per image"] = lambda its: f"{its.tokens:,}"
    shown["bits per image"] = lambda its: f"{its.bits:,.0f}"
    shown["bits per position"] = lambda its: f"{its.bits / its.positions:.1f}"
    shown["bits by entropy"] = lambda its: f"{its.entropy:,.0f}"
    return [{"": title, **{its.name: text(its) for its in figures}} for title, text in shown.items()]


def make_difference_rows(
    figures: Sequence[RunFigures], differences: Optional[Sequence[Difference]] = None
) -> List[Dict[str, str]]:
    """A row for each pair of runs on the same images: the figures of the one less those of the other, with intervals;
    no row where there is no pair. ``differences`` are those of the runs, where they are computed already."""
    shown = {name: figure for name, figure in _list_figures(figures).items() if not figure.of_set}
    rows = []
    for pair in compute_differences(figures) if differences is None else differences:
        row = {"difference": f"{pair.name} less {pair.other}"}
        for name, figure in shown.items():
            row[figure.title] = _format_difference(pair, name, figure.digits)
        rows.append({**row, "bits per image": f"{pair.bits:+,.0f}"})
    empty = [title for title in (rows[0] if rows else ()) if all(row[title] == "-" for row in rows)]
    return [{title: text for title, text in row.items() if title not in empty} for row in rows]


def list_notes(figures: Sequence[RunFigures]) -> List[str]:
    """Notes below the table: unequal rates, why figures or images are missing, and what the parentheses mean."""
    titles = {name: figure.title for name, figure in _list_figures(figures).items()}
    found: Dict[str, List[str]] = {}
    for its in figures:
        for name, why in its.missing.items():
            found.setdefault(why, [])
            if titles[name] not in found[why]:
                found[why].append(titles[name])
    rates = warn_of_rates(figures)
    lines = [f"- {rates}"] if rates else []
    lines += [f"- {', '.join(names)}: {why}" for why, names in found.items()]
    if len({its.source for its in figures}) > 1:
        lines.append(
            "- the runs were evaluated on different validation sets, so their figures are not comparable; evaluate all "
            "runs on one folder of images"
        )
    broken = {file: why for its in figures for file, why in its.broken.items()}
    lines += [f"- left out: {why}" for why in broken.values()]
    photographs = min((its.photographs for its in figures if its.photographs != its.images), default=0)
    if photographs == 1:
        return [*lines, "- no intervals: all images are pieces of one photograph"]
    over = f"the {photographs:,} photographs that the images are pieces of" if photographs else "images"
    intervals = f"the 95% interval of the mean, by bootstrap over {over}; of a difference, image by image"
    return [*lines, f"- in parentheses: {intervals}"]


def format_tables(figures: Sequence[RunFigures], differences: Optional[Sequence[Difference]] = None) -> str:
    """All of it in Markdown: the table, the differences of each pair of runs, the notes; ``differences`` as of
    :func:`make_difference_rows`."""
    parts = [format_table(make_rows(figures))]
    rows = make_difference_rows(figures, differences)
    if rows:
        parts.append(format_table(rows))
    return "\n\n".join([*parts, "\n".join(list_notes(figures))])


def _list_figures(figures: Sequence[RunFigures]) -> Dict[str, Figure]:
    """All figures of these runs, in the order of their measures."""
    return {name: figure for its in figures for name, figure in its.shown.items()}


def _format_figure(its: RunFigures, name: str, digits: int) -> str:
    if name in its.of_set:
        return f"{its.of_set[name]:.{digits}f}"
    if name not in its.mean:
        return "-"
    return _format_mean(its.mean[name], its.interval[name], f".{digits}f")


def _format_difference(pair: Difference, name: str, digits: int) -> str:
    if not math.isfinite(pair.mean.get(name, math.nan)):
        return "-"
    return _format_mean(pair.mean[name], pair.interval[name], f"+.{digits}f")


def _format_mean(mean: float, interval: Sequence[float], how: str) -> str:
    low, high = interval
    return f"{mean:{how}} ({low:{how}} to {high:{how}})" if math.isfinite(low) else f"{mean:{how}}"


def join_parts(its: RunFigures, text: Any) -> str:
    """``text(usage)`` of each part of speech, with the part's name where there are several."""
    parts = {part: "" if part in ("codes", "joint") else f" {part}s" for part in its.usage}
    return ", ".join(f"{text(usage)}{parts[part]}" for part, usage in its.usage.items())


def write_tables(figures: Sequence[RunFigures], folder: Path) -> None:
    """``table.md`` and ``table.tex``, ``figures.csv`` (one row a run), ``differences.csv`` (one row a pair of runs and
    figure), ``figures.json`` and ``images.csv`` (one row a run and image).

    A value that is not a number, such as the interval of a single image, is nan in CSV and null in JSON.

    Raises:
        DataError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = [_make_row(its) for its in figures]
    names = list(dict.fromkeys(name for its in figures for name in its.values))
    images = [_make_image_row(its, i, names) for its in figures for i in range(its.images)]
    differences = compute_differences(figures)
    pairs = _list_pairs(differences)
    records = [{**_make_record(its), "differences": _nest_pairs(pairs, its.name)} for its in figures]
    latex = [format_latex(make_rows(figures), [note[2:] for note in list_notes(figures)])]
    if differences:
        latex.append(format_latex(make_difference_rows(figures, differences)))
    texts = (
        format_tables(figures, differences) + "\n",
        "\n\n".join(latex) + "\n",
        _format_csv(flat, list(dict.fromkeys(key for row in flat for key in row))),
        _format_csv(pairs, ["model", "less", "figure", "difference", "low", "high"]),
        json.dumps(_replace_nan(records), indent=1) + "\n",
        _format_csv(images, ["model", "image", "file", *names]),
    )
    for name, text in zip(FILES, texts):
        write_file(folder / name, text.encode())


def write_file(file: Path, data: bytes) -> None:
    """Write a file whole; raises DataError where it cannot be, with its path."""
    try:
        write_whole(file, data, overwrite=True)
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror or error}") from error


def _format_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _replace_nan(value: Any) -> Any:
    """The same with None for numbers that are none."""
    if isinstance(value, dict):
        return {key: _replace_nan(of_key) for key, of_key in value.items()}
    if isinstance(value, list):
        return [_replace_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _make_image_row(its: RunFigures, i: int, names: Sequence[str]) -> Dict[str, Any]:
    row = {"model": its.name, "image": i, "file": its.files[i] if its.files else None}
    row.update({name: its.values[name][i] for name in names if name in its.values})
    return row


def _make_row(its: RunFigures) -> Dict[str, Any]:
    row: Dict[str, Any] = {"model": its.name, "images": its.images, "photographs": its.photographs}
    for name, value in its.mean.items():
        row.update({name: value, f"{name}_low": its.interval[name][0], f"{name}_high": its.interval[name][1]})
    row.update(_list_set_figures(its), tokens=its.tokens, **_list_bits(its))
    for part, usage in its.usage.items():
        row[f"codes_{part}"], row[f"in_use_{part}"] = usage.codes, usage.in_use
        row[f"perplexity_{part}"], row[f"dead_{part}"] = usage.perplexity, len(usage.dead)
    return row


def _make_record(its: RunFigures) -> Dict[str, Any]:
    usage = {part: {**of_part._asdict(), "dead": len(of_part.dead)} for part, of_part in its.usage.items()}
    return {
        "model": its.name, "images": its.images, "photographs": its.photographs, "mean": its.mean,
        "interval": its.interval, **_list_set_figures(its), "missing": its.missing, "broken": its.broken,
        "usage": usage, "tokens": its.tokens, **_list_bits(its),
    }  # fmt: skip


def _list_bits(its: RunFigures) -> Dict[str, Any]:
    return {"bits": its.bits, "bits_per_position": its.bits / its.positions, "bits_by_entropy": its.entropy}


def _list_pairs(differences: Sequence[Difference]) -> List[Dict[str, Any]]:
    rows = []
    for pair in differences:
        for name, mean in [*pair.mean.items(), ("bits", pair.bits)]:
            low, high = pair.interval.get(name, [math.nan] * 2)
            rows.append({"model": pair.name, "less": pair.other, "figure": name, "difference": mean,
                         "low": low, "high": high})  # fmt: skip
    return rows


def _nest_pairs(pairs: Sequence[Mapping[str, Any]], name: str) -> Dict[str, Any]:
    """The differences of one run: other run -> figure -> difference, low, high."""
    found: Dict[str, Any] = {}
    for row in pairs:
        if row["model"] == name:
            inner = {key: row[key] for key in ("difference", "low", "high")}
            found.setdefault(row["less"], {})[row["figure"]] = inner
    return found


def _list_set_figures(its: RunFigures) -> Dict[str, Optional[float]]:
    return {name: its.of_set.get(name) for name, figure in its.shown.items() if figure.of_set}
