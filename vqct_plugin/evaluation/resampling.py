"""The bootstrap: how far a mean would move if other photographs had been taken."""

from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float],
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    groups: Optional[Sequence[Any]] = None,
) -> List[float]:
    """[low, high] of a mean by the percentile bootstrap, see :func:`bootstrap_intervals`."""
    return bootstrap_intervals({"": values}, groups, level, resamples, seed)[""]


def bootstrap_intervals(
    values: Mapping[str, Sequence[float]],
    groups: Optional[Sequence[Any]] = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Dict[str, List[float]]:
    """[low, high] of each mean, by the percentile bootstrap over groups of images.

    Tiles of one photograph are not independent samples: a resample draws photographs, with all their tiles.

    Args:
        values: figure -> one value an image.
        groups: of each image, what it is a piece of, such as its file; without, or where there are fewer or more of
            them than values, each image is a group of its own.
        level: of confidence.
        resamples: how many.
        seed: of the draws, which are the same for all figures.

    Returns:
        figure -> bounds; NaN where there is but one group, or a value is not finite.

    >>> bootstrap_interval([1.0, 1.0, 3.0, 3.0], groups=["a", "a", "b", "b"])
    [1.0, 3.0]
    """
    found = {name: [float("nan")] * 2 for name in values}
    finite = {name: np.asarray(its, dtype=np.float64) for name, its in values.items() if np.isfinite(its).all()}
    lengths = {len(its) for its in finite.values()}
    for length in lengths:
        names = [name for name, its in finite.items() if len(its) == length]
        places = group_places(groups, length)
        number = int(places.max()) + 1 if length else 0
        if number < 2:
            continue
        sums = np.stack([np.bincount(places, finite[name], number) for name in names])  # (figures, groups)
        sizes = np.bincount(places, minlength=number)
        random = np.random.RandomState(seed)
        means = np.empty((resamples, len(names)))
        for i in range(resamples):
            times = np.bincount(random.randint(0, number, number), minlength=number)
            means[i] = sums @ times / (sizes @ times)
        tail = 100 * (1 - level) / 2
        bounds = np.percentile(means, [tail, 100 - tail], axis=0)
        found.update({name: [float(bound) for bound in column] for name, column in zip(names, bounds.T)})
    return found


def group_places(groups: Optional[Sequence[Any]], length: int) -> np.ndarray:
    """(length,) the number of each image's group, from 0 on."""
    if groups is None or len(groups) != length:
        return np.arange(length)
    numbers: Dict[Any, int] = {}
    return np.asarray([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
