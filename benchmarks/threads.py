"""A training step of the demo's model with threads that spin or sleep while they wait, alone and beside other work.

    python benchmarks/threads.py

Each setting has a process of its own, because OpenMP reads it once; beside it, in the second half, two processes that
compute without end. Seconds of a step, the median of 30.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUSY = "x = 0\nwhile True: x += 1"
SETTINGS = [(2, "ACTIVE"), (2, "PASSIVE"), (1, "ACTIVE")]


def measure() -> float:
    """Seconds of a step, in this process."""
    sys.path.insert(0, str(ROOT))
    import torch

    from vqct_plugin.runs.build import build_model
    from vqct_plugin.runs.config import load_config

    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    yaml = ROOT / "vqct_plugin" / "data" / "photographs_vqgan.yaml"
    model = build_model(load_config([str(yaml)], ["model.target=vqct_plugin.VQModel"])).train()
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if not n.startswith("loss.")], lr=1e-4)
    x = torch.rand(8, 3, 32, 32) * 2 - 1
    taken = []
    for _ in range(35):
        begin = time.perf_counter()
        y, loss = model(x)
        optimizer.zero_grad()
        ((y - x).abs().mean() + loss).backward()
        optimizer.step()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[5:])


def main() -> None:
    print("| threads | OMP_WAIT_POLICY | alone, s | beside two busy processes, s |\n|---|---|---|---|")
    rows = {}
    for busy in (False, True):
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2 if busy else 0)]
        try:
            for threads, policy in SETTINGS:
                command = [sys.executable, __file__, "--measure", str(threads)]
                environment = {**os.environ, "OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(threads)}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                rows.setdefault((threads, policy), []).append(float(done.stdout.split()[-1]))
        finally:
            for other in others:
                other.kill()
    for (threads, policy), seconds in rows.items():
        print(f"| {threads} | {policy} | " + " | ".join(f"{s:.3f}" for s in seconds) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(measure())
    else:
        main()
