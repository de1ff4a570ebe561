"""The speed of drawing tokens in stage 2, against taming's own samplers, in one run.

    python benchmarks/sampling.py [--side 16] [--layers 6] [--width 256] [--images 4] [--repeat 3]

Four ways to draw the two tokens of each of side x side positions:

- ``Net2NetTransformer.sample`` of taming, on its own transformer over the joint vocabulary: the whole sequence again
  for every token.
- ``sample_with_past`` of taming (``scripts/sample_fast.py``), the same transformer with a key-value cache.
- ours on the same transformer (what ``vqct-sample`` does with a stage 2 of taming's own).
- ours on a transformer of the same size over positions, with a head for each token.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqct_plugin.stage_2.sampling import sample_tokens
from vqct_plugin.stage_2.tokens import Token
from vqct_plugin.stage_2.transformer import Net2NetTransformer, PartsGPT, _cond_transformer, _mingpt

TOKENS = [Token("adjective", 0, 2048), Token("noun", 2048, 6144)]


class Slice(SimpleNamespace):
    """A part of a quantizer's codes."""


def contestants(side: int, layers: int, width: int, images: int) -> Dict[str, Any]:
    """name -> a function that draws the tokens of some images."""
    positions = side * side
    sizes = {"n_layer": layers, "n_head": max(1, width // 64), "n_embd": width}
    gpt = _mingpt.GPT(vocab_size=6144, block_size=2 * positions, **sizes).eval()
    slices = [Slice(name=t.name, first=t.first, last=t.last, topk=1) for t in TOKENS]
    stage = SimpleNamespace(quantize=SimpleNamespace(slices=slices))
    theirs: Any = _cond_transformer.Net2NetTransformer.__new__(_cond_transformer.Net2NetTransformer)
    torch.nn.Module.__init__(theirs)
    theirs.transformer, theirs.pkeep, theirs.first_stage_model = gpt, 1.0, stage
    ours: Any = Net2NetTransformer.__new__(Net2NetTransformer)
    torch.nn.Module.__init__(ours)
    ours.transformer = PartsGPT(TOKENS, 1, positions, **sizes).eval()
    ours.first_stage_model = stage
    theirs.eval(), ours.eval()
    c = torch.zeros(images, 1, dtype=torch.long)

    def tamings_sample() -> Any:
        return theirs.sample(c[:, :0], c, steps=2 * positions, sample=True)

    def tamings_with_past() -> Any:
        return _mingpt.sample_with_past(c, gpt, steps=2 * positions)

    return {
        "taming, sample": tamings_sample,
        "taming, sample_with_past": tamings_with_past,
        "ours, taming's transformer": lambda: sample_tokens(theirs, c, positions),
        "ours, a head for each token": lambda: sample_tokens(ours, c, positions),
    }


def measure(repeat: int, **sizes: int) -> Dict[str, List[float]]:
    """name -> seconds of each round; the contestants take turns."""
    ways = contestants(**sizes)
    seconds: Dict[str, List[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, draw in ways.items():
            start = time.perf_counter()
            with torch.no_grad():
                draw()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(seconds: Dict[str, List[float]], images: int) -> str:
    """The figures, as Markdown."""
    first = statistics.median(next(iter(seconds.values())))
    lines = ["| | seconds per image | |", "|---|---|---|"]
    for name, rounds in seconds.items():
        middle = statistics.median(rounds)
        lines.append(f"| {name} | {middle / images:.2f} | {first / middle:.1f} times as fast |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("side", 16), ("layers", 6), ("width", 256), ("images", 4), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args())
    print(report(measure(options.pop("repeat"), **options), options["images"]))


if __name__ == "__main__":
    main()
