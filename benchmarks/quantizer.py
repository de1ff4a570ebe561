"""The quantizer's speed and memory, against what it stands beside, in one run.

    python benchmarks/quantizer.py --output benchmarks/results/cpu.json

Measured, on the same maps, for 1,024, 6,207 and 16,384 codes in the proportion of the paper's 1,949 adjectives and
4,258 nouns, on a made-up graph of 660,000 adjective-noun occurrences with the long tail of words:

- *ours*: CodebookTransferQuantizer; also evaluated with its codebook frozen.
- *VectorQuantizer2*: taming's, with as many codes and channels, which is what the same YAML gives without us.
- *two VectorQuantizer2*: one for each part, with its codes and its half of the channels, so that it compares as many
  numbers as ours.
- *authors' formula*: two GCNConv of PyTorch Geometric over every edge as often as it occurs, then taming's distances.
- *products*: the two matrix products of the distances, z by codes, and nothing else.

A training step is forward and backward with the loss, without an optimizer. The contestants take turns in a random
order, and each makes a step that is not counted before the one that is, so that what else the machine does, and what
the one before left behind, meets them alike. The figures are medians over the rounds.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqct_plugin.lookup import nearest
from vqct_plugin.prior import CodebookPrior
from vqct_plugin.quantizer import CodebookTransferQuantizer

ADJECTIVES, NOUNS = 1949, 4258  # the paper's
#: contestant, against, at most this ratio of the medians; at 6,207 codes on a CPU
TARGETS = (
    ("train", "ours", "authors' formula", 1 / 3),
    ("train", "ours", "VectorQuantizer2", 1.15),
    ("evaluate", "ours", "VectorQuantizer2", 0.8),
    ("evaluate", "ours, frozen", "products", 1.5),
)
LOOKUP_MEGABYTES = 64


def made_up_prior(codes: int, occurrences: int, dim: int, seed: int = 0) -> CodebookPrior:
    """Words whose frequencies fall as 1 / rank, and bigrams drawn from them; CLIP's 512 dimensions in the paper."""
    rng = np.random.default_rng(seed)
    adjectives = round(codes * ADJECTIVES / (ADJECTIVES + NOUNS))
    sizes = (adjectives, codes - adjectives)
    frequencies = [1 / np.arange(1, n + 1) for n in sizes]
    ends = np.stack([rng.choice(n, occurrences, p=f / f.sum()) for n, f in zip(sizes, frequencies)])
    ends[1] += adjectives
    return CodebookPrior(
        words=[f"a{i}" for i in range(sizes[0])] + [f"n{i}" for i in range(sizes[1])],
        part_of_speech=np.repeat([0, 1], sizes),
        count=np.concatenate([np.round(1e6 * f) for f in frequencies]).astype(np.int64),
        vectors=rng.standard_normal((codes, dim)).astype(np.float32),
        edges=ends,
        edge_count=np.ones(occurrences, dtype=np.int64),
    )


class AuthorsFormula(nn.Module):
    """The published formula as it is published: repeated edges, both layers over the graph, an N x n matrix."""

    def __init__(self, prior: CodebookPrior, e_dim: int, dropout: float = 0.5, beta: float = 0.25) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        self.beta, self.dropout = beta, dropout
        self.sizes = np.bincount(prior.part_of_speech, minlength=2).tolist()
        half = e_dim // 2
        self.layer1, self.layer2 = GCNConv(prior.vectors.shape[1], half), GCNConv(half, half)
        repeated = np.repeat(prior.edges, prior.edge_count, axis=1)
        self.register_buffer("edges", torch.from_numpy(np.concatenate([repeated, repeated[::-1]], axis=1)).long())
        self.register_buffer("vectors", torch.from_numpy(prior.vectors.astype(np.float32)))

    def forward(self, z: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = F.dropout(F.relu(self.layer1(self.vectors, self.edges)), self.dropout, self.training)
        codes = self.layer2(hidden, self.edges).split(self.sizes)
        quantized, loss, indices = [], 0, []
        for part, table in zip(z.chunk(2, dim=1), codes):
            part = part.permute(0, 2, 3, 1).contiguous()
            flat = part.view(-1, part.shape[-1])
            distances = (flat**2).sum(1, keepdim=True) + (table**2).sum(1) - 2 * flat @ table.t()
            chosen = distances.argmin(1)
            q = table[chosen].view(part.shape)
            loss = loss + ((q.detach() - part) ** 2).mean() + self.beta * ((q - part.detach()) ** 2).mean()
            quantized.append((part + (q - part).detach()).permute(0, 3, 1, 2).contiguous())
            indices.append(chosen)
        return torch.cat(quantized, dim=1), loss, torch.cat(indices)


class TwoTables(nn.Module):
    """Two of taming's quantizers side by side."""

    def __init__(self, quantizers: List[Any]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(quantizers)

    def forward(self, z: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, None]:
        results = [quantizer(part) for quantizer, part in zip(self.quantizers, z.chunk(2, dim=1))]
        return torch.cat([r[0] for r in results], dim=1), sum(r[1] for r in results), None  # type: ignore[return-value]


def contestants(prior: CodebookPrior, e_dim: int) -> Dict[str, nn.Module]:
    codes, sizes = len(prior.words), np.bincount(prior.part_of_speech, minlength=2).tolist()
    made: Dict[str, nn.Module] = {"ours": CodebookTransferQuantizer(codes, e_dim, prior=prior)}
    try:
        from taming.modules.vqvae.quantize import VectorQuantizer2
    except ImportError:
        print("taming-transformers is not installed: VectorQuantizer2 is left out", file=sys.stderr)
    else:
        made["VectorQuantizer2"] = VectorQuantizer2(codes, e_dim, 0.25)
        made["two VectorQuantizer2"] = TwoTables([VectorQuantizer2(n, e_dim // 2, 0.25) for n in sizes])
    try:
        made["authors' formula"] = AuthorsFormula(prior, e_dim)
    except ImportError:
        print("torch_geometric is not installed: the authors' formula is left out", file=sys.stderr)
    return made


def training_step(model: nn.Module, z: torch.Tensor) -> Callable[[], None]:
    model.train()
    parameters, z = list(model.parameters()), z.clone().requires_grad_()

    def step() -> None:
        for leaf in (*parameters, z):
            leaf.grad = None
        quantized, loss, _ = model(z)
        (quantized.mean() + loss).backward()

    return step


def evaluation(model: nn.Module, z: torch.Tensor) -> Callable[[], None]:
    model.eval()

    @torch.no_grad()
    def step() -> None:
        model(z)

    return step


def products(prior: CodebookPrior, z: torch.Tensor) -> Callable[[], None]:
    sizes = np.bincount(prior.part_of_speech, minlength=2).tolist()
    parts = [part.permute(0, 2, 3, 1).reshape(-1, part.shape[1]) for part in z.chunk(2, dim=1)]
    tables = [torch.randn(n, part.shape[1], device=z.device).t() for n, part in zip(sizes, parts)]

    @torch.no_grad()
    def step() -> None:
        for part, table in zip(parts, tables):
            part @ table

    return step


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - begin


def peak_megabytes(step: Callable[[], None], device: torch.device) -> Optional[float]:
    """What a step takes at its peak beyond what was there before it; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what earlier steps have freed, or it would be taken again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        step()
        return (_status("VmHWM") - before) / 2**10
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    """Kilobytes of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(codes: int, options: argparse.Namespace) -> Dict[str, Any]:
    device = torch.device(options.device)
    torch.manual_seed(0)
    prior = made_up_prior(codes, options.occurrences, options.word_dim)
    models = {name: model.to(device) for name, model in contestants(prior, options.channels).items()}
    z = torch.randn(options.maps, options.channels, options.side, options.side, device=device)
    result: Dict[str, Any] = {"codes": codes, "edges": int(prior.edges.shape[1]), "train": {}, "evaluate": {}}
    for kind, make in (("train", training_step), ("evaluate", evaluation)):
        steps = {name: make(model, z) for name, model in models.items()}
        if kind == "evaluate":
            frozen = CodebookTransferQuantizer(codes, options.channels, prior=prior).to(device).eval()
            frozen.freeze_codebook()
            steps["ours, frozen"] = evaluation(frozen, z)
            steps["products"] = products(prior, z)
        times: Dict[str, List[float]] = {name: [] for name in steps}
        order = random.Random(0)
        for _ in range(options.rounds):
            for name in order.sample(list(steps), len(steps)):
                steps[name]()
                times[name].append(seconds_of(steps[name], device))
        for name, step in steps.items():
            result[kind][name] = {
                "milliseconds": 1e3 * statistics.median(times[name]),
                "quartiles": [1e3 * float(q) for q in np.percentile(times[name], [25, 75])],
                "peak_megabytes": peak_megabytes(step, device),
            }
    return result


def lookup_memory(codes: int, maps: int, side: int, channels: int, device: torch.device) -> Optional[float]:
    """The peak of one lookup in megabytes, its result included."""
    torch.manual_seed(0)
    z = torch.randn(maps * side * side, channels, device=device)
    table = torch.randn(codes, channels, device=device)
    nearest(z[:64], table)
    with torch.no_grad():
        return peak_megabytes(lambda: nearest(z, table) is None, device)


def report(results: Dict[str, Any]) -> str:
    lines = []
    for result in results["sizes"]:
        lines += [f"{result['codes']:,} codes, {result['edges']:,} different edges", ""]
        lines += ["| | ms | ours takes | peak MB |", "|---|---|---|---|"]
        for kind, word in (("train", "training step"), ("evaluate", "evaluation")):
            ours = result[kind]["ours"]["milliseconds"]
            for name, figures in result[kind].items():
                low, high = figures["quartiles"]
                peak = figures["peak_megabytes"]
                lines.append(
                    f"| {word}, {name} | {figures['milliseconds']:.1f} ({low:.1f} to {high:.1f}) "
                    f"| {ours / figures['milliseconds']:.2f} of it | {'' if peak is None else format(peak, '.0f')} |"
                )
        lines.append("")
    memory = results["lookup"]
    if memory["megabytes"] is not None:
        lines += [
            f"One lookup of {memory['vectors']:,} vectors of {memory['channels']} in {memory['codes']:,} codes takes "
            f"{memory['megabytes']:.0f} MB at its peak; the whole matrix of distances would take "
            f"{memory['vectors'] * memory['codes'] * 4 / 2**20:,.0f} MB.",
            "",
        ]
    if results["targets"]:
        lines += ["| target | at most | measured | |", "|---|---|---|---|"]
        for t in results["targets"]:
            reached = "reached" if t["measured"] <= t["at_most"] else "not reached"
            lines.append(f"| {t['what']} | {t['at_most']:.2f} | {t['measured']:.2f} | {reached} |")
    return "\n".join(lines)


def targets_of(results: Dict[str, Any]) -> List[Dict[str, Any]]:
    """What is to be reached, at the paper's number of codes on a CPU."""
    found = []
    for result in results["sizes"]:
        if result["codes"] != ADJECTIVES + NOUNS or results["device"] != "cpu":
            continue
        for kind, ours, other, at_most in TARGETS:
            if other in result[kind]:
                measured = result[kind][ours]["milliseconds"] / result[kind][other]["milliseconds"]
                found.append({"what": f"{kind}: {ours} / {other}", "at_most": at_most, "measured": measured})
    megabytes = results["lookup"]["megabytes"]
    if found and megabytes is not None:
        found.append({"what": "lookup: MB", "at_most": float(LOOKUP_MEGABYTES), "measured": megabytes})
    return found


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(arguments: Optional[List[str]] = None) -> Dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, nargs="+", default=[1024, ADJECTIVES + NOUNS, 16384])
    parser.add_argument("--occurrences", type=int, default=660_000, help="adjective-noun pairs, repeats included")
    parser.add_argument("--word-dim", type=int, default=512)
    parser.add_argument("--maps", type=int, default=8)
    parser.add_argument("--side", type=int, default=16, help="positions along each side of a map")
    parser.add_argument("--channels", type=int, default=512, help="of a map, both parts together")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    results: Dict[str, Any] = {
        "device": device.type,
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "threads": options.threads,
        "torch": torch.__version__,
        "maps": [options.maps, options.channels, options.side, options.side],
        "occurrences": options.occurrences,
        "rounds": options.rounds,
        "sizes": [],
    }
    largest, maps, side = max(options.codes), 2 * options.maps, 2 * options.side
    half = options.channels // 2
    results["lookup"] = {
        "codes": largest,
        "vectors": maps * side * side,
        "channels": half,
        "megabytes": lookup_memory(largest, maps, side, half, device),
    }
    for codes in options.codes:
        print(f"{codes:,} codes ...", file=sys.stderr, flush=True)
        results["sizes"].append(measure(codes, options))
    results["targets"] = targets_of(results)
    print(f"{results['machine']}, {options.threads} threads, torch {torch.__version__}\n\n{report(results)}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
