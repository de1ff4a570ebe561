import numpy as np
import pytest

from vqct_plugin.building.neighbours import across_parts, nearest


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
    found = nearest(vectors, queries, among, k)
    assert found.shape == (43, min(k, 286))
    for query, row in zip(queries, found):
        assert row.tolist() == by_sorting(vectors, query, among, min(k, 286))


def test_blocks_make_no_difference(monkeypatch):
    from vqct_plugin.building import neighbours

    vectors = np.random.RandomState(1).randn(50, 4)
    whole = nearest(vectors, range(50), range(50), 3)
    monkeypatch.setattr(neighbours, "_BLOCK", 7)
    np.testing.assert_array_equal(nearest(vectors, range(50), range(50), 3), whole)


def test_a_row_of_zeros_is_near_to_nothing_and_no_error():
    vectors = np.array([[0, 0], [1, 0], [1, 0.1], [-1, 0]], dtype=np.float32)
    assert nearest(vectors, [1], [0, 2, 3], 3).tolist() == [[2, 0, 3]]
    assert np.isfinite(nearest(vectors, [0], [1, 2, 3], 2)).all()
    assert nearest(vectors, [0], [0], 3).shape == (1, 0)


def test_edges_tie_each_word_to_the_nearest_of_the_other_parts():
    vectors = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [1, 1.1]], dtype=np.float32)
    part_of_speech = np.array([0, 0, 1, 1, 1])
    edges = across_parts(vectors, part_of_speech, 1)
    # 0 and 2, 1 and 3 have each other; 4 has the nearer of 0 and 1; each edge once
    assert edges.T.tolist() == [[0, 2], [1, 3], [1, 4]]
    assert (part_of_speech[edges[0]] != part_of_speech[edges[1]]).all()


def test_three_parts_leave_no_word_alone():
    vectors = np.random.RandomState(2).randn(60, 5)
    part_of_speech = np.repeat([0, 1, 2], 20)
    edges = across_parts(vectors, part_of_speech, 2)
    assert set(edges.reshape(-1).tolist()) == set(range(60))
    assert (np.bincount(edges.reshape(-1)) >= 2).all()
    assert (edges[0] < edges[1]).all()
