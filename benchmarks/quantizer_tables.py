"""What benchmarks/quantizer.py tells of its figures: the tables, and which targets are reached."""

from typing import Any, Dict, List, Tuple

#: what is to be reached: kinds that begin so, contestant, against, at most this ratio of the medians
TARGETS = (
    ("train", "ours", "two VectorQuantizer2", 1.0),
    ("evaluate", "ours", "two VectorQuantizer2", 1.0),
    ("evaluate", "ours, frozen", "products", 1.2),
    ("lookup", "ours", "addmm + argmin", 1.0),
)
LOOKUP_MEGABYTES = 64
#: at 262,144 words: "seconds, not minutes", and the state against the word vectors in float16
MANY_WORDS, CONSTRUCTION_SECONDS, STATE_RATIO = 262_144, 60, 1.2

TITLES = {
    "train": "training step",
    "evaluate": "evaluation",
    "lookup, fresh": "lookup, fresh",
    "lookup, trained": "lookup, trained",
    "lookup, collapsed": "lookup, collapsed",
    "entry": "entries",
}


def targets_of(results: Dict[str, Any]) -> List[Dict[str, Any]]:
    """What is to be reached, at every size: for each target and number of codes the worst that was measured."""
    found: List[Dict[str, Any]] = []

    def judge(what: str, codes: int, precision: str, at_most: float, measured: List[Tuple[float, str]]) -> None:
        if measured:
            worst, where = max(measured)
            reached = sum(value <= at_most for value, _ in measured)
            found.append(
                {"what": what, "codes": codes, "precision": precision, "at_most": float(at_most), "measured": worst,
                 "where": where, "reached": reached, "of": len(measured)}
            )  # fmt: skip

    groups = sorted({(cell["codes"], cell["precision"]) for cell in results["cells"]})
    for prefix, ours, other, at_most in TARGETS:
        for codes, precision in groups:
            cells = [c for c in results["cells"] if (c["codes"], c["precision"]) == (codes, precision)]
            measured = [
                (figures[ours]["milliseconds"] / figures[other]["milliseconds"], _where(cell, kind, results))
                for cell in cells
                for kind, figures in cell["kinds"].items()
                if kind.startswith(prefix) and ours in figures and other in figures
            ]
            judge(f"{prefix}: {ours} / {other}", codes, precision, at_most, measured)
    for codes, precision in groups:
        cells = [c for c in results["cells"] if (c["codes"], c["precision"]) == (codes, precision)]
        peaks = [
            (figures["ours"]["peak_megabytes"], _where(cell, kind, results))
            for cell in cells
            for kind, figures in cell["kinds"].items()
            if kind.startswith("lookup") and figures["ours"]["peak_megabytes"] is not None
        ]
        judge("lookup: MB beyond its inputs", codes, precision, LOOKUP_MEGABYTES, peaks)
    for row in results["priors"]:
        if row["codes"] >= MANY_WORDS:
            made = row["seconds"]["quantizer made"]
            judge("a quantizer made, seconds", row["codes"], "fp32", CONSTRUCTION_SECONDS, [(made, "")])
            judge("state / word vectors in float16", row["codes"], "", STATE_RATIO, [(row["state_over_vectors"], "")])
    return found


def how_of(device: str, threads: int, precision: str) -> str:
    """A variant in words: threads on a CPU, the precision of products on a GPU."""
    return precision if device != "cpu" else "1 thread" if threads == 1 else f"{threads} threads"


def _how(cell: Dict[str, Any], results: Dict[str, Any]) -> str:
    return how_of(results["device"], cell["threads"], cell["precision"])


def _where(cell: Dict[str, Any], kind: str, results: Dict[str, Any]) -> str:
    words = [f"D {cell['dim']}"]
    if kind.startswith("lookup"):
        words.append(kind.split(", ")[1])
    if results["device"] == "cpu":
        words.append(_how(cell, results))
    return ", ".join(words)


def report(results: Dict[str, Any]) -> str:
    lines: List[str] = []
    for row in results["priors"]:
        cells = [cell for cell in results["cells"] if cell["codes"] == row["codes"]]
        for variant in sorted({(c["threads"], c["precision"]) for c in cells}):
            lines += _table([c for c in cells if (c["threads"], c["precision"]) == variant], row, results)
    lines += _transfer_table(results) + _memory_table(results) + _prior_table(results)
    lines += _lookup_lines(results) + _vqgan_table(results) + _target_table(results)
    return "\n".join(lines)


def _table(cells: List[Dict[str, Any]], row: Dict[str, Any], results: Dict[str, Any]) -> List[str]:
    """Milliseconds at one number of codes, in one variant: a column for each D."""
    first = cells[0]
    how = _how(first, results)
    lines = [f"{row['codes']:,} codes, {row['edges']:,} different edges, {first['vectors']:,} vectors, {how}", ""]
    lines += [
        "| ms, and the ratio ours / this | " + " | ".join(f"D {c['dim']}" for c in cells) + " |",
        "|---|" + "---|" * len(cells),
    ]
    for kind, title in TITLES.items():
        names = dict.fromkeys(n for c in cells for n in (*c["kinds"].get(kind, {}), *c["skipped"].get(kind, {})))
        for name in names:
            told = [_format_figure(c["kinds"].get(kind, {}), name, c["skipped"].get(kind, {})) for c in cells]
            lines.append(f"| {title}, {name} | " + " | ".join(told) + " |")
    return [*lines, ""]


def _format_figure(figures: Dict[str, Any], name: str, skipped: Dict[str, str]) -> str:
    if name in skipped:
        return skipped[name].replace("|", "/")
    if name not in figures:
        return ""
    low, high = figures[name]["quartiles"]
    taken = figures[name]["milliseconds"]
    return f"{_ms(taken)} ({_ms(low)} to {_ms(high)}), {figures['ours']['milliseconds'] / taken:.2f}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _transfer_table(results: Dict[str, Any]) -> List[str]:
    lines = [
        "The transfer alone, codes and gradients, and its share of a training step at the batch above and at twice it:",
        "",
        "| codes | D | | transfer, ms | step, ms | share | step of twice the batch, ms | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in results["cells"]:
        t = cell["transfer"]
        transfer, once, twice = t["transfer"], t["step"], t["step of twice the batch"]
        how = _how(cell, results)
        lines.append(
            f"| {cell['codes']:,} | {cell['dim']} | {how} | {_ms(transfer)} | {_ms(once)} | {transfer / once:.0%} "
            f"| {_ms(twice)} | {transfer / twice:.0%} |"
        )
    return [*lines, ""]


def _memory_table(results: Dict[str, Any]) -> List[str]:
    rows = []
    for cell in results["cells"]:
        for kind, figures in cell["kinds"].items():
            known = {n: f["peak_megabytes"] for n, f in figures.items() if f["peak_megabytes"] is not None}
            if known and kind in ("train", "evaluate", "lookup, fresh", "lookup, trained", "lookup, collapsed"):
                what = ", ".join(f"{name} {megabytes:,.0f}" for name, megabytes in known.items())
                rows.append(f"| {cell['codes']:,} | {cell['dim']} | {TITLES[kind]} | {what} |")
    if not rows:
        return ["Peaks of memory cannot be measured here.", ""] if not results["memory_kept"] else []
    return ["Peaks of memory beyond what was there, in MB:", "", "| codes | D | | |", "|---|---|---|---|", *rows, ""]


def _prior_table(results: Dict[str, Any]) -> List[str]:
    lines = ["| words | " + " | ".join(f"{name}, s" for name in results["priors"][0]["seconds"])]
    lines[0] += " | state, MB | of the vectors in float16 |"
    lines.append("|" + "---|" * (3 + len(results["priors"][0]["seconds"])))
    for row in results["priors"]:
        seconds = " | ".join(f"{s:.2f}" for s in row["seconds"].values())
        lines.append(
            f"| {row['codes']:,} | {seconds} | {row['state_megabytes']:.1f} | {row['state_over_vectors']:.2f} |"
        )
    return [*lines, ""]


def _lookup_lines(results: Dict[str, Any]) -> List[str]:
    limits = ", ".join(f"{rate:.3g} x 10^12 in {how}" for how, rate in results["tera_a_second"].items())
    lines = [
        f"Operations per second of large matrix products: {limits}. The lookup (trained) reaches this share of them, "
        "and addmm + argmin chooses another code this often:",
        "",
    ]
    lines += ["| codes | D | | of the limit | addmm + argmin chooses another code: fresh, trained, collapsed |"]
    lines += ["|---|---|---|---|---|"]
    for cell in results["cells"]:
        if "tera_a_second" in cell:
            how = _how(cell, results)
            limit = results["tera_a_second"][how if results["device"] == "cpu" else "fp32"]
            differs = ", ".join(f"{share:.2%}" for share in cell["differs"].values())
            reached = f"{cell['tera_a_second'] / limit:.0%}"
            lines.append(f"| {cell['codes']:,} | {cell['dim']} | {how} | {reached} | {differs} |")
    return [*lines, ""]


def _vqgan_table(results: Dict[str, Any]) -> List[str]:
    if not results["vqgan"]:
        return []
    first = results["vqgan"][0]
    lines = [
        f"A training step of taming's f16 encoder and decoder, {first['images']} images of {first['side']} x "
        f"{first['side']}:",
        "",
        "| codes | | quantizer | whole step, ms | quantizer's own, ms | share |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["vqgan"]:
        for name in ("ours", "two VectorQuantizer2"):
            if name in row:
                own, whole = row[name], row[f"{name}, whole step"]
                share = f"{own / whole:.1%}"
                lines.append(
                    f"| {row['codes']:,} | {row['precision']} | {name} | {_ms(whole)} | {_ms(own)} | {share} |"
                )
    return [*lines, ""]


def _target_table(results: Dict[str, Any]) -> List[str]:
    if not results["targets"]:
        return []
    lines = ["| target | codes | | at most | worst measured | where | |", "|---|---|---|---|---|---|---|"]
    for t in results["targets"]:
        verdict = "reached" if t["reached"] == t["of"] else f"not reached ({t['reached']} of {t['of']} reach it)"
        precision = "" if results["device"] == "cpu" else t["precision"]
        lines.append(
            f"| {t['what']} | {t['codes']:,} | {precision} | {t['at_most']:.2f} | {t['measured']:.2f} | {t['where']} "
            f"| {verdict} |"
        )
    return lines
