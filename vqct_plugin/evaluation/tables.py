"""The figures of runs as tables: for people, and as files for other programs."""

import csv
import io
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from vqct_plugin._files import write_whole
from vqct_plugin.evaluation.figures import RunFigures
from vqct_plugin.evaluation.measure import Figure


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of one set of columns as a Markdown table, its columns aligned for a terminal too."""
    columns = list(rows[0])
    width: Dict[str, int] = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    lines = ["| " + " | ".join(c.ljust(width[c]) for c in columns) + " |"]
    lines.append("|" + "|".join("-" * (width[c] + 2) for c in columns) + "|")
    lines += ["| " + " | ".join(row[c].ljust(width[c]) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def make_rows(figures: Sequence[RunFigures]) -> List[Dict[str, str]]:
    """The table, as text: a row for each figure, a column for each model; means with their intervals."""
    shown: Dict[str, Any] = {"images": lambda its: f"{its.images:,}"}
    for name, figure in _list_figures(figures).items():
        shown[figure.title] = partial(_format_figure, name=name, digits=figure.digits)
    shown["codes in use"] = lambda its: _join_parts(its, lambda u: f"{u.in_use:,} of {u.codes:,}")
    shown["perplexity"] = lambda its: _join_parts(its, lambda u: f"{u.perplexity:.0f}")
    shown["dead codes"] = lambda its: _join_parts(its, lambda u: f"{len(u.dead):,}")
    shown["tokens an image"] = lambda its: f"{its.tokens:,}"
    shown["bits an image"] = lambda its: f"{its.bits:,.0f}"
    return [{"": title, **{its.name: text(its) for its in figures}} for title, text in shown.items()]


def list_notes(figures: Sequence[RunFigures]) -> List[str]:
    """Notes below the table: why figures are missing, and what the brackets mean."""
    titles = {name: figure.title for name, figure in _list_figures(figures).items()}
    found: Dict[str, List[str]] = {}
    for its in figures:
        for name, why in its.missing.items():
            found.setdefault(why, [])
            if titles[name] not in found[why]:
                found[why].append(titles[name])
    lines = [f"- {', '.join(names)}: {why}" for why, names in found.items()]
    if len({its.source for its in figures}) > 1:
        lines.append("- the runs have different validation sets; pass images to evaluate all of them on the same")
    return [*lines, "- in brackets: the 95 % interval of the mean, by bootstrap over images"]


def _list_figures(figures: Sequence[RunFigures]) -> Dict[str, Figure]:
    """All figures of these runs, in the order of their measures."""
    return {name: figure for its in figures for name, figure in its.shown.items()}


def _format_figure(its: RunFigures, name: str, digits: int) -> str:
    if name in its.of_set:
        return f"{its.of_set[name]:.{digits}f}"
    if name not in its.mean:
        return "-"
    low, high = its.interval[name]
    text = f"{its.mean[name]:.{digits}f}"
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})" if math.isfinite(low) else text


def _join_parts(its: RunFigures, text: Any) -> str:
    return ", ".join(f"{text(usage)}{_name_part(part)}" for part, usage in its.usage.items())


def _name_part(part: str) -> str:
    return "" if part in ("codes", "joint") else f" {part}s"


def write_tables(figures: Sequence[RunFigures], folder: Path) -> None:
    """``table.md``, ``figures.csv`` (one row a run), ``figures.json`` and ``images.csv`` (one row a run and image).

    A value that is not a number, such as the interval of a single image, is nan in CSV and null in JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = [_make_row(its) for its in figures]
    names = list(dict.fromkeys(name for its in figures for name in its.values))
    images = [_make_image_row(its, i, names) for its in figures for i in range(its.images)]
    for name, text in (
        ("table.md", "\n".join([format_table(make_rows(figures)), "", *list_notes(figures)]) + "\n"),
        ("figures.csv", _format_csv(flat, list(dict.fromkeys(key for row in flat for key in row)))),
        ("figures.json", json.dumps(_replace_nan([_make_record(its) for its in figures]), indent=1) + "\n"),
        ("images.csv", _format_csv(images, ["model", "image", "file", *names])),
    ):
        write_whole(folder / name, text.encode(), overwrite=True)


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
    row: Dict[str, Any] = {"model": its.name, "images": its.images}
    for name, value in its.mean.items():
        row.update({name: value, f"{name}_low": its.interval[name][0], f"{name}_high": its.interval[name][1]})
    row.update(_list_set_figures(its), tokens=its.tokens, bits=its.bits)
    for part, usage in its.usage.items():
        row[f"codes_{part}"], row[f"in_use_{part}"] = usage.codes, usage.in_use
        row[f"perplexity_{part}"], row[f"dead_{part}"] = usage.perplexity, len(usage.dead)
    return row


def _make_record(its: RunFigures) -> Dict[str, Any]:
    usage = {part: {**of_part._asdict(), "dead": len(of_part.dead)} for part, of_part in its.usage.items()}
    return {
        "model": its.name, "images": its.images, "mean": its.mean, "interval": its.interval, **_list_set_figures(its),
        "missing": its.missing, "usage": usage, "tokens": its.tokens, "bits": its.bits,
    }  # fmt: skip


def _list_set_figures(its: RunFigures) -> Dict[str, Optional[float]]:
    return {name: its.of_set.get(name) for name, figure in its.shown.items() if figure.of_set}
