"""A verdict on whether a codebook works, as a sentence."""

from typing import NamedTuple, Optional

from vqct_plugin.usage import PartUsage

COLLAPSED = 0.1  # below this share of codes in use
ALIVE = 0.5  # from this share on
_CHOICES = 3  # a code's; with fewer, many codes are not in use by chance alone

TO_TRY = (
    "a transferred codebook (model.target: vqct_plugin.VQModel), a smaller n_embed, a smaller base_learning_rate, a "
    "later disc_start, or more batches before judging"
)
TO_TRY_TRANSFERRED = (
    "a smaller n_embed, a smaller base_learning_rate, a later disc_start, a prior of captions like the images, or more "
    "batches before judging"
)


class Verdict(NamedTuple):
    """``grade``: ``"alive"``, ``"partly dead"``, ``"collapsed"`` or ``"too few images"``; ``sentence`` says why."""

    grade: str
    sentence: str


def judge_usage(usage: PartUsage, part: str = "codes") -> Verdict:
    """Whether the codes of one part are alive."""
    name = "codes" if part in ("codes", "joint") else f"{part}s"
    counts = f"{usage.in_use:,} of {usage.codes:,} {name} are in use ({usage.share:.0%})"
    if usage.tokens == 0:
        return Verdict("too few images", f"no {name} were counted")
    used_as = f"as if {usage.perplexity:.0f} of them were used equally often"
    if usage.share >= ALIVE:
        return Verdict("alive", f"{counts}, {used_as}")
    if usage.tokens < _CHOICES * usage.codes and usage.in_use > usage.tokens / 4:
        return Verdict(
            "too few images", f"{counts}, but only {usage.tokens:,} were chosen in all; judge on more images"
        )
    if usage.share >= COLLAPSED:
        return Verdict("partly dead", f"{counts}, {used_as}; {len(usage.dead):,} are never chosen")
    return Verdict("collapsed", f"{counts}, {used_as}; {len(usage.dead):,} are never chosen")


def describe_collapse(
    usage: PartUsage, before: Optional[PartUsage], part: str = "codes", transferred: bool = True
) -> Optional[str]:
    """A warning for a codebook that has collapsed during training; None where it has not, or only in the last batches.

    Args:
        usage: over the last batches.
        before: over as many batches before those; the first ones of a training say little.
        part: of speech.
        transferred: whether the codebook is ours, which changes what is worth trying.
    """
    found = judge_usage(usage, part)
    if found.grade != "collapsed" or before is None:
        return None
    change = usage.in_use - before.in_use
    trend = f"{abs(change):,} {'fewer' if change < 0 else 'more'} than before" if change else "as many as before"
    advice = TO_TRY_TRANSFERRED if transferred else TO_TRY
    return f"the codebook has collapsed: {found.sentence}; {trend}. Worth trying: {advice}"
