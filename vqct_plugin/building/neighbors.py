"""Which words' vectors are near each other, by cosine."""

from typing import Any, List, Optional, Sequence

import numpy as np

_BLOCK = 512  # words compared with all others at a time: 262,144 others are 512 MB of cosines
_MORE = 8  # candidates beyond k, so that the last digit of a matrix product does not decide
_GROUP = 64  # cosines of which the largest is looked at first


def find_nearest(
    vectors: np.ndarray,
    queries: Sequence[int],
    among: Sequence[int],
    k: int,
    first: Optional[np.ndarray] = None,
) -> np.ndarray:
    """(len(queries), k) places in ``vectors``: the k nearest of ``among`` to each query by cosine, nearest first.

    Of equally near ones (to 12 digits) the first in ``among`` comes first; a query that is in ``among`` is not its own
    neighbor. Rows of zeros are near to nothing. k is at most what there is. ``first`` (len(queries),): query i looks
    among the first ``first[i]`` only, which have to be k at least.

    Candidates come from products in float32, and what is decided is decided in float64; a query whose candidates are
    too close for float32 is compared in float64 with all that may be near enough.
    """
    asked, there = np.asarray(queries, dtype=np.int64), np.asarray(among, dtype=np.int64)
    k = min(k, len(there) - bool(np.isin(asked, there).any()))
    found = np.zeros((len(asked), max(k, 0)), dtype=np.int64)
    if k < 1:
        return found
    others = _directions(vectors, there, np.float32)
    for start in range(0, len(asked), _BLOCK):
        block = asked[start : start + _BLOCK]
        seen = len(there) if first is None else int(first[start : start + _BLOCK].max())
        cosines = _directions(vectors, block, np.float32) @ others[:seen].T
        if first is not None:
            cosines[np.arange(seen) >= first[start : start + _BLOCK, None]] = -np.inf
        candidates = np.sort(_largest(cosines, k + _MORE), axis=1)  # as they come in among: ties are settled so
        exact = _exact_cosines(vectors, block, there[candidates])
        exact[block[:, None] == there[candidates]] = -np.inf
        exact[~np.isfinite(np.take_along_axis(cosines, candidates, axis=1))] = -np.inf
        order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
        found[start : start + _BLOCK] = there[np.take_along_axis(candidates, order, axis=1)]
        if candidates.shape[1] < seen:
            # What is no candidate has no larger cosine than the least of them, as far as float32 tells.
            kth = np.take_along_axis(exact, order[:, -1:], axis=1)[:, 0] - _error(vectors.shape[1])
            least = np.take_along_axis(cosines, candidates, axis=1).min(axis=1)
            for i in np.flatnonzero(least >= kth):
                near = np.flatnonzero(cosines[i] >= kth[i])
                found[start + i] = _by_sorting(vectors, block[i], there[near], k)
    return found


def connect_parts(vectors: np.ndarray, part_of_speech: np.ndarray, k: int) -> np.ndarray:
    """(2, E) edges from each word to its k nearest words of all the other parts; an edge found from both ends once."""
    found: List[np.ndarray] = []
    for part in np.unique(part_of_speech):
        queries, others = np.flatnonzero(part_of_speech == part), np.flatnonzero(part_of_speech != part)
        found.append(_edges(queries, find_nearest(vectors, queries.tolist(), others.tolist(), k)))
    return _each_once(found, len(vectors))


def connect_isolated(
    vectors: np.ndarray, part_of_speech: np.ndarray, count: np.ndarray, edges: np.ndarray, k: int
) -> np.ndarray:
    """(2, E) edges for the words that ``edges`` ties to fewer than k no rarer words of other parts: from each of them
    to the k nearest of those.

    How rare a word is, is its place in its own part, as a share of it; so whichever of the commonest words
    ``CodebookPrior.select`` takes, those of every part in proportion, each comes with k relatives. Words of one count
    are as common as their order in the arguments. The k commonest of the other parts are no rarer than any word.

    Shapes: vectors (n, d), part_of_speech (n,), count (n,), edges (2, E), indices into them.
    """
    order = np.lexsort((-count, part_of_speech))
    sizes = np.bincount(part_of_speech)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # A word is chosen when its part has more than its rank; of another part then its share, rounded down, is chosen.
    before, there = rank / sizes[part_of_speech], (rank + 1) / sizes[part_of_speech]
    once = _each_once([edges], len(order))
    ends = np.concatenate([once, once[::-1]], axis=1)
    found: List[np.ndarray] = []
    for part in np.unique(part_of_speech):
        others = np.flatnonzero(part_of_speech != part)
        others = others[np.argsort(there[others], kind="stable")]  # the commonest first
        no_rarer = np.maximum(np.searchsorted(there[others], before, side="right"), min(k, len(others)))
        place = np.full(len(order), len(order))
        place[others] = np.arange(len(others))
        is_one = (part_of_speech[ends[0]] == part) & (place[ends[1]] < no_rarer[ends[0]])
        relatives = np.bincount(ends[0][is_one], minlength=len(order))
        queries = order[(part_of_speech[order] == part) & (relatives[order] < k)]
        if len(others):
            near = find_nearest(vectors, queries.tolist(), others.tolist(), k, no_rarer[queries])
            found.append(_edges(queries, near))
    return _each_once(found, len(vectors))


def _directions(vectors: np.ndarray, rows: np.ndarray, dtype: Any) -> np.ndarray:
    """The rows, each divided by its length; the lengths are of float64 in any dtype."""
    result: np.ndarray = np.empty((len(rows), vectors.shape[1]), dtype=dtype)
    for start in range(0, len(rows), 8192):
        exact = vectors[rows[start : start + 8192]].astype(np.float64)
        lengths = np.linalg.norm(exact, axis=1, keepdims=True)
        result[start : start + 8192] = exact / np.maximum(lengths, np.finfo(np.float64).tiny)
    return result


def _largest(cosines: np.ndarray, number: int) -> np.ndarray:
    """(rows, number or fewer) columns of the largest numbers of each row, in no order.

    They are in the groups of columns with the largest maxima: ten times as fast as looking at every column.
    """
    rows, columns = cosines.shape
    number = min(number, columns)
    groups = columns // _GROUP
    if groups <= 2 * number:
        return _largest_of_all(cosines, number)
    whole = groups * _GROUP
    maxima = cosines[:, :whole].reshape(rows, groups, _GROUP).max(axis=2)
    chosen = _largest_of_all(maxima, number)
    looked_at = (chosen[:, :, None] * _GROUP + np.arange(_GROUP)).reshape(rows, -1)
    rest = np.broadcast_to(np.arange(whole, columns), (rows, columns - whole))
    looked_at = np.concatenate([looked_at, rest], axis=1)
    best = _largest_of_all(np.take_along_axis(cosines, looked_at, axis=1), number)
    return np.take_along_axis(looked_at, best, axis=1)


def _largest_of_all(numbers: np.ndarray, number: int) -> np.ndarray:
    return np.argpartition(-numbers, number - 1, axis=1)[:, :number]


def _exact_cosines(vectors: np.ndarray, queries: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(queries, m) of queries (queries,) and others (queries, m) in float64, to 12 digits: no order of adding shows."""
    theirs = _directions(vectors, others.reshape(-1), np.float64).reshape(*others.shape, -1)
    return (_directions(vectors, queries, np.float64)[:, None, :] * theirs).sum(-1).round(12)


def _by_sorting(vectors: np.ndarray, query: int, among: np.ndarray, k: int) -> np.ndarray:
    chunks = [among[None, start : start + 8192] for start in range(0, len(among), 8192)]
    exact = np.concatenate([_exact_cosines(vectors, np.array([query]), chunk)[0] for chunk in chunks])
    exact[among == query] = -np.inf
    return among[np.argsort(-exact, kind="stable")[:k]]


def _error(dim: int) -> float:
    """By how much a cosine in float32 may be wrong: a rounding for each product, sum and length."""
    return (dim + 8) * float(np.finfo(np.float32).eps)


def _edges(queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.stack([np.repeat(queries, found.shape[1]), found.reshape(-1)])


def _each_once(found: List[np.ndarray], n: int) -> np.ndarray:
    """(2, E) edges of all, from the lower index to the higher, each once, in order."""
    ends = np.sort(np.concatenate([*found, np.zeros((2, 0), dtype=np.int64)], axis=1), axis=0)
    key = np.unique(ends[0] * n + ends[1])
    return np.stack([key // n, key % n])
