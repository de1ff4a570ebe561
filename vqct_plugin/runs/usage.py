"""Counting the codes that a run's quantizer chooses, whichever host it is of."""

from typing import Any

from vqct_plugin.usage import CodebookUsage


def make_counter(quantizer: Any) -> CodebookUsage:
    """A counter for a quantizer's codes: per part of speech, or as one part where it has none (a stock one)."""
    if hasattr(quantizer, "part_of_speech"):
        return CodebookUsage(quantizer.part_of_speech, quantizer.parts)
    return CodebookUsage(max(count_codes(quantizer), int(getattr(quantizer, "re_embed", 0))))


def count_codes(quantizer: Any) -> int:
    """How many codes a quantizer has, stock or ours."""
    return int(quantizer.n_e if hasattr(quantizer, "n_e") else quantizer.n_embed)  # VectorQuantizer2, GumbelQuantize
