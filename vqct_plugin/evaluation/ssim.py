"""SSIM and MS-SSIM as Wang et al. define them, the same whichever libraries are installed.

The window is Wang's: a Gaussian of 11 x 11 pixels with a standard deviation of 1.5, its weights adding up to 1. Only
windows that lie wholly within the image count: nothing is padded. Moments are those of the population, and everything
is computed in float64, one image after the other in effect: an image's figure depends on no other.

Sources: Wang, Bovik, Sheikh, Simoncelli, *Image quality assessment: from error visibility to structural similarity*,
2004 (SSIM, eq. 13); Wang, Simoncelli, Bovik, *Multiscale structural similarity for image quality assessment*, 2003
(MS-SSIM, eq. 7, and the weights of its section 3.2).
"""

import math
from typing import Tuple

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: the shorter side from which there is a figure: one window has to fit, for MS-SSIM at the fifth scale
SMALLEST_SSIM, SMALLEST_MS_SSIM = WINDOW, WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)


def compute_ssim(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """The mean of SSIM over all windows and channels.

    Args:
        a, b: (B, C, H, W), both sides at least 11 pixels; the order makes no difference.
        data_range: the distance between the least and the greatest value that a pixel can have.

    Returns:
        (B,) float64; 1 for an image and itself.

    Raises:
        ValueError: the shapes differ, or no window fits.

    scikit-image's ``structural_similarity`` with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False`` is
    the same number.
    """
    luminance, contrast = _compare(*_prepare(a, b, SMALLEST_SSIM), data_range)
    return (luminance * contrast).mean(dim=(1, 2, 3))


def compute_ms_ssim(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """MS-SSIM: contrast and structure at five scales, luminance at the last, each the mean over windows and channels.

    From one scale to the next, blocks of 2 x 2 pixels become their mean; the last row or column of an odd number is
    repeated. A mean below 0, which has no root, counts as 0.

    Args:
        a, b: (B, C, H, W), both sides at least 176 pixels.
        data_range: as of :func:`compute_ssim`.

    Returns:
        (B,) float64; 1 for an image and itself.

    Raises:
        ValueError: the shapes differ, or no window fits at the fifth scale.
    """
    a, b = _prepare(a, b, SMALLEST_MS_SSIM)
    found = torch.ones(len(a), dtype=a.dtype, device=a.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        luminance, contrast = _compare(a, b, data_range)
        last = scale == len(SCALE_WEIGHTS) - 1
        found = found * (luminance * contrast if last else contrast).mean(dim=(1, 2, 3)).clamp(min=0) ** weight
        a, b = _halve(a), _halve(b)
    return found


def _prepare(a: Tensor, b: Tensor, smallest: int) -> Tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(f"the images have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (B, C, H, W) of both")
    if min(a.shape[-2:]) < smallest:
        raise ValueError(f"the images are {a.shape[-2]} x {a.shape[-1]} pixels; expected at least {smallest} each way")
    if a.device.type == "mps":  # which has no float64
        a, b = a.cpu(), b.cpu()
    return a.double(), b.double()


def _compare(a: Tensor, b: Tensor, data_range: float) -> Tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, of each window: (B, C, H - 10, W - 10) each."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_a, mean_b = _average(a), _average(b)
    covariance = _average(a * b) - mean_a * mean_b
    variances = _average(a * a + b * b) - mean_a**2 - mean_b**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


def _average(x: Tensor) -> Tensor:
    """The Gaussian mean of each window, down and then across: 22 shifted sums instead of a convolution of 121."""
    weights = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    total = sum(weights)
    for dim in (-2, -1):
        length = x.shape[dim] - WINDOW + 1
        found = torch.zeros_like(x.narrow(dim, 0, length))
        for i, weight in enumerate(weights):
            found.add_(x.narrow(dim, i, length), alpha=weight / total)
        x = found
    return x


def _halve(x: Tensor) -> Tensor:
    padding = (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)
    return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, padding, mode="replicate"), 2)
