"""The nearest codes: exact, whatever the input, and in bounded memory."""

import numpy as np
import pytest
import torch

from vqct_plugin import lookup
from vqct_plugin.lookup import nearest, nearest_as_taming


def brute_force(z, codes, k):
    """Every distance in float64, by the difference; a stable sort keeps the lowest index first."""
    distances = ((z.double()[:, None] - codes.double()[None]) ** 2).sum(-1).numpy()
    return torch.from_numpy(np.argsort(distances, axis=1, kind="stable")[:, :k])


def near_midpoints(n, dim):
    """Vectors a rounding error away from the middle between two codes."""
    codes = torch.randn(n, dim)
    a, b = torch.randint(0, n, (2, 200))
    return (codes[a] + codes[b]) / 2 + 1e-7 * torch.randn(200, dim), codes


CASES = {
    "random": lambda: (torch.randn(300, 32), torch.randn(500, 32)),
    "duplicated codes": lambda: (torch.randn(200, 8), torch.randn(20, 8).repeat(7, 1)),
    "one code many times": lambda: (torch.randn(100, 8), torch.ones(60, 8)),
    "huge norms": lambda: (torch.randn(100, 8) * 1e30, torch.randn(60, 8) * 1e30),
    "tiny norms": lambda: (torch.randn(100, 8) * 1e-30, torch.randn(60, 8) * 1e-30),
    "both at once": lambda: (torch.randn(100, 8) * 1e15, torch.randn(60, 8) * torch.logspace(-20, 20, 60)[:, None]),
    "far from the origin": lambda: (torch.randn(100, 8) + 1e6, torch.randn(60, 8) + 1e6),
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
    found = nearest(z, codes, k)
    assert found.dtype == torch.int64
    assert torch.equal(found, brute_force(z, codes, k))


def test_one_code_and_all_codes():
    z = torch.randn(40, 8)
    assert torch.equal(nearest(z, torch.randn(1, 8)), torch.zeros(40, 1, dtype=torch.int64))
    codes = torch.cat([torch.randn(15, 8), torch.ones(5, 8)])
    assert torch.equal(nearest(z, codes, k=20), brute_force(z, codes, 20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_compared_as_the_numbers_they_are(dtype):
    z, codes = torch.randn(60, 16).to(dtype), torch.randn(40, 16)
    assert torch.equal(nearest(z, codes, 2), brute_force(z.float(), codes, 2))


def test_blocks_change_nothing(monkeypatch):
    z, codes = torch.randn(500, 16), torch.randn(90, 16)
    whole = nearest(z, codes, 3), nearest_as_taming(z, codes)
    monkeypatch.setattr(lookup, "_BLOCK_SCORES_CPU", 1)
    monkeypatch.setattr(lookup, "_PAIRS_AT_ONCE", 40)
    assert torch.equal(nearest(z, codes, 3), whole[0])
    assert torch.equal(nearest_as_taming(z, codes), whole[1])


WITHIN_THE_SPARE_CODES = {
    "pairs of duplicates": lambda: (torch.randn(200, 8), torch.randn(20, 8).repeat(2, 1)),
    "few codes": lambda: (torch.zeros(10, 8), torch.ones(4, 8)),
    **{name: CASES[name] for name in ("random", "midpoints", "a vector on a code", "one dimension", "float64")},
}


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("case", WITHIN_THE_SPARE_CODES)
def test_the_way_without_waiting_agrees_too(case, k, monkeypatch):
    """The GPU's way, on the CPU, where at most three codes beyond the k nearest are a rounding error away."""

    def on_a_gpu(z, codes, scores, k, largest_norm):
        return lookup._exact_without_waiting(z, codes, scores, k)

    z, codes = WITHIN_THE_SPARE_CODES[case]()
    monkeypatch.setattr(lookup, "_exact_on_cpu", on_a_gpu)
    assert torch.equal(nearest(z, codes, k), brute_force(z, codes, k))


def test_equal_codes_come_lowest_first_though_rounding_told_their_scores_apart():
    scores = torch.tensor([[4e-7, 3e-7, 2e-7, 1e-7]])
    assert lookup._exact_without_waiting(torch.zeros(1, 8), torch.ones(4, 8), scores, 2).tolist() == [[0, 1]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("case", WITHIN_THE_SPARE_CODES)
def test_agrees_on_a_gpu(case):
    z, codes = WITHIN_THE_SPARE_CODES[case]()
    assert torch.equal(nearest(z.cuda(), codes.cuda(), 2).cpu(), brute_force(z, codes, 2))


def test_memory_does_not_hold_every_score(monkeypatch):
    """No tensor of N x n scores is made: the largest allocation stays under a block."""
    largest = []
    original = torch.Tensor.new_empty

    def watched(self, *size, **kwargs):
        made = original(self, *size, **kwargs)
        largest.append(made.numel())
        return made

    monkeypatch.setattr(torch.Tensor, "new_empty", watched)
    nearest(torch.randn(4096, 4), torch.randn(2048, 4))
    assert 0 < max(largest) <= lookup._BLOCK_SCORES_CPU < 4096 * 2048


@pytest.mark.skipif(not hasattr(torch, "set_float32_matmul_precision"), reason="no such switch in this torch")
def test_a_lower_matmul_precision_of_the_user_changes_nothing():
    z, codes = CASES["midpoints"]()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(nearest(z, codes), brute_force(z, codes, 1))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("k", [0, 6])
def test_refuses_k_beyond_the_codes(k):
    with pytest.raises(ValueError, match="expected 1 to 5"):
        nearest(torch.randn(3, 4), torch.randn(5, 4), k)


def test_refuses_two_dimensions_that_differ():
    with pytest.raises(ValueError, match="of one D"):
        nearest(torch.randn(3, 4), torch.randn(5, 6))
