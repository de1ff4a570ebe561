"""Differences between runs, image by image, with paired intervals."""

from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

from vqct_plugin.evaluation.figures import RunFigures
from vqct_plugin.evaluation.resampling import bootstrap_intervals


class Difference(NamedTuple):
    """One run against another, on the same images.

    Attributes:
        name, other: of the runs; the figures are those of ``name`` less those of ``other``.
        mean, interval: for each figure of single images, the mean of the images' differences and its 95% interval:
            both runs are resampled together, so that what makes an image hard for both cancels out.
        bits: of an image, likewise a difference.
    """

    name: str
    other: str
    mean: Dict[str, float]
    interval: Dict[str, List[float]]
    bits: float


def compute_differences(figures: Sequence[RunFigures]) -> List[Difference]:
    """Each run against each one before it; runs that were evaluated on other images are in no pair."""
    found = []
    for i, its in enumerate(figures):
        for other in figures[:i]:
            if is_comparable(its, other):
                found.append(_compare(its, other))
    return found


def is_comparable(a: RunFigures, b: RunFigures) -> bool:
    """Whether two runs were evaluated on the same images."""
    return (a.source, a.images, a.files, a.broken) == (b.source, b.images, b.files, b.broken)


def _compare(its: RunFigures, other: RunFigures) -> Difference:
    by_image: Dict[str, Any] = {}
    for name, values in its.values.items():
        theirs = other.values.get(name, [])
        if len(theirs) == len(values):
            with np.errstate(invalid="ignore"):  # infinite PSNR of both
                by_image[name] = np.subtract(values, theirs)
    mean = {name: float(np.mean(values)) for name, values in by_image.items()}
    return Difference(its.name, other.name, mean, bootstrap_intervals(by_image, its.files), its.bits - other.bits)
