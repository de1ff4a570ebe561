"""Codebooks at equal bits a position: the same small VQ-VAE, the same batches, another codebook.

    python benchmarks/codebooks.py --data ../shared/data --output codebooks.jsonl          # hours on two CPU cores
    python benchmarks/codebooks.py --data ../shared/data --quick                           # a look in ten minutes
    python benchmarks/codebooks.py --data ../shared/data --only EMA VQCT --rates 10        # a part of it
    python benchmarks/codebooks.py --output codebooks.jsonl --report docs/results          # tables and pictures alone

A position of the map costs the sum over the parts of log2 of their numbers of codes: 10 bits are one codebook of 1,024,
14 bits one of 16,384, 18 bits two of 399 and 625 (17.9 bits); ``--rates`` also takes sizes, ``128+128`` or ``4096``;
more codes than the package's prior has words need ``--prior``.

First each contestant tries its own small grid around what its authors recommend, with one seed at each rate, and takes
what is best on the validation photographs; then all are trained with three seeds, and the test photographs are looked
at once, at the end of those runs. ``--no-grid`` leaves the first part out, and takes what is best of the runs that
--output has. Settings, grids and sources are in benchmarks/codebooks_contestants.py.

Reported, over whole splits of photographs: PSNR, SSIM, a Frechet distance over the pooled features of
EfficientNet-Lite0 (which is not FID), codes in use, perplexity, bits by entropy (each part alone, and of the pairs),
training seconds. Of words: the share of the ten nearest words whose codes are among the ten nearest codes, and how well
a linear classifier tells photographs of clothes apart by the counts of their codes alone. The ceiling is the same model
without quantization.

Every finished run is a line of --output; the same command goes on where it was stopped. The folder --data holds
photographs/ and bsds500/, see benchmarks/README.md.
"""

import argparse
import functools
import hashlib
import json
import math
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent))

import torch
import torch.nn as nn
import torch.nn.functional as F
from codebooks_contestants import CONTESTANTS, Settings, parameters_of, words_and_codes
from codebooks_data import Crops, Features, cut_tiles, split_of, to_tensor
from codebooks_tables import report
from codebooks_words import NEAREST, classify_clothing, kept_neighbors
from torch import Tensor

from vqct_plugin import CodebookUsage
from vqct_plugin.evaluation.frechet import frechet_distance

RATES = {"10": (1024,), "14": (16384,), "18": (399, 625)}
CEILING = "no quantization"


class Job(NamedTuple):
    """One run: who, how, at which sizes, with which seed, and whether the test photographs are looked at."""

    name: str
    settings: Settings
    sizes: Tuple[int, ...]
    seed: int
    final: bool
    steps: int
    batch: int
    side: int
    data: str
    tiles: int
    words: bool

    @property
    def key(self) -> str:
        recommended = CONTESTANTS[self.name].recommended if self.name in CONTESTANTS else {}
        anywhere = self._replace(settings=_without_prior(self.settings))
        return hashlib.sha256(json.dumps([*anywhere, recommended], sort_keys=True).encode()).hexdigest()[:16]


def _without_prior(settings: Settings) -> Settings:
    """What a run is known by and reported with: the file of a large prior may lie anywhere."""
    return {name: value for name, value in settings.items() if name != "prior"}


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Autoencoder(nn.Module):
    """About 300,000 weights, one position for 8 x 8 pixels, no attention, no discriminator.

    Encoder and decoder are each the sum of a linear map of patches and a small convolutional net. The linear part
    learns in some hundred steps to pass images on without quantization, so that what an image then loses is the
    codebook's doing: the ceiling is 10 dB above what 10 bits allow. Without it the net itself is what limits all.
    """

    CHANNELS = 64

    def __init__(self, width: int = 32, wide: int = 64) -> None:
        super().__init__()
        self.encoder = Sum(
            nn.Sequential(nn.PixelUnshuffle(8), nn.Conv2d(192, self.CHANNELS, 1)),
            nn.Sequential(
                nn.PixelUnshuffle(4), nn.Conv2d(48, width, 3, padding=1), Block(width),
                nn.Conv2d(width, wide, 4, stride=2, padding=1), Block(wide), nn.GroupNorm(8, wide), nn.SiLU(),
                nn.Conv2d(wide, self.CHANNELS, 1),
            ),
        )  # fmt: skip
        self.decoder = Sum(
            nn.Sequential(nn.Conv2d(self.CHANNELS, 192, 1), nn.PixelShuffle(8)),
            nn.Sequential(
                nn.Conv2d(self.CHANNELS, wide, 3, padding=1), Block(wide),
                nn.Conv2d(wide, 4 * width, 1), nn.PixelShuffle(2), Block(width), nn.GroupNorm(8, width), nn.SiLU(),
                nn.Conv2d(width, 48, 3, padding=1), nn.PixelShuffle(4),
            ),
        )  # fmt: skip


class Sum(nn.Module):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.terms = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return sum(module(x) for module in self.terms)


class Identity(nn.Module):
    def forward(self, z: Tensor) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
        return z, z.new_zeros(()), None


def make_quantizer(job: Job) -> nn.Module:
    if job.name == CEILING:
        return Identity()
    contestant = CONTESTANTS[job.name]
    settings = {**contestant.recommended, **job.settings}
    return contestant.make(list(job.sizes), Autoencoder.CHANNELS, job.seed, job.steps, **settings)


def run(job: Job) -> Dict[str, Any]:
    """Train and judge."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = Path(job.data)
    torch.manual_seed(job.seed)
    model = Autoencoder().to(device)  # before the quantizer: the same for all with this seed
    quantizer = make_quantizer(job).to(device)
    rate = {**(CONTESTANTS[job.name].recommended if job.name in CONTESTANTS else {}), **job.settings}.get("rate", 1.0)
    highest = 3e-3
    groups = [{"params": list(model.parameters()), "lr": highest}]
    learned = parameters_of(quantizer)
    if learned:
        groups.append({"params": learned, "lr": highest * rate})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: annealed(step / job.steps))
    crops = Crops(split_of(data, "train"), job.side, job.seed)
    torch.manual_seed(job.seed)
    model.train(), quantizer.train()
    begin = time.perf_counter()
    for x in crops.batches(job.batch, job.steps):
        x = x.to(device)
        z_q, loss, _ = quantizer(model.encoder(x))
        total = F.mse_loss(model.decoder(z_q), x) + loss
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - begin
    model.eval(), quantizer.eval()
    result = {**job._asdict(), "key": job.key, "seconds": seconds, "loss": float(total.detach())}
    result.update(data=data.name, settings=_without_prior(job.settings))
    for split in ("validation", "test") if job.final else ("validation",):
        result[split] = judge(model, quantizer, job, data, split, with_features=split == "test")
    if job.final and job.words and job.name != CEILING:
        result["meaning"] = judge_words(model, quantizer, job, data)
    return result


def judge_words(model: Autoencoder, quantizer: nn.Module, job: Job, data: Path) -> Dict[str, float]:
    """What the codes of an image say about it, and, where they are words', whether neighbors stayed neighbors."""
    words = words_and_codes(quantizer) if CONTESTANTS[job.name].of_words else []
    figures = classify_clothing(model, quantizer, job.sizes, data, vectors=[vectors for vectors, _ in words])
    if words:
        kept, chance = [], []
        for vectors, codes in words:
            found = kept_neighbors(vectors, codes, min(NEAREST, len(codes) - 1))
            kept.append(found[0]), chance.append(found[1])
        figures.update(kept_neighbors=sum(kept) / len(kept), kept_by_chance=sum(chance) / len(chance))
    return figures


def annealed(progress: float) -> float:
    """The rate: up over the first twentieth, then down to a hundredth along a cosine."""
    if progress < 0.05:
        return 0.05 + 0.95 * progress / 0.05
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))


@torch.no_grad()
def judge(
    model: Autoencoder, quantizer: nn.Module, job: Job, data: Path, split: str, with_features: bool
) -> Dict[str, Any]:
    """The figures of a whole split, in tiles of twice the side of the crops."""
    from vqct_plugin.evaluation.images import measure

    device = next(model.parameters()).device
    tiles, originals = prepare(data, split, 2 * job.side, job.tiles, with_features)
    features = Features() if with_features else None
    of_images: Dict[str, List[float]] = {"psnr": [], "ssim": []}
    of_results, chosen = [], []
    for part in tiles.split(64):
        x = to_tensor(part).to(device)
        z_q, _, indices = quantizer(model.encoder(x))
        y = model.decoder(z_q).clamp(-1, 1)
        for name, values in measure(x.cpu(), y.cpu()).items():
            of_images.setdefault(name, []).extend(values)
        if features is not None:
            of_results.append(features(y.cpu()))
        if indices is not None:
            chosen.append(indices.reshape(-1, indices.shape[-1]).cpu())
    figures: Dict[str, Any] = {name: sum(values) / len(values) for name, values in of_images.items()}
    figures["tiles"] = len(tiles)
    if originals is not None:
        figures["frechet"] = frechet_distance(originals, torch.cat(of_results))
    if chosen and job.final:
        chosen = choose_codes(model, quantizer, data, split, 2 * job.side)
    if chosen:
        figures.update(count_use(torch.cat(chosen), job.sizes))
    return figures


@torch.no_grad()
def choose_codes(model: Autoencoder, quantizer: nn.Module, data: Path, split: str, side: int) -> List[Tensor]:
    """The codes of all positions of all tiles of a split: with fewer of them a large codebook seems less in use."""
    found = []
    device = next(model.parameters()).device
    for part in cut_tiles(split_of(data, split), side, sys.maxsize).split(64):
        indices = quantizer(model.encoder(to_tensor(part).to(device)))[2]
        found.append(indices.reshape(-1, indices.shape[-1]).cpu())
    return found


@functools.lru_cache(maxsize=4)
def prepare(data: Path, split: str, side: int, most: int, with_features: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """The tiles of a split, and their features: the same for all runs of a process."""
    tiles = cut_tiles(split_of(data, split), side, most)
    features = Features() if with_features else None
    return tiles, torch.cat([features(to_tensor(part)) for part in tiles.split(64)]) if features else None


def count_use(indices: Tensor, sizes: Sequence[int]) -> Dict[str, Any]:
    """Of indices (N, parts): codes in use, perplexity and bits of each part, and the bits of the parts together."""
    found = []
    for own, n in zip(indices.unbind(dim=1), sizes):
        usage = CodebookUsage(n)
        usage.update(own)
        found.append(usage.compute()["codes"])
    share = torch.unique(indices, dim=0, return_counts=True)[1].double() / len(indices)  # of each pair
    return {
        "in_use": [its.in_use for its in found],
        "perplexity": [its.perplexity for its in found],
        "bits": sum(math.log2(its.perplexity) for its in found),
        "joint_bits": float(-(share * share.log2()).sum()),
        "positions": len(indices),
    }


# The queue.


def sizes_of(rate: str) -> Tuple[int, ...]:
    return RATES[rate] if rate in RATES else tuple(int(n) for n in rate.split("+"))


def list_grid(options: argparse.Namespace, done: Dict[str, Dict[str, Any]]) -> Iterator[Job]:
    for rate in options.rates:
        for name in options.only:
            for settings in ({}, *CONTESTANTS[name].grid) if has_meaning(name, rate) and name in CONTESTANTS else ():
                yield make_job(name, settings, rate, options.seeds[0], False, options)


def has_meaning(name: str, rate: str) -> bool:
    """Codes that are added are of several parts: with one, there is nothing to compare."""
    return name not in ("EMA, residual", "averages, added", "averages, residual") or len(sizes_of(rate)) > 1


def choose(name: str, rate: str, options: argparse.Namespace, done: Dict[str, Dict[str, Any]]) -> Settings:
    """The setting of the grid that is best on the validation photographs; the recommended one where there is none."""
    if name not in CONTESTANTS:
        return {}
    tried = [make_job(name, s, rate, options.seeds[0], False, options) for s in ({}, *CONTESTANTS[name].grid)]
    found = [(done[job.key]["validation"]["psnr"], -i) for i, job in enumerate(tried) if job.key in done]
    return tried[-max(found)[1]].settings if found else {}


def list_final(options: argparse.Namespace, done: Dict[str, Dict[str, Any]]) -> Iterator[Job]:
    for seed in options.seeds:
        for rate in options.rates:
            for name in options.only:
                if (name == CEILING and rate != options.rates[0]) or not has_meaning(name, rate):
                    continue
                yield make_job(name, choose(name, rate, options, done), rate, seed, True, options)


def make_job(name: str, settings: Settings, rate: str, seed: int, final: bool, options: argparse.Namespace) -> Job:
    sizes = () if name == CEILING else sizes_of(rate)
    settings = dict(settings)
    if options.prior and name in CONTESTANTS and CONTESTANTS[name].of_words:
        settings["prior"] = str(options.prior)
    return Job(
        name, settings, sizes, seed, final, options.steps, options.batch, options.side, str(options.data),
        options.tiles, options.words,
    )  # fmt: skip


def read_lines(file: Path) -> Dict[str, Dict[str, Any]]:
    """Finished runs by key; a last line that was cut off is left out."""
    done = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        done[row["key"]] = row
    return done


def add_line(file: Path, line: str) -> None:
    """Add a line; on one of its own where a process was killed while it wrote the last."""
    cut = file.exists() and file.stat().st_size and file.read_bytes()[-1:] != b"\n"
    with file.open("a", encoding="utf-8") as stream:
        stream.write(("\n" if cut else "") + line + "\n")


def work(jobs: Sequence[Job], options: argparse.Namespace, done: Dict[str, Dict[str, Any]]) -> None:
    """Run what is not done yet, in --workers processes, and keep each line as it comes."""
    jobs = _not_done(jobs, done)
    if not jobs:
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(min(options.workers, len(jobs)), _begin_worker) as pool:
        for i, row in enumerate(pool.imap_unordered(run, jobs), 1):
            done[row["key"]] = row
            add_line(options.output, json.dumps(row))
            what = ", ".join(f"{k} {v}" for k, v in row["settings"].items())
            taken = time.perf_counter() - begin
            print(
                f"{i} of {len(jobs)}: {row['name']}{f' ({what})' if what else ''}, {'+'.join(map(str, row['sizes']))} "
                f"codes, seed {row['seed']}: {row['validation']['psnr']:.2f} dB ({taken / 60:.0f} minutes, "
                f"{taken / 60 / i * (len(jobs) - i):.0f} to go)",
                file=sys.stderr,
                flush=True,
            )


def _not_done(jobs: Sequence[Job], done: Dict[str, Dict[str, Any]]) -> List[Job]:
    return [job for key, job in {job.key: job for job in jobs}.items() if key not in done]


def _begin_worker() -> None:
    torch.set_num_threads(1)


def parse_options(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [CEILING, *CONTESTANTS]
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of the photographs")
    parser.add_argument("--output", type=Path, default=Path("codebooks.jsonl"), help="a line a run (codebooks.jsonl)")
    parser.add_argument("--only", nargs="+", choices=names, default=None, metavar="NAME", help=", ".join(names))
    parser.add_argument("--rates", nargs="+", default=None, help="bits a position (10 14 18), or sizes: 4096, 128+128")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--prior", type=Path, help="a prior of more words than the package's 16,384, for larger codebooks"
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=48, help="of the crops to train on; tiles are twice as wide")
    parser.add_argument("--tiles", type=int, default=2, help="of a photograph, at most")
    parser.add_argument("--no-grid", dest="grid", action="store_false", help="recommended settings alone")
    parser.add_argument("--no-words", dest="words", action="store_false", help="without the figures about meaning")
    parser.add_argument("--quick", action="store_true", help="one rate, one seed, few steps, no grid")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes of one thread each")
    parser.add_argument("--report", type=Path, help="only write tables and pictures of what is done, into this folder")
    options = parser.parse_args(arguments)
    options.only = options.only or names
    options.rates = options.rates or (["10"] if options.quick else [*RATES])
    if options.quick:
        options.steps, options.seeds, options.grid, options.tiles, options.words = 150, [0], False, 1, False
    return options


def report_recorded(file: Path, folder: Optional[Path] = None) -> str:
    """The tables of the final runs that a file has, as docs/does_it_work.md shows them."""
    done = read_lines(file)
    final = [row for row in done.values() if row["final"]]
    known = set()
    for steps in {row["steps"] for row in final}:
        rates = {"+".join(map(str, row["sizes"])) for row in final if row["steps"] == steps and row["sizes"]}
        options = parse_options(["--output", str(file), "--steps", str(steps), "--rates", *(rates or {"10"})])
        known |= {job.key for job in list_final(options, done)}
    stale = [row["name"] for row in final if row["key"] not in known]
    if stale:
        raise SystemExit(f"{file}: {stale[0]} was run with settings that are no longer those of the benchmark")
    return report(final, folder)


def main(arguments: Optional[Sequence[str]] = None) -> Dict[str, Dict[str, Any]]:
    options = parse_options(arguments)
    done = read_lines(options.output)
    if options.report is None:
        if options.grid:
            work([*list_grid(options, done)], options, done)
        work([*list_final(options, done)], options, done)
    final = [job for job in list_final(options, done) if job.key in done]
    print(report([done[job.key] for job in final], options.report))
    return done


if __name__ == "__main__":
    main()
