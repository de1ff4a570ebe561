"""Model cards: the ``README.md`` of a folder or a repository, written once, and then its owner's to edit."""

import json
import math
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from vqct_plugin._files import printable

_WORDS_SHOWN = 16
_ASK = "<!-- Say here what it is for, on whose images it was made, and under which license you give it away. -->"


def format_card(title: str, tag: str, use: str, sections: Sequence[str]) -> str:
    """A card.

    Args:
        title: its heading.
        tag: what the hub lists it under, beside ``vqct``.
        use: lines of Python.
        sections: the rest, each with its own heading.
    """
    head = f"---\nlibrary_name: vqct_plugin\ntags:\n- vqct\n- {tag}\n---\n\n# {title}\n\n{_ASK}\n"
    return "\n".join([head, f"```python\n{use}\n```\n", *(f"{section}\n" for section in sections)])


def describe_words(prior: Any) -> str:
    """The section of a prior's words: how many, the commonest ones, where they and their vectors come from."""
    lines = ["## Words", ""]
    for number, part in enumerate(prior.parts):
        own = [i for i in range(len(prior)) if prior.part_of_speech[i] == number][:_WORDS_SHOWN]
        shown = ", ".join(_plain(prior.words[i]) for i in own)
        more = ", ..." * (prior.sizes[part] > len(own))
        lines.append(f"- {prior.sizes[part]:,} of part {_plain(part)}: {shown}{more}")
    lines.append(f"- {prior.edges.shape[1]:,} edges between words that stand side by side, or are near")
    model = _plain(prior.provenance.get("language_model", "an unnamed language model"))
    lines += [
        f"- vectors of {prior.vectors.shape[1]} dimensions, of {model}",
        f"- fingerprint `{prior.fingerprint}`",
    ]
    record = {key: value for key, value in prior.provenance.items() if key != "selected_from"}
    if record:
        lines += ["", "How they were made:", "", f"```json\n{_json(record)}\n```"]
    return "\n".join(lines)


def describe_codebook(quantizer: Any) -> str:
    """The section of a quantizer's codes: how many for each part, the bits of a position, its arguments."""
    slices = quantizer.slices
    bits = sum(s.topk * math.log2(s.last - s.first) for s in slices)
    rows = [(s.name, f"{s.last - s.first:,}", str(s.topk)) for s in slices]
    lines = [
        "## Codes",
        "",
        _table(("part of speech", "codes", "tokens per position"), rows),
        "",
        f"{quantizer.n_e:,} codes over {quantizer.e_dim} channels; {bits:.1f} bits per position.",
        "",
        f"```json\n{_json(quantizer.settings)}\n```",
    ]
    return "\n".join(lines)


def describe_figures(figures: Mapping[str, Any]) -> str:
    """The section of one run's figures, as ``vqct-evaluate`` writes them into ``figures.json``."""
    rows: List[Tuple[str, str]] = [("images", f"{figures['images']:,}")]
    for name, mean in (figures.get("mean") or {}).items():
        low, high = (figures.get("interval") or {}).get(name) or (None, None)
        interval = f" ({_number(low)} to {_number(high)})" if low is not None and high is not None else ""
        rows.append((name, f"{_number(mean)}{interval}"))
    known = ("images", "photographs", "tokens", "bits", "bits_per_position", "bits_by_entropy")
    rows += [
        (name, _number(value))
        for name, value in figures.items()
        if name not in known and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    for part, usage in (figures.get("usage") or {}).items():
        rows.append((f"codes in use, {part}", f"{usage['in_use']:,} of {usage['codes']:,}"))
        rows.append((f"perplexity, {part}", f"{usage['perplexity']:,.0f}"))
    for name, title in (
        ("tokens", "tokens per image"),
        ("bits", "bits per image"),
        ("bits_per_position", "bits per position"),
        ("bits_by_entropy", "bits per image by entropy"),
    ):
        if figures.get(name) is not None:
            rows.append((title, _number(figures[name])))
    note = "As `vqct-evaluate` measured them; in parentheses the 95% interval of the mean."
    return "\n".join(["## Figures", "", note, "", _table(("figure", "value"), rows)])


def describe_data(config: Mapping[str, Any], step: Optional[int]) -> str:
    """The section of what a run was trained on: of paths only the last part."""
    lines = ["## Data and training", ""]
    params = ((config.get("data") or {}).get("params")) or {}
    for name in ("train", "validation", "test"):
        entry = params.get(name)
        if isinstance(entry, Mapping) and "target" in entry:
            given = entry.get("params") or {}
            shown = {key: shorten(value) for key, value in given.items()}
            lines.append(f"- {name}: `{_plain(entry['target'])}` with `{_plain(json.dumps(shown, default=str), 400)}`")
    if params.get("batch_size") is not None:
        lines.append(f"- batches of {params['batch_size']}")
    if step is not None and step >= 0:
        lines.append(f"- {step:,} steps")
    return "\n".join(lines)


def shorten(value: Any) -> Any:
    """A value of a config without the folders of a path: they are of somebody's machine."""
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return value


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).replace("```", "'''")


def _plain(text: Any, most: int = 200) -> str:
    """A text out of a file, as one that Markdown shows and does not obey."""
    return printable(text, most).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
