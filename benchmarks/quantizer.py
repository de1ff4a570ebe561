"""The quantizer's speed and memory, against its honest peers, in one run.

    python benchmarks/quantizer.py --output benchmarks/results/cpu.json
    python benchmarks/quantizer.py --quick                      # a look in two minutes
    python benchmarks/quantizer.py --codes 6207 --keep-memory   # the allocator's effect taken out

Measured, at each number of codes and each D, the channels of one part, is the following. The words are the most
frequent of the prior that the package ships, with their graph. Where it has too few of them, and everywhere with
--made-up, they are made up: in the proportion of the paper's 1,949 adjectives and 4,258 nouns, on a graph of 660,000
adjective-noun occurrences with the long tail of words, which at 1,024 words is thirteen times as dense; vectors in
float16.

- a *training step*, forward and backward with the loss, without an optimizer; an *evaluation*, forward without
  gradient; a *lookup* alone, N vectors of D in one table of all the codes; the *entries* of given indices.
- *ours*: CodebookTransferQuantizer; *ours, frozen*: with its codebook frozen.
- *two VectorQuantizer2*: taming's, one for each part, with its codes and its half of the channels, so that it compares
  as many numbers as ours.
- *two VectorQuantize*, *two SimVQ*: of vector-quantize-pytorch, one for each part, straight-through gradient; the first
  learns its codes by averages, without a gradient.
- *products*: the two matrix products of the distances, z by codes, and nothing else.
- *addmm + argmin*, *cdist + argmin*: how a lookup is written in one line. The lookup's codebook is *fresh* (that of a
  quantizer just made), *trained* (each code lies beside one of the vectors) or *collapsed* (all codes within 1e-6).
- *authors' formula* (--authors, slow): two GCNConv of PyTorch Geometric over every edge as often as it occurs, then
  taming's distances.
- *transfer*: the codes and the gradients of the weights from them, by ``embedding.weight``: the part of a training step
  that no batch makes longer, shown beside the step at two sizes of the batch.

The contestants of a kind take turns in a random order, and each makes a step that is not counted before the one that is
(unless a step takes over half a second), so that what else the machine does, and what the one before left behind, meets
them alike. A short step is repeated within its turn until 5 milliseconds have passed. The figures are medians over the
rounds: --rounds of them, fewer where --minutes runs out, three at least, and one of a step that takes over three
seconds. With 65,536 codes the maps are half as many, with more a quarter, and with more only the last of --threads is
measured; --full takes both back. What would need more than --gigabytes is left out, and the report says so.

On a GPU, each in float32, in TF32 and under bfloat16 autocast (what is fed in is bfloat16 there, as a convolution's
output is); the share of a whole step of taming's f16 VQGAN; and how much of the rate of large matrix products, measured
in the same run, the lookup reaches.
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent))
from quantizer_contestants import (
    ADJECTIVES,
    NOUNS,
    Step,
    codebook,
    contestants,
    entries,
    evaluation,
    gigabytes_needed,
    lookups,
    made_up_prior,
    products,
    training_step,
    transfer_step,
    whole_step,
)
from quantizer_tables import TITLES, how_of, report, targets_of

from vqct_plugin import CodebookPrior, CodebookTransferQuantizer

#: how glibc is told to keep what is freed, for --keep-memory
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "4000000000",
}
# From here on N is smaller, and only one number of threads is measured, unless --full.
LARGE, HUGE = 65_536, 65_537
SHORTEST_TURN, LONG_STEP, VERY_LONG_STEP = 0.005, 0.5, 3.0  # seconds
FEWEST_ROUNDS = 3


class Variant(NamedTuple):
    """How a cell is measured: threads on a CPU, the precision of products on a GPU."""

    threads: int
    precision: str


# How the steps are measured.


@contextlib.contextmanager
def precision_of_products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def seconds_of(step: Step, device: torch.device, repeats: int = 1) -> float:
    _wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    _wait(device)
    return (time.perf_counter() - begin) / repeats


def take_turns(
    steps: Dict[str, Step], device: torch.device, rounds: int, seconds: float, seed: int = 0
) -> Tuple[Dict[str, Dict[str, Any]], Dict[str, str]]:
    """The figures of each step, and why some have none: the error of a contestant that is not ours."""
    repeats, first, failed = {}, {}, {}
    for name, step in steps.items():
        try:
            step()
            first[name] = seconds_of(step, device)
        except Exception as error:  # of whatever kind another library raises
            if name.startswith("ours"):
                raise
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        repeats[name] = max(1, round(SHORTEST_TURN / max(first[name], 1e-6)))
    times: Dict[str, List[float]] = {name: [] for name in first}
    order, begin = random.Random(seed), time.perf_counter()
    for done in range(rounds):
        if done >= min(FEWEST_ROUNDS, rounds) and time.perf_counter() - begin > seconds:
            break
        for name in order.sample(list(times), len(times)):
            if first[name] > VERY_LONG_STEP and done > 0:
                continue
            if first[name] < LONG_STEP:
                steps[name]()
            times[name].append(seconds_of(steps[name], device, repeats[name]))
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(taken),
            "quartiles": [1e3 * float(q) for q in np.percentile(taken, [25, 75])],
            "rounds": len(taken),
            "peak_megabytes": None,
        }
        for name, taken in times.items()
    }, failed


def peak_megabytes(step: Step, device: torch.device) -> Optional[float]:
    """What a step takes at its peak beyond what was there before it; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if memory_is_kept():
        return None  # what is freed stays with the process, which then seems to take nothing
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what earlier steps have freed, or it would be taken again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        step()
        return (_status("VmHWM") - before) / 2**10
    except (OSError, AttributeError):
        return None


def memory_is_kept() -> bool:
    """Whether this process was started so that it keeps what is freed."""
    return os.environ.get("MALLOC_MMAP_MAX_") == "0"


def _status(name: str) -> int:
    """Kilobytes of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rate_of_products(device: torch.device, precision: str) -> float:
    """10^12 operations a second in a product of two large square matrices: what this machine can do at all."""
    side = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    with precision_of_products(precision):
        torch.mm(a, b, out=out)
        taken = [seconds_of(lambda: torch.mm(a, b, out=out) is None, device) for _ in range(5)]
    return 2 * side**3 / min(taken) / 1e12


# One cell: a number of codes, a D, a variant.


def of_a_map(codes: int, options: argparse.Namespace) -> int:
    """How many maps: fewer with many codes, or the matrices of the others would not fit and the run not end."""
    if options.full:
        return options.maps  # type: ignore[no-any-return]
    share = 1 if codes < LARGE else 2 if codes < HUGE else 4
    return max(1, options.maps // share)


def variants_of(codes: int, options: argparse.Namespace) -> List[Variant]:
    if options.device != "cpu":
        return [Variant(torch.get_num_threads(), precision) for precision in ("fp32", "tf32", "bf16")]
    threads = options.threads if options.full or codes < HUGE or len(options.codes) == 1 else options.threads[-1:]
    return [Variant(number, "fp32") for number in threads]


def measure(prior: CodebookPrior, dim: int, options: argparse.Namespace, seconds: float) -> List[Dict[str, Any]]:
    """A cell for each variant; ``seconds`` is what one of them should take."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    codes, maps, side = len(prior), of_a_map(len(prior), options), options.side
    vectors = maps * side * side
    wanted = variants_of(codes, options)
    torch.set_num_threads(wanted[-1].threads)
    models = {name: model.to(device) for name, model in contestants(prior, 2 * dim, options.authors).items()}
    frozen = copy.deepcopy(models["ours"]).eval()
    frozen.freeze_codebook()
    models["ours, frozen"] = frozen
    z = torch.randn(maps, 2 * dim, side, side, device=device)
    twice = torch.randn(2 * maps, 2 * dim, side, side, device=device)
    flat = z[:, :dim].permute(0, 2, 3, 1).reshape(-1, dim).contiguous()

    def fits(name: str, skipped: Dict[str, str]) -> bool:
        needed = gigabytes_needed(name, prior, vectors, dim)
        if needed > options.gigabytes:
            skipped[name] = f"left out: it needs about {needed:.0f} GB"
        return needed <= options.gigabytes

    cells = []
    for variant in wanted:
        torch.set_num_threads(variant.threads)
        cell: Dict[str, Any] = {"codes": codes, "dim": dim, "vectors": vectors, "maps": maps, **variant._asdict()}
        cell.update(kinds={}, skipped={}, differs={})
        its_z = z.bfloat16() if variant.precision == "bf16" else z
        last = variant == wanted[-1]

        def run(kind: str, steps: Dict[str, Step], with_peaks: bool, cell: Dict[str, Any] = cell) -> None:
            skipped: Dict[str, str] = {}
            steps = {name: step for name, step in steps.items() if fits(name, skipped)}
            figures, failed = take_turns(steps, device, options.rounds, seconds / len(TITLES))
            for name in figures if with_peaks else ():
                figures[name]["peak_megabytes"] = peak_megabytes(steps[name], device)
            cell["kinds"][kind] = figures
            cell["skipped"][kind] = {**skipped, **failed}

        with precision_of_products(variant.precision):
            train = {n: training_step(m, its_z, variant.precision) for n, m in models.items() if n != "ours, frozen"}
            run("train", train, last)
            cell["transfer"] = transfer_share(
                models["ours"], its_z, twice.to(its_z.dtype), variant, options.rounds, seconds / len(TITLES)
            )
            evaluate = {n: evaluation(m, its_z, variant.precision) for n, m in models.items()}
            evaluate["products"] = products(prior, its_z, variant.precision)
            run("evaluate", evaluate, last)
            run("entry", entries(models, prior, z), last)
        if variant.precision == "fp32":  # a lookup is in float32, whatever the rest
            with precision_of_products("fp32"), torch.no_grad():
                for state in ("fresh", "trained", "collapsed"):
                    table = codebook(state, models["ours"], flat)
                    steps = lookups(flat, table)
                    run(f"lookup, {state}", steps, last or device.type == "cuda")
                    if fits("addmm + argmin", {}):
                        theirs = steps["addmm + argmin"]()
                        cell["differs"][state] = float((steps["ours"]()[:, 0] != theirs).float().mean())
            operations = 2 * vectors * codes * dim
            taken = cell["kinds"]["lookup, trained"]["ours"]["milliseconds"]
            cell["tera_a_second"] = operations / taken / 1e9
        cells.append(cell)
    return cells


def transfer_share(
    model: nn.Module, z: torch.Tensor, twice: torch.Tensor, variant: Variant, rounds: int, seconds: float
) -> Dict[str, Any]:
    """The transfer's milliseconds, and those of a training step at two sizes of the batch."""
    steps = {
        "transfer": transfer_step(model),
        "step": training_step(model, z, variant.precision),
        "step of twice the batch": training_step(model, twice, variant.precision),
    }
    figures, _ = take_turns({f"ours: {name}": step for name, step in steps.items()}, z.device, rounds, seconds)
    return {name: figures[f"ours: {name}"]["milliseconds"] for name in steps}


def prior_of(codes: int, options: argparse.Namespace) -> CodebookPrior:
    shipped = CodebookPrior.load("default")
    if options.made_up or codes > len(shipped):
        return made_up_prior(codes, options.occurrences, options.word_dim)
    return shipped.select(codes)


def of_the_prior(codes: int, options: argparse.Namespace) -> Tuple[CodebookPrior, Dict[str, Any]]:
    """A prior, and the seconds in which it is made, saved, loaded, and made a quantizer of; the size of its state."""
    seconds: Dict[str, float] = {}

    def time_it(name: str, make: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        made = make()
        seconds[name] = time.perf_counter() - begin
        return made

    prior = time_it("prior made", lambda: prior_of(codes, options))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prior.safetensors"
        time_it("prior saved", lambda: prior.save(file))
        time_it("prior loaded", lambda: CodebookPrior.load(file))
    quantizer = time_it(
        "quantizer made", lambda: CodebookTransferQuantizer(codes, 2 * max(options.dims), prior=prior, transfer="graph")
    )
    counter = _Counter()
    torch.save(quantizer.state_dict(), counter)
    return prior, {
        "codes": codes,
        "edges": int(prior.edges.shape[1]),
        "seconds": seconds,
        "state_megabytes": counter.bytes / 2**20,
        "state_over_vectors": counter.bytes / (2 * prior.vectors.size),
    }


class _Counter:
    """A file that keeps nothing but its length."""

    bytes = 0

    def write(self, data: Any) -> int:
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass


def of_the_vqgan(options: argparse.Namespace) -> List[Dict[str, Any]]:
    """Steps of taming's f16 encoder and decoder around a quantizer: forward and backward of the pixels' error and the
    quantizer's loss; no discriminator, no LPIPS, no optimizer, all of which only make ours a smaller share."""
    from taming.modules.diffusionmodules.model import Decoder, Encoder

    device, side, channels = torch.device(options.device), options.vqgan_side, 256
    small = side < 256
    config = {
        "double_z": False, "z_channels": channels, "resolution": side, "in_channels": 3, "out_ch": 3,
        "ch": 32 if small else 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 1 if small else 2,
        "attn_resolutions": [] if small else [16], "dropout": 0.0,
    }  # fmt: skip
    rows = []
    for codes in [c for c in options.codes if c < HUGE]:
        torch.manual_seed(0)
        prior = prior_of(codes, options)
        quantizers = contestants(prior, channels)
        around = nn.ModuleList([Encoder(**config), Decoder(**config)]).to(device).train()
        x = torch.rand(options.vqgan_images, 3, side, side, device=device) * 2 - 1
        z = torch.randn(options.vqgan_images, channels, side // 16, side // 16, device=device)
        for precision in ("fp32",) if device.type == "cpu" else ("fp32", "tf32", "bf16"):
            its_z = z.bfloat16() if precision == "bf16" else z
            steps = {}
            for name in ("ours", "two VectorQuantizer2"):
                if name in quantizers:
                    quantizer = quantizers[name].to(device)
                    steps[name] = training_step(quantizer, its_z, precision)
                    steps[f"{name}, whole step"] = whole_step(around, quantizer, x, precision)
            with precision_of_products(precision):
                figures, _ = take_turns(steps, device, options.rounds, 30.0)
            taken = {name: figure["milliseconds"] for name, figure in figures.items()}
            rows.append({"codes": codes, "precision": precision, "images": len(x), "side": side, **taken})
    return rows


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def parse_options(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = os.cpu_count() or 1
    parser.add_argument("--codes", type=int, nargs="+", default=None)
    parser.add_argument("--dims", type=int, nargs="+", default=None, help="D, the channels of one part (8 32 256)")
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="on a CPU (1 2)")
    parser.add_argument("--rounds", type=int, default=None, help="at most so many (9)")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="about how long it may take, but for the largest sizes (20)"
    )
    parser.add_argument("--quick", action="store_true", help="1,024 and 6,207 codes, D 32, three rounds")
    parser.add_argument("--full", action="store_true", help="no fewer maps or threads with many codes: hours")
    parser.add_argument("--authors", action="store_true", help="the authors' formula too")
    parser.add_argument("--made-up", action="store_true", help="made-up words where the shipped prior has enough too")
    parser.add_argument(
        "--occurrences", type=int, default=660_000, help="adjective-noun pairs of made-up words, repeats included"
    )
    parser.add_argument("--word-dim", type=int, default=512, help="of made-up words")
    parser.add_argument("--maps", type=int, default=None, help="images in a batch (8; on a GPU 32)")
    parser.add_argument("--side", type=int, default=16, help="positions along each side of a map")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="what needs more is left out (8)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vqgan", action="store_true", help="the share of a whole VQGAN step on a CPU too")
    parser.add_argument("--vqgan-images", type=int, default=4)
    parser.add_argument("--vqgan-side", type=int, default=256, help="of the images; below 256 the model is a small one")
    parser.add_argument("--keep-memory", action="store_true", help="start again with MALLOC_* set so that memory stays")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args(arguments)
    sizes = [1024, ADJECTIVES + NOUNS] if options.quick else [1024, ADJECTIVES + NOUNS, 16384, 65536, 262144]
    options.codes = sorted(options.codes or sizes)
    options.dims = sorted(options.dims or ([32] if options.quick else [8, 32, 256]))
    options.threads = sorted(set(options.threads or ([min(2, cores)] if options.quick else [1, min(2, cores)])))
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.maps = options.maps or (8 if options.device == "cpu" else 32)
    return options


def main(arguments: Optional[List[str]] = None) -> Dict[str, Any]:
    options = parse_options(arguments)
    if options.keep_memory and not memory_is_kept():
        words = sys.argv[1:] if arguments is None else arguments
        command = [sys.executable, str(Path(__file__).resolve()), *words]
        os.execve(sys.executable, command, {**os.environ, **KEEP_MEMORY})
    device, begin = torch.device(options.device), time.perf_counter()
    number = len(options.dims) * sum(len(variants_of(codes, options)) for codes in options.codes)
    seconds = 60 * options.minutes / number
    results: Dict[str, Any] = {
        "device": device.type,
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "torch": torch.__version__,
        "memory_kept": memory_is_kept(),
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in sorted(vars(options).items())},
        "tera_a_second": {},
        "priors": [],
        "cells": [],
    }
    for variant in variants_of(0, options):
        torch.set_num_threads(variant.threads)
        how = how_of(device.type, variant.threads, variant.precision)
        results["tera_a_second"][how] = rate_of_products(device, variant.precision)
    for codes in options.codes:
        prior, row = of_the_prior(codes, options)
        results["priors"].append(row)
        for dim in options.dims:
            print(f"{codes:,} codes, D {dim} ({time.perf_counter() - begin:.0f} s) ...", file=sys.stderr, flush=True)
            results["cells"] += measure(prior, dim, options, seconds)
            keep(results, options.output)
        del prior
        gc.collect()
    results["vqgan"] = of_the_vqgan(options) if options.vqgan or device.type == "cuda" else []
    results["targets"] = targets_of(results)
    results["seconds"] = time.perf_counter() - begin
    kept = "memory kept by the process (--keep-memory)" if results["memory_kept"] else "the system's allocator"
    print(f"{results['machine']}, torch {torch.__version__}, {kept}, {results['seconds']:.0f} s\n\n{report(results)}")
    keep(results, options.output)
    return results


def keep(results: Dict[str, Any], file: Optional[Path]) -> None:
    """Write what was measured so far, so that nothing is lost with a run that ends early."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.new")
        new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        os.replace(new, file)


if __name__ == "__main__":
    main()
