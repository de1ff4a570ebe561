"""Which words' vectors are near each other, by cosine."""

from typing import List, Sequence, Tuple

import numpy as np

_BLOCK = 1024  # words compared with all others at a time
_MORE = 8  # candidates beyond k, so that the last digit of a matrix product does not decide


def nearest(vectors: np.ndarray, queries: Sequence[int], among: Sequence[int], k: int) -> np.ndarray:
    """(len(queries), k) places in ``vectors``: the k nearest of ``among`` to each query by cosine, nearest first.

    Of equally near ones the first in ``among`` comes first; a query that is in ``among`` is not its own neighbour. Rows
    of zeros are near to nothing. k is at most what there is.
    """
    directions = vectors.astype(np.float64)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    asked, there = np.asarray(queries, dtype=np.int64), np.asarray(among, dtype=np.int64)
    k = min(k, len(there) - bool(np.isin(asked, there).any()))
    found = np.zeros((len(asked), max(k, 0)), dtype=np.int64)
    if k < 1:
        return found
    for start in range(0, len(asked), _BLOCK):
        block = asked[start : start + _BLOCK]
        cosines = directions[block] @ directions[there].T
        candidates = np.argpartition(-cosines, min(k + _MORE, len(there)) - 1, axis=1)[:, : k + _MORE]
        candidates.sort(axis=1)
        exact = (directions[block][:, None, :] * directions[there[candidates]]).sum(-1).round(12)
        exact[block[:, None] == there[candidates]] = -np.inf
        order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
        found[start : start + _BLOCK] = there[np.take_along_axis(candidates, order, axis=1)]
    return found


def across_parts(vectors: np.ndarray, part_of_speech: np.ndarray, k: int) -> np.ndarray:
    """(2, E) edges from each word to its k nearest words of all the other parts; an edge found from both ends once."""
    edges: List[Tuple[int, int]] = []
    for part in np.unique(part_of_speech):
        queries, others = np.flatnonzero(part_of_speech == part), np.flatnonzero(part_of_speech != part)
        for query, ends in zip(queries, nearest(vectors, queries.tolist(), others.tolist(), k)):
            edges += [(min(query, end), max(query, end)) for end in ends]
    return np.array(sorted(set(edges)), dtype=np.int64).reshape(-1, 2).T
