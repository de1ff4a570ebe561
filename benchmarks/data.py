"""Images a second of a YAML's data sets on the same photographs: a folder, webdataset's shards, Hugging Face's table.

    python benchmarks/data.py ../shared/data/photographs/clothing/train

The shards and the table (Parquet, read by datasets as a user's folder is) are written from the folder first. Then each
in turn gives the shuffled batches of a training run, a part of a second at a time; the median of the turns. The files
are in the system's cache by then, so this is the readers' own time and the decoder's, not the disk's. Beside images a
second stand images for each second of a core's time (of this process alone, so without workers), which other work on
the machine changes less.
"""

import argparse
import itertools
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqct_plugin.runs.batches import Batches, Items, Order
from vqct_plugin.runs.datasets import Images
from vqct_plugin.runs.hugging_face import HuggingFaceImages
from vqct_plugin.runs.shards import ShardedImages


def write_shards(files: List[Path], folder: Path, in_a_shard: int) -> None:
    folder.mkdir()
    for i in range(0, len(files), in_a_shard):
        with tarfile.open(folder / f"{i // in_a_shard:06}.tar", "w") as archive:
            for file in files[i : i + in_a_shard]:
                archive.add(file, file.name)


def write_table(files: List[Path], folder: Path) -> None:
    import datasets

    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")


def read(dataset: Any, batch_size: int, workers: int, seconds: float) -> Tuple[float, float]:
    """Images a second, and a second of this process on a core, from the first batch on, of epoch after epoch."""
    items = Items(dataset, 23, "data.params.train")
    epochs = itertools.count()
    batches = Batches(items, Order(items, 1, 0, seed=23), batch_size, workers, lambda: (next(epochs), 0))
    number, begin, busy = 0, 0.0, 0.0
    for batch in itertools.chain.from_iterable(batches for _ in itertools.count()):
        if not begin:  # workers have started
            begin, busy = time.perf_counter(), time.process_time()
            continue
        number += len(batch["image"])
        if time.perf_counter() - begin > seconds:
            break
    return number / (time.perf_counter() - begin), number / (time.process_time() - busy)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--in-a-shard", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    options = parser.parse_args(argv)
    how = {"random_crop": True, "flip": True}
    with tempfile.TemporaryDirectory() as folder:
        files = Images(options.folder, options.size).paths
        shards, table = Path(folder) / "shards", Path(folder) / "table"
        write_shards(files, shards, options.in_a_shard)
        write_table(files, table)
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        made: Dict[str, Any] = {}
        opened = {}
        readers = {"folder": Images, "shards": ShardedImages, "datasets": HuggingFaceImages}
        for (name, cls), path in zip(readers.items(), (options.folder, shards, table)):
            begin = time.perf_counter()
            made[name] = cls(path, options.size, **how)
            opened[name] = time.perf_counter() - begin
        rates: Dict[str, List[Tuple[float, float]]] = {name: [] for name in made}
        for _ in range(options.rounds):
            for name, dataset in made.items():
                rates[name].append(read(dataset, options.batch_size, options.workers, options.seconds))
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(f"{len(files):,} photographs, {options.size} x {options.size}, {options.workers} workers{load}\n")
    columns = ["images a second: slowest turn, median, fastest", "/ folder", "a core's second", "/ folder"]
    print("| reader | opened in, s |", " | ".join(columns), "|")
    print("|---|---|---|---|---|---|")
    base = [statistics.median(turns) for turns in zip(*rates["folder"])]
    for name, pairs in rates.items():
        turns, of_core = zip(*pairs)
        rate, busy = statistics.median(turns), statistics.median(of_core)
        every = f"{min(turns):.0f}, {rate:.0f}, {max(turns):.0f}"
        more = ["", ""] if options.workers else [f"{busy:.0f}", f"{busy / base[1]:.2f}"]
        print(f"| {name} | {opened[name]:.2f} | {every} | {rate / base[0]:.2f} | {more[0]} | {more[1]} |")


if __name__ == "__main__":
    main()
