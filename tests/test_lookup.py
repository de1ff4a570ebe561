"""The nearest codes: against every distance in float64, in bounded memory, whatever precision the user asked for."""

import numpy as np
import pytest
import torch

from vqct_plugin import lookup
from vqct_plugin.lookup import find_nearest, find_nearest_as_taming


def all_distances(z, codes):
    """(N, n), in float64, by the difference."""
    return ((z.double()[:, None] - codes.double()[None]) ** 2).sum(-1)


def brute_force(z, codes, k):
    """The k nearest, exactly; a stable sort keeps the lowest index first."""
    return torch.from_numpy(np.argsort(all_distances(z, codes).numpy(), axis=1, kind="stable")[:, :k])


def assert_nearest(z, codes, k, found):
    """Each is as near as the exact one, but for the rounding of float32; and where nothing is that close, it is it."""
    distances, exact = all_distances(z, codes), brute_force(z, codes, k)
    mean = codes.double().mean(0)
    size = ((z.double() - mean).norm(dim=1, keepdim=True) + (codes.double() - mean).norm(dim=1).max()) ** 2
    error = 4 * (z.shape[1] + 4) * 2.0**-24 * size  # the usual bound of a dot product's rounding, of both scores
    assert found.shape == (len(z), k)
    assert (distances.gather(1, found) <= distances.gather(1, exact) + error).all()
    assert all(len(set(row)) == k for row in found.tolist())
    ordered = distances.sort(dim=1)[0]
    clear = ((ordered[:, 1 : k + 1] - ordered[:, : min(k, codes.shape[0] - 1)]) > error).all(1)
    assert torch.equal(found[clear], exact[clear])
    return clear


def near_midpoints(n, dim):
    """Vectors a rounding error away from the middle between two codes."""
    codes = torch.randn(n, dim)
    a, b = torch.randint(0, n, (2, 200))
    return (codes[a] + codes[b]) / 2 + 1e-7 * torch.randn(200, dim), codes


CASES = {
    "random": lambda: (torch.randn(300, 32), torch.randn(500, 32)),
    "duplicated codes": lambda: (torch.randn(200, 8), torch.randn(20, 8).repeat(7, 1)),
    "one code many times": lambda: (torch.randn(100, 8), torch.ones(60, 8)),
    "large norms": lambda: (torch.randn(100, 8) * 1e15, torch.randn(60, 8) * 1e15),
    "small norms": lambda: (torch.randn(100, 8) * 1e-15, torch.randn(60, 8) * 1e-15),
    "both at once": lambda: (torch.randn(100, 8), torch.randn(60, 8) * torch.logspace(-10, 10, 60)[:, None]),
    "far from the origin": lambda: (torch.randn(100, 8) + 1e3, torch.randn(60, 8) + 1e3),
    "more than a tile of codes": lambda: (torch.randn(50, 4), torch.randn(5000, 4)),
    "a collapsed codebook": lambda: (torch.randn(100, 64), torch.ones(400, 64) + 1e-6 * torch.randn(400, 64)),
    "midpoints": lambda: near_midpoints(100, 16),
    "a vector on a code": lambda: (lambda c: (c.clone(), c))(torch.randn(100, 16)),
    "zeros": lambda: (torch.zeros(10, 8), torch.zeros(6, 8)),
    "one dimension": lambda: (torch.randn(100, 1), torch.randn(60, 1)),
    "float64": lambda: (torch.randn(50, 8).double(), torch.randn(60, 8).double()),
}


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_brute_force_in_float64(case, k):
    z, codes = CASES[case]()
    found = find_nearest(z, codes, k)
    assert found.dtype == torch.int64
    clear = assert_nearest(z, codes, k, found)
    if case in ("random", "float64", "far from the origin", "more than a tile of codes"):
        assert clear.float().mean() > 0.95  # so that the comparison says something


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_way_of_other_devices_agrees(case, k, monkeypatch):
    """What runs on a GPU, on the CPU: tiles of another size, minima without groups. Not the GPU's own products."""
    z, codes = CASES[case]()
    monkeypatch.setitem(lookup._TILE_CODES, "cpu", lookup._TILE_CODES["other"])
    smallest = lookup._smallest
    monkeypatch.setattr(lookup, "_smallest", lambda values, k, grouped: smallest(values, k, False))
    assert_nearest(z, codes, k, find_nearest(z, codes, k))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_torchs_plainest_operators_give_the_same(case, k):
    """What an exported graph has."""
    z, codes = CASES[case]()
    if z.dtype == codes.dtype:
        assert_nearest(z, codes, k, lookup._nearest_at_once(z, codes, k))


def test_an_offset_that_codes_and_vectors_share_changes_nothing():
    """1,000 times the spread: without the common mean taken off, nine of ten rows would be wrong."""
    spread, offset = torch.randn(400, 32), 1000 * torch.randn(32)
    z, codes = spread[:200] + offset, spread[200:] + offset
    assert (find_nearest(z, codes) == brute_force(z, codes, 1)).float().mean() == 1
    plain = (codes.pow(2).sum(1) - 2 * z @ codes.t()).argmin(1)
    assert (plain == brute_force(z, codes, 1)[:, 0]).float().mean() < 0.5  # what is guarded against


def test_one_code_and_all_codes():
    z = torch.randn(40, 8)
    assert torch.equal(find_nearest(z, torch.randn(1, 8)), torch.zeros(40, 1, dtype=torch.int64))
    codes = torch.cat([torch.randn(15, 8), torch.ones(5, 8)])
    assert torch.equal(find_nearest(z, codes, k=20).sort(dim=1)[0], torch.arange(20).repeat(40, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_compared_as_the_numbers_they_are(dtype):
    z, codes = torch.randn(60, 16).to(dtype), torch.randn(40, 16)
    assert torch.equal(find_nearest(z, codes, 2), brute_force(z.float(), codes, 2))


def test_blocks_change_nothing(monkeypatch):
    z, codes = torch.randn(500, 16), torch.randn(90, 16)
    whole = find_nearest(z, codes, 3), find_nearest_as_taming(z, codes)
    monkeypatch.setitem(lookup._TILE_SCORES, "cpu", 1)
    assert torch.equal(find_nearest_as_taming(z, codes), whole[1])
    monkeypatch.setitem(lookup._TILE_CODES, "cpu", 7)
    monkeypatch.setattr(lookup, "_COPIED", 160)
    assert torch.equal(find_nearest(z, codes, 3), whole[0])


def test_equal_codes_come_lowest_first():
    """Integers, whose mean is an integer: distances without rounding, which some libraries of matrix products do in one
    way for a block's inner columns and in another for its last ones."""
    kinds = 3 * torch.randint(-8, 9, (3, 16)).float()
    codes = kinds.repeat(200, 1)  # 600 codes, three kinds
    z = torch.randint(-16, 17, (100, 16)).float()
    for k in (1, 4):
        found = find_nearest(z, codes, k)
        assert torch.equal(found[:, 0], ((z.unsqueeze(1) - kinds) ** 2).sum(dim=2).argmin(dim=1))
        assert torch.equal(found, found[:, :1] + 3 * torch.arange(k))


@pytest.mark.parametrize("size", [(4096, 2048, 4), (64, 70_000, 16), (3000, 100, 512)])
def test_memory_does_not_hold_every_score(size):
    """At most 64 MB beyond the inputs: torch's own count of what is allocated, as it is allocated."""
    if not hasattr(torch, "profiler"):
        pytest.skip("torch.profiler came with torch 1.8")
    n_vectors, n_codes, dim = size
    z, codes = torch.randn(n_vectors, dim), torch.randn(n_codes, dim)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        find_nearest(z, codes, 2)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert 0 < peak <= 64 * 2**20
    assert peak < 4 * n_vectors * n_codes or n_vectors * n_codes < 2**20


@pytest.mark.skipif(not hasattr(torch, "set_float32_matmul_precision"), reason="no such switch in this torch")
def test_a_lower_matmul_precision_of_the_user_changes_nothing():
    z, codes = CASES["midpoints"]()
    expected = find_nearest(z, codes)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(find_nearest(z, codes), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("k", [0, 6])
def test_refuses_k_beyond_the_codes(k):
    with pytest.raises(ValueError, match="expected 1 to 5"):
        find_nearest(torch.randn(3, 4), torch.randn(5, 4), k)


def test_refuses_two_dimensions_that_differ():
    with pytest.raises(ValueError, match="of one D"):
        find_nearest(torch.randn(3, 4), torch.randn(5, 6))


def test_very_many_codes_of_each_vector():
    z, codes = torch.randn(3, 4), torch.randn(1200, 4)
    found = find_nearest(z, codes, 1100)
    expected = (z.double().unsqueeze(1) - codes.double()).norm(dim=2).argsort(dim=1)[:, :1100]
    assert (found == expected).float().mean() > 0.99
