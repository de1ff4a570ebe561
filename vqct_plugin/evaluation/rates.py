"""How many bits a model spends on an image, and whether runs that stand side by side spend alike."""

import math
from typing import Any, List, NamedTuple, Optional, Sequence

from torch import Tensor

from vqct_plugin.runs.usage import count_codes

ALIKE = 0.01  # rates this near count as equal: another split of the codes among the parts changes them by no more


class Rate(NamedTuple):
    """What one image costs.

    Attributes:
        positions: of the map of codes.
        tokens: at all positions together.
        bits: of these tokens, as codes of each part written with equal lengths: the binary logarithm of how many codes
            the part has.
        entropy: bits of an ideal coder that knows how often each code was chosen over these images, and nothing else:
            tokens of each part times the entropy of its codes.
    """

    positions: int
    tokens: int
    bits: float
    entropy: float


def measure_rate(quantizer: Any, positions: int, counts: Tensor) -> Rate:
    """The rate of a quantizer, stock or ours, at so many positions; ``counts`` (n_e,), how often codes were chosen."""
    slices = getattr(quantizer, "slices", None)
    parts = [(s.first, s.last, s.topk) for s in slices] if slices else [(0, count_codes(quantizer), 1)]
    tokens = sum(number for _, _, number in parts)
    bits = sum(number * math.log2(last - first) for first, last, number in parts)
    entropy = sum(number * _compute_entropy(counts[first:last]) for first, last, number in parts)
    return Rate(positions, positions * tokens, positions * bits, positions * entropy)


def _compute_entropy(counts: Tensor) -> float:
    """In bits."""
    share = counts[counts > 0].double() / max(int(counts.sum()), 1)
    return abs(float((share * share.log2()).sum()))


def describe_rate(its: Any) -> str:
    """The tokens and bits of a run's figures, for a title or a sentence: ``128 tokens, 1,147 bits per image``."""
    return f"{its.tokens:,} tokens, {its.bits:,.0f} bits per image ({its.entropy:,.0f} by entropy)"


def label_rate(its: Any) -> str:
    """A run's name with its bits per image, for the title of a chart or a column: ``VQCT, 1,147 bits``."""
    return f"{its.name}, {its.bits:,.0f} bits"


def warn_of_rates(figures: Sequence[Any]) -> Optional[str]:
    """A sentence where runs spend different numbers of bits on an image; None where all spend alike.

    Args:
        figures: of the runs, with ``name`` and ``bits``.
    """
    levels: List[List[Any]] = []  # runs of equal rates together
    for its in figures:
        level = next((level for level in levels if abs(level[0].bits - its.bits) <= ALIKE * level[0].bits), None)
        if level is None:
            levels.append([its])
        else:
            level.append(its)
    if len(levels) < 2:
        return None
    rates = "; ".join(f"{' and '.join(its.name for its in level)}: {level[0].bits:,.0f}" for level in levels)
    return f"the runs have different rates, in bits per image: {rates}. Compare figures of runs at equal bits"
