"""SSIM and MS-SSIM by their definitions, window by window, and by scikit-image where it is installed."""

import sys

import numpy as np
import pytest
import torch

from vqct_plugin.evaluation.images import measure
from vqct_plugin.evaluation.ssim import SCALE_WEIGHTS, compute_ms_ssim, compute_ssim

OFFSETS = np.arange(11) - 5
WINDOW = np.exp(-(OFFSETS[:, None] ** 2 + OFFSETS[None] ** 2) / (2 * 1.5**2))
WINDOW /= WINDOW.sum()


def pair(height, width, number=2, seed=0):
    """Smooth images with edges in them, and disturbed copies, float32 in [0, 1]; the last of them nearly flat."""
    random = np.random.RandomState(seed)
    rows, columns = np.mgrid[:height, :width] / 16
    images = np.stack([[np.sin(rows * (k + 1) + c) * np.cos(columns) for c in range(3)] for k in range(number)])
    images = 0.5 + 0.3 * images + 0.2 * (images > 0.2)
    images[-1] = 0.9 + 0.001 * images[-1]
    copies = images * 0.9 + 0.02 + 0.05 * random.randn(*images.shape)
    return [torch.tensor(x.clip(0, 1), dtype=torch.float32) for x in (images, copies)]


def compare_by_hand(a, b):
    """Luminance and contrast of each valid 11 x 11 window of two (H, W) arrays, in float64."""
    x, y = (np.lib.stride_tricks.sliding_window_view(side.astype(np.float64), (11, 11)) for side in (a, b))
    mx, my = (x * WINDOW).sum((-2, -1)), (y * WINDOW).sum((-2, -1))
    dx, dy = x - mx[..., None, None], y - my[..., None, None]
    vx, vy, vxy = ((p * q * WINDOW).sum((-2, -1)) for p, q in ((dx, dx), (dy, dy), (dx, dy)))
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mx * my + c1) / (mx**2 + my**2 + c1), (2 * vxy + c2) / (vx + vy + c2)


@pytest.mark.parametrize("size", [(11, 11), (24, 37)])
def test_ssim_is_its_definition_over_whole_windows(size):
    a, b = pair(*size)
    for found, x, y in zip(compute_ssim(a, b).tolist(), a.numpy(), b.numpy()):
        by_hand = [np.prod(compare_by_hand(*channel), axis=0).mean() for channel in zip(x, y)]
        assert found == pytest.approx(np.mean(by_hand), abs=1e-9)


def test_ssim_is_scikit_images_to_four_digits():
    skimage = pytest.importorskip("skimage.metrics")
    a, b = pair(48, 64, number=3)
    for found, x, y in zip(compute_ssim(a, b).tolist(), a.double().numpy(), b.double().numpy()):
        theirs = skimage.structural_similarity(
            x, y, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )  # which leaves out a border of 5 pixels: the windows that are not whole
        assert found == pytest.approx(theirs, abs=1e-4)


def test_the_data_range_scales_with_the_images():
    a, b = pair(20, 20)
    assert compute_ssim(a * 255, b * 255, data_range=255).tolist() == pytest.approx(
        compute_ssim(a, b).tolist(), abs=1e-7
    )


@pytest.mark.parametrize("size", [(176, 180), (177, 191)])
def test_ms_ssim_is_its_definition_over_five_scales(size):
    a, b = pair(*size)
    for found, x, y in zip(compute_ms_ssim(a, b).tolist(), a.numpy(), b.numpy()):
        x, y = x.astype(np.float64), y.astype(np.float64)
        result = 1.0
        for scale, weight in enumerate(SCALE_WEIGHTS):
            terms = [compare_by_hand(*channel) for channel in zip(x, y)]
            means = [np.mean(contrast if scale < 4 else luminance * contrast) for luminance, contrast in terms]
            result *= max(np.mean(means), 0) ** weight
            x, y = (np.pad(s, ((0, 0), (0, s.shape[1] % 2), (0, s.shape[2] % 2)), mode="edge") for s in (x, y))
            x, y = ((s[:, ::2, ::2] + s[:, 1::2, ::2] + s[:, ::2, 1::2] + s[:, 1::2, 1::2]) / 4 for s in (x, y))
        assert found == pytest.approx(result, abs=1e-7)


def test_opposites_are_below_zero_and_have_no_root():
    a, _ = pair(176, 176, number=1)
    stripes = torch.zeros_like(a)
    stripes[..., ::2] = 1
    assert float(compute_ssim(stripes, 1 - stripes)) < 0
    assert compute_ms_ssim(stripes, 1 - stripes).tolist() == [0.0]


def test_an_image_is_measured_alone():
    a, b = pair(30, 30, number=3)
    together = compute_ssim(a, b)
    assert [float(compute_ssim(a[i : i + 1], b[i : i + 1])) for i in range(3)] == together.tolist()


def test_no_torchmetrics_is_needed(monkeypatch):
    """Two of its versions gave 0.5975 and 0.5475 for the same images."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    a, b = (2 * x - 1 for x in pair(176, 176, number=1))
    assert set(measure(a, b)) == {"psnr", "ssim", "ms_ssim", "l1"}


@pytest.mark.parametrize("size", [(10, 30), (30, 10)])
def test_images_without_a_window_are_refused(size):
    a, b = pair(*size)
    with pytest.raises(ValueError, match=rf"are {size[0]} x {size[1]} pixels; expected at least 11 each way"):
        compute_ssim(a, b)
    assert set(measure(a, b)) == {"psnr", "l1"}
    with pytest.raises(ValueError, match="expected at least 176 each way"):
        compute_ms_ssim(*pair(200, 175, number=1))


def test_shapes_that_differ_are_refused():
    a, b = pair(12, 12)
    with pytest.raises(ValueError, match=r"\(2, 3, 12, 12\) and \(1, 3, 12, 12\)"):
        compute_ssim(a, b[:1])
