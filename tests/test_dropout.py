"""The shared dropout: its share, its bits, its masks, and that gradient checkpointing finds them again."""

import pytest
import torch

from vqct_plugin.dropout import SharedDropout, draw_16_bits

WEIGHTS = torch.linspace(-1, 1, 40).view(8, 5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    dropout = SharedDropout(p)
    x = torch.ones(400, 500)
    y = dropout(x, WEIGHTS)
    kept = y > 0
    tolerance = 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert abs(kept.float().mean() - (1 - p)) < tolerance
    assert torch.allclose(y[kept], torch.tensor(1 / (1 - p)), rtol=1e-4)
    assert abs(kept.float().mean(0).var() - p * (1 - p) / 400) < 0.2 * p * (1 - p) / 400  # columns are independent
    again = dropout(x, WEIGHTS) > 0
    assert abs((kept & again).float().mean() - (1 - p) ** 2) < 2 * tolerance  # and so are two masks


def test_the_random_bits_are_uniform_and_uncorrelated():
    bits = draw_16_bits(2**20, torch.tensor(12345), torch.tensor(7)).double()
    assert abs(bits.mean() + 0.5) < 5 * 2**16 / 12**0.5 / 2**10
    histogram = torch.histc(bits, 64, -(2**15), 2**15)
    assert ((histogram - 2**14) ** 2 / 2**14).sum() < 63 + 5 * (2 * 63) ** 0.5  # chi-squared
    centered = bits - bits.mean()
    for lag in (1, 2, 3, 4, 256):
        correlation = (centered[lag:] * centered[:-lag]).mean() / centered.pow(2).mean()
        assert abs(correlation) < 5 / 2**10


def test_the_masks_depend_on_the_seed_and_the_draw_alone():
    first = SharedDropout(0.5)
    x = torch.ones(1000)
    masks = [first(x, WEIGHTS) for _ in range(3)]
    second = SharedDropout(0.5)
    assert not torch.equal(second(x, WEIGHTS + 1), masks[0])  # another seed
    second.load_state_dict({"seed": first.seed, "draws": torch.tensor(1)})
    torch.rand(17)  # what else draws random numbers does not matter
    assert torch.equal(second(x, WEIGHTS), masks[1])
    assert torch.equal(second(x, WEIGHTS), masks[2])


def test_known_bits():
    """The generator's own test: masks of old checkpoints stay what they were. First outputs of SplitMix64 by another
    hand, in Python's unbounded integers."""

    def splitmix64(x):
        mask = 2**64 - 1
        x = (x * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    def expected(number, seed, stream):
        key = splitmix64((seed + splitmix64(stream)) % 2**64)
        lanes = [splitmix64((i + key) % 2**64) >> shift & 0xFFFF for i in range(number) for shift in (0, 16, 32, 48)]
        return [lane - 2**16 if lane >= 2**15 else lane for lane in lanes][:number]

    for seed, stream in [(0, 0), (1, 0), (0, 1), (2**62 - 1, 12345)]:
        assert draw_16_bits(10, torch.tensor(seed), torch.tensor(stream)).tolist() == expected(10, seed, stream)


def test_dropout_of_nothing_is_nothing():
    x = torch.randn(5)
    assert SharedDropout(0)(x, WEIGHTS) is x


@pytest.mark.parametrize("p", [1.0, -0.1, True, "half"])
def test_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="expected a probability"):
        SharedDropout(p)
