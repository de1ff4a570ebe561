import numpy as np
import pytest

from vqct_plugin.building.neighbors import connect_isolated, connect_parts, find_nearest
from vqct_plugin.prior import CodebookPrior


def by_sorting(vectors, query, among, k):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    others = [i for i in among if i != query]
    return sorted(others, key=lambda i: (-round(float(unit[query] @ unit[i]), 9), i))[:k]


@pytest.mark.parametrize("k", [1, 5, 400])
def test_the_nearest_are_those_of_sorting_all(k):
    rng = np.random.RandomState(0)
    vectors = rng.randn(300, 6)
    vectors[100:150] = vectors[:50] * rng.rand(50, 1)  # of one direction: cosine 1
    queries, among = list(range(0, 300, 7)), list(range(3, 290))
    found = find_nearest(vectors, queries, among, k)
    assert found.shape == (43, min(k, 286))
    for query, row in zip(queries, found):
        assert row.tolist() == by_sorting(vectors, query, among, min(k, 286))


def test_blocks_make_no_difference(monkeypatch):
    from vqct_plugin.building import neighbors

    vectors = np.random.RandomState(1).randn(50, 4)
    whole = find_nearest(vectors, range(50), range(50), 3)
    monkeypatch.setattr(neighbors, "_BLOCK", 7)
    np.testing.assert_array_equal(find_nearest(vectors, range(50), range(50), 3), whole)


@pytest.mark.parametrize("dim", [1, 2, 40])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_of_equally_near_ones_the_first_is_taken_however_many_there_are(dim, dtype):
    """Hundreds of words of one vector, more than there are candidates."""
    rng = np.random.RandomState(3)
    vectors = rng.randn(7, dim).astype(dtype)[rng.randint(7, size=1000)]
    among = rng.permutation(1000)[:900].tolist()
    found = find_nearest(vectors, range(0, 1000, 53), among, 4)
    unit = vectors / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    for query, row in zip(range(0, 1000, 53), found):
        place = {word: i for i, word in enumerate(among)}
        others = [word for word in among if word != query]
        expected = sorted(others, key=lambda i: (-round(float(unit[query] @ unit[i]), 6), place[i]))[:4]
        assert row.tolist() == expected


@pytest.mark.parametrize("k", [1, 12])
def test_among_thousands_the_nearest_are_found_wherever_they_stand(k):
    """3,001 words are 46 groups of columns and 57 columns beside them."""
    vectors = np.random.RandomState(8).randn(3001, 5).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    cosines = unit[:300] @ unit.T
    cosines[np.arange(300), np.arange(300)] = -2
    expected = np.argsort(-cosines, axis=1)[:, :k]
    assert (expected >= 2944).any()
    np.testing.assert_array_equal(find_nearest(vectors, range(300), range(3001), k), expected)


def test_what_float32_cannot_tell_apart_is_decided_in_float64():
    """1,000 words in an order that begins at the 9th digit."""
    rng = np.random.RandomState(4)
    angle = 0.5 + 1e-9 * rng.permutation(1000)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    vectors = np.concatenate([[[1.0, 0.0]], vectors])
    found = find_nearest(vectors, [0], range(1, 1001), 20)[0]
    assert found.tolist() == (1 + np.argsort(angle)[:20]).tolist()


@pytest.mark.parametrize("block", [3, 512])
def test_a_query_may_look_among_the_first_only(monkeypatch, block):
    from vqct_plugin.building import neighbors

    monkeypatch.setattr(neighbors, "_BLOCK", block)
    vectors = np.random.RandomState(5).randn(900, 6).astype(np.float32)
    among, first = list(range(20, 900)), np.array([3, 70, 4, 880, 500, 3])
    found = find_nearest(vectors, range(6), among, 3, first)
    for query, row, seen in zip(range(6), found, first):
        assert row.tolist() == by_sorting(vectors.astype(float), query, among[:seen], 3)


def test_a_row_of_zeros_is_near_to_nothing_and_no_error():
    vectors = np.array([[0, 0], [1, 0], [1, 0.1], [-1, 0]], dtype=np.float32)
    assert find_nearest(vectors, [1], [0, 2, 3], 3).tolist() == [[2, 0, 3]]
    assert np.isfinite(find_nearest(vectors, [0], [1, 2, 3], 2)).all()
    assert find_nearest(vectors, [0], [0], 3).shape == (1, 0)


def test_edges_tie_each_word_to_the_nearest_of_the_other_parts():
    vectors = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [1, 1.1]], dtype=np.float32)
    part_of_speech = np.array([0, 0, 1, 1, 1])
    edges = connect_parts(vectors, part_of_speech, 1)
    # 0 and 2, 1 and 3 have each other; 4 has the nearer of 0 and 1; each edge once
    assert edges.T.tolist() == [[0, 2], [1, 3], [1, 4]]
    assert (part_of_speech[edges[0]] != part_of_speech[edges[1]]).all()


def test_three_parts_leave_no_word_alone():
    vectors = np.random.RandomState(2).randn(60, 5)
    part_of_speech = np.repeat([0, 1, 2], 20)
    edges = connect_parts(vectors, part_of_speech, 2)
    assert set(edges.reshape(-1).tolist()) == set(range(60))
    assert (np.bincount(edges.reshape(-1)) >= 2).all()
    assert (edges[0] < edges[1]).all()


def test_the_lonely_are_tied_by_hand():
    """Two adjectives and four nouns, the commonest first; word 5 has no relative, word 1 one that is rarer."""
    vectors = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [1, 1.1], [1, 0]], dtype=np.float32)
    part_of_speech, count = np.array([0, 0, 1, 1, 1, 1]), np.array([9, 5, 8, 7, 6, 4])
    edges = np.array([[0, 0, 1, 0], [2, 3, 5, 4]])
    # 1 comes when more than half of the adjectives do, so two nouns are no rarer, 2 and 3: 3 is the nearer.
    # 5 comes when more than three quarters of the nouns do; of the adjectives only 0 is no rarer. So it is for 2, 3 and
    # 4, and for 0 noun 2 is: these have what they need.
    assert connect_isolated(vectors, part_of_speech, count, edges, 1).T.tolist() == [[0, 5], [1, 3]]
    # with two relatives each: an edge given twice is one relative
    tied = connect_isolated(vectors, part_of_speech, count, np.array([[0, 2, 0, 0], [2, 0, 3, 5]]), 2).T.tolist()
    assert tied == [[0, 2], [0, 3], [0, 4], [0, 5], [1, 2], [1, 3], [1, 4], [1, 5]]


@pytest.mark.parametrize("sizes", [(40, 60), (7, 150), (50, 50), (20, 30, 40)])
@pytest.mark.parametrize("k", [1, 4])
def test_whichever_of_the_commonest_are_selected_every_one_has_relatives(sizes, k):
    rng = np.random.RandomState(6)
    n = sum(sizes)
    part_of_speech = np.repeat(np.arange(len(sizes)), sizes)
    vectors, count = rng.randn(n, 5).astype(np.float32), rng.randint(0, 30, n)
    edges = rng.randint(0, n, (2, n // 2))
    edges = edges[:, part_of_speech[edges[0]] != part_of_speech[edges[1]]]
    words = [f"{i:03}" for i in range(n)]

    def prior(all_edges):
        parts = ("a", "b", "c")[: len(sizes)]
        return CodebookPrior(words, part_of_speech, count, vectors, all_edges, np.ones(all_edges.shape[1], int), parts)

    def fewest(some, n_e):
        return np.bincount(some.select(n_e).edges.reshape(-1), minlength=n_e).min()

    added = connect_isolated(vectors, part_of_speech, count, edges, k)
    with_all, without = prior(np.concatenate([edges, added], axis=1)), prior(edges)
    enough = [n_e for n_e in range(len(sizes), n + 1) if min(with_all.select(n_e).sizes.values()) >= k]
    assert len(enough) > 50
    assert min(fewest(with_all, n_e) for n_e in enough) >= k
    assert min(fewest(without, n_e) for n_e in enough) == 0


def test_who_has_relatives_gets_no_more():
    part_of_speech = np.repeat([0, 1], 10)
    every = np.stack(np.meshgrid(range(10), range(10, 20))).reshape(2, -1)
    vectors, count = np.random.RandomState(7).randn(20, 4), np.random.RandomState(8).randint(0, 9, 20)
    assert connect_isolated(vectors, part_of_speech, count, every, 3).shape == (2, 0)
    assert connect_isolated(vectors[:10], part_of_speech[:10], count[:10], every[:, :0], 3).shape == (2, 0)  # no others
