"""What ``reuse_forward`` saves: seconds per batch of a small VQGAN with and without it, in turns.

python benchmarks/reuse_forward.py
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqct_plugin import VQModel


class Clock(pl.Callback):
    """Seconds of each batch after the first two."""

    def __init__(self) -> None:
        self.seconds: list = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.begin = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx > 1:
            self.seconds.append(time.perf_counter() - self.begin)


def seconds_a_batch(reuse: bool, batches: int, size: int, batch_size: int) -> float:
    pl.seed_everything(0, verbose=False)
    model = VQModel(
        ddconfig={
            "double_z": False, "z_channels": 64, "resolution": size, "in_channels": 3, "out_ch": 3, "ch": 64,
            "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
        },
        lossconfig={
            "target": "vqct_plugin.runs.losses.VQPixelWithDiscriminator", "params": {"disc_start": 0},
        },
        n_embed=1024,
        embed_dim=64,
        reuse_forward=reuse,
    )  # fmt: skip
    model.learning_rate = 1e-4
    data = DataLoader([{"image": torch.rand(size, size, 3) * 2 - 1} for _ in range(batches * batch_size)], batch_size)
    clock = Clock()
    pl.Trainer(
        accelerator="auto", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[clock],
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, data)  # fmt: skip
    return statistics.median(clock.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    taken: dict = {False: [], True: []}
    for _ in range(options.rounds):
        for reuse in taken:
            taken[reuse].append(seconds_a_batch(reuse, options.batches, options.size, options.batch_size))
    two, one = (statistics.median(taken[reuse]) for reuse in (False, True))
    print(f"{two:.2f} s a batch with two forward passes, {one:.2f} s with one: {1 - one / two:.0%} less")


if __name__ == "__main__":
    main()
