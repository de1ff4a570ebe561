"""What benchmarks/codebooks.py says of its runs: tables (Markdown, CSV, JSON) and two pictures."""

import csv
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vqct_plugin.evaluation.tables import format_table

Row = Dict[str, Any]
#: the half width of a 95 % interval of a mean, over the standard error, for 2, 3, 4 and 5 seeds (Student)
_STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}


def report(rows: Sequence[Row], folder: Optional[Path]) -> str:
    """The tables as Markdown; with a folder also as files there, with the pictures."""
    if not rows:
        return "no run of these is done"
    groups = group(rows)
    text = "\n\n".join(_describe_rate(sizes, [g for g in groups if g["sizes"] == sizes]) for sizes in _rates(groups))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "codebooks.md").write_text(text + "\n", encoding="utf-8")
        (folder / "codebooks.json").write_text(json.dumps(groups, indent=1) + "\n", encoding="utf-8")
        _write_csv(groups, folder / "codebooks.csv")
        draw_rates(groups, folder / "codebooks_rates.png")
        draw_use(groups, folder / "codebooks_use.png")
    return text


def group(rows: Sequence[Row]) -> List[Row]:
    """The seeds of a contestant at a rate together: each figure with its mean, and its interval where there are two."""
    found: Dict[Tuple[str, str], List[Row]] = {}
    for row in rows:
        found.setdefault((row["name"], json.dumps(row["sizes"])), []).append(row)
    return [_summarize(runs) for runs in found.values()]


def _summarize(runs: Sequence[Row]) -> Row:
    first = runs[0]
    sizes = first["sizes"]
    summary: Row = {
        "name": first["name"],
        "settings": first["settings"],
        "sizes": sizes,
        "nominal_bits": sum(math.log2(n) for n in sizes),
        "tokens": len(sizes),
        "seeds": len(runs),
        "steps": first["steps"],
        "seconds": statistics.median(run["seconds"] for run in runs),
    }
    for split in ("validation", "test"):
        found = [run[split] for run in runs if split in run]
        if not found:
            continue
        figures: Row = {"by_seed": {str(run["seed"]): run[split]["psnr"] for run in runs if split in run}}
        for name in ("psnr", "ssim", "frechet", "bits", "joint_bits"):
            if name in found[0]:
                figures[name] = _mean_and_half_width([its[name] for its in found])
        if sizes:
            figures["in_use"] = _mean_and_half_width([sum(its["in_use"]) / sum(sizes) for its in found])
            figures["dead"] = _mean_and_half_width([float(sum(sizes) - sum(its["in_use"])) for its in found])
            for i, n in enumerate(sizes):
                figures[f"perplexity of {n}"] = _mean_and_half_width([its["perplexity"][i] for its in found])
        of_words = [run["meaning"] for run in runs if split == "test" and "meaning" in run]
        for name in dict.fromkeys(name for its in of_words for name in its):  # a run of long ago may lack one
            figures[name] = _mean_and_half_width([its[name] for its in of_words if name in its])
        summary[split] = figures
    return summary


def _mean_and_half_width(values: Sequence[float]) -> Tuple[float, Optional[float]]:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, _STUDENT.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))


def _rates(groups: Sequence[Row]) -> List[List[int]]:
    rates: List[List[int]] = []
    for its in groups:
        if its["sizes"] not in rates:
            rates.append(its["sizes"])
    return sorted(rates, key=lambda sizes: sum(math.log2(n) for n in sizes))


def _describe_rate(sizes: Sequence[int], groups: Sequence[Row]) -> str:
    if not sizes:
        title = "No quantization (the ceiling)"
    else:
        bits = sum(math.log2(n) for n in sizes)
        tokens = "one token" if len(sizes) == 1 else f"{len(sizes)} tokens"
        title = f"{' + '.join(f'{n:,}' for n in sizes)} codes: {bits:.1f} bits and {tokens} a position"
    split = "test" if all("test" in its for its in groups) else "validation"
    rows = []
    order = sorted(groups, key=lambda g: -g[split]["psnr"][0])
    for its in order:
        figures = its[split]
        row = {"": its["name"], "PSNR, dB": _show(figures["psnr"], 2)}
        if len(order) > 1:
            row["to the best, seed by seed"] = _show_difference(figures["by_seed"], order[0][split]["by_seed"])
        row["SSIM"] = _show(figures["ssim"], 3)
        if any("frechet" in g[split] for g in groups):
            row["Fréchet distance, EfficientNet-Lite0"] = _show(figures.get("frechet"), 3)
        if sizes:
            row["in use"] = f"{figures['in_use'][0]:.1%}"
            row["dead"] = f"{figures['dead'][0]:,.0f}"
            row["perplexity"] = " + ".join(f"{figures[f'perplexity of {n}'][0]:,.0f}" for n in sizes)
            row["bits by entropy"] = f"{figures['bits'][0]:.2f}"
            if len(sizes) > 1:
                row["of the pairs"] = f"{figures['joint_bits'][0]:.2f}"
        if any("accuracy" in g[split] for g in groups):
            row["clothes told"] = _show_share(figures.get("accuracy"))
            if any("by_meaning" in g[split] for g in groups):
                row["told by words' vectors"] = _show_share(figures.get("by_meaning"))
                row["words shuffled"] = _show_share(figures.get("by_shuffled"))
            row["neighbors kept"] = _show_share(figures.get("kept_neighbors"))
        row["s"] = f"{its['seconds']:.0f}"
        row["settings chosen"] = ", ".join(f"{k} {v}" for k, v in its["settings"].items()) or "recommended"
        rows.append(row)
    seeds = ", ".join(sorted({f"{its['seeds']} seed{'s' if its['seeds'] > 1 else ''}" for its in groups}))
    text = f"**{title}**; {split} photographs, {groups[0]['steps']:,} steps, {seeds}\n\n{format_table(rows)}"
    for name, what in (("chance", "clothes told by chance"), ("kept_by_chance", "neighbors kept by chance")):
        found = [g[split][name][0] for g in groups if name in g[split]]
        text += f"\n\n{what}: {found[0]:.1%}" if found else ""
    return text


def _show(figure: Optional[Tuple[float, Optional[float]]], digits: int) -> str:
    if figure is None:
        return "-"
    mean, half = figure
    return f"{mean:.{digits}f}" if half is None else f"{mean:.{digits}f} ± {half:.{digits}f}"


def _show_difference(own: Dict[str, float], others: Dict[str, float]) -> str:
    """Seeds share their batches and the first weights, so that a difference moves less than what it is between."""
    found = [own[seed] - others[seed] for seed in own if seed in others]
    return "" if own == others else _show(_mean_and_half_width(found) if found else None, 2)


def _show_share(figure: Optional[Tuple[float, Optional[float]]]) -> str:
    return "-" if figure is None else f"{figure[0]:.1%}" + ("" if figure[1] is None else f" ± {figure[1]:.1%}")


def _write_csv(groups: Sequence[Row], file: Path) -> None:
    records = []
    for its in groups:
        for split in ("validation", "test"):
            for name, figure in its.get(split, {}).items():
                if name == "by_seed":
                    continue
                mean, half = figure
                records.append(
                    {"name": its["name"], "codes": "+".join(map(str, its["sizes"])), "bits": its["nominal_bits"],
                     "seeds": its["seeds"], "steps": its["steps"], "split": split, "figure": name, "mean": mean,
                     "half_width": half}
                )  # fmt: skip
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def draw_rates(groups: Sequence[Row], file: Path) -> None:
    """PSNR against bits a position, with the ceiling."""
    figure, axis = _begin_picture()
    quantized = [its for its in groups if its["sizes"]]
    for i, name in enumerate(dict.fromkeys(its["name"] for its in quantized)):
        own = sorted((its for its in quantized if its["name"] == name), key=lambda g: g["nominal_bits"])
        found = [its.get("test") or its["validation"] for its in own]
        axis.errorbar(
            [its["nominal_bits"] for its in own], [f["psnr"][0] for f in found],
            yerr=[f["psnr"][1] or 0 for f in found], label=name, capsize=2, **_style(i),
        )  # fmt: skip
    for its in groups:
        if not its["sizes"]:
            value = (its.get("test") or its["validation"])["psnr"][0]
            axis.axhline(value, color="#70757D", linestyle=":")
            axis.annotate("no quantization", (0.01, value), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
    axis.set_xlabel("bits a position")
    axis.set_ylabel("PSNR, dB")
    _end_picture(figure, axis, file)


def draw_use(groups: Sequence[Row], file: Path) -> None:
    """Codes in use against the number of codes."""
    figure, axis = _begin_picture()
    quantized = [its for its in groups if its["sizes"]]
    for i, name in enumerate(dict.fromkeys(its["name"] for its in quantized)):
        own = sorted((its for its in quantized if its["name"] == name), key=lambda g: sum(g["sizes"]))
        found = [its.get("test") or its["validation"] for its in own]
        axis.plot([sum(its["sizes"]) for its in own], [f["in_use"][0] for f in found], label=name, **_style(i))
    axis.set_xscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("codes, all parts together")
    axis.set_ylabel("codes in use")
    _end_picture(figure, axis, file)


def _begin_picture() -> Tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    return figure, figure.subplots()


def _style(i: int) -> Dict[str, Any]:
    from vqct_plugin._drawing import COLORS

    return {
        "color": COLORS[i % len(COLORS)],
        "marker": "os^Dv"[i // len(COLORS) % 5],
        "markersize": 5,
        "linewidth": 1.2,
    }


def _end_picture(figure: Any, axis: Any, file: Path) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    figure.savefig(file, dpi=130)
