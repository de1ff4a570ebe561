"""Figures of single images: a reconstruction against its original."""

import io
from typing import Any, Callable, Dict, List, Optional, Union

import numpy as np
import torch
from torch import Tensor

from vqct_plugin.evaluation.measure import Conditions, Figure, Measure
from vqct_plugin.evaluation.ssim import SMALLEST_MS_SSIM, SMALLEST_SSIM, compute_ms_ssim, compute_ssim
from vqct_plugin.evaluation.weights import load_lpips

#: what each protocol measures of an image, in the order of the table
PROTOCOLS = {"plain": ("psnr", "ssim", "ms_ssim", "l1", "lpips"), "vqct": ("psnr", "ssim", "l1", "lpips")}


class ImageMeasures(Measure):
    """The figures of :func:`measure`."""

    figures = {  # noqa: RUF012
        "psnr": Figure("PSNR, dB", 2),
        "ssim": Figure("SSIM", 4),
        "ms_ssim": Figure("MS-SSIM", 4),
        "l1": Figure("L1", 4),
        "lpips": Figure("LPIPS", 4),
    }

    def __init__(self, conditions: Conditions) -> None:
        super().__init__(conditions)
        self.figures = {name: type(self).figures[name] for name in PROTOCOLS[conditions.protocol]}
        self.lpips: Optional[Callable[..., Tensor]] = None
        if conditions.device is not None:
            self.lpips, _ = load_lpips(conditions.device, conditions.weights)

    def update(self, originals: Tensor, reconstructions: Tensor) -> None:
        for name, values in measure(originals, reconstructions, self.conditions.protocol, self.lpips).items():
            self.keep(name, values)

    def compute(self) -> Dict[str, Union[float, np.ndarray]]:
        return {name: self.gather(name) for name in self.rows}

    def explain(self, name: str) -> str:
        if name in ("ssim", "ms_ssim"):
            return f"images under {SMALLEST_SSIM if name == 'ssim' else SMALLEST_MS_SSIM} pixels"
        return load_lpips("cpu", self.conditions.weights)[1]


def measure(
    originals: Tensor, reconstructions: Tensor, protocol: str = "plain", lpips: Optional[Callable[..., Tensor]] = None
) -> Dict[str, List[float]]:
    """The figures of each image of a batch.

    Args:
        originals, reconstructions: (B, 3, H, W) in [-1, 1]; values beyond are cut off.
        protocol: ``"plain"``: PSNR (dB) and SSIM on RGB in [0, 1], of images from 11 pixels on, and MS-SSIM from 176
            pixels on, see :mod:`vqct_plugin.evaluation.ssim`. ``"vqct"``, the authors': both images as JPEG files of
            PIL's usual quality, PSNR on their RGB, SSIM on their luminance by scikit-image with its defaults. In both,
            ``l1`` is the mean absolute difference of values in [-1, 1].
        lpips: the perceptual distance of two batches in [-1, 1], reduced over nothing but pixels; left out without.

    Returns:
        name -> a number for each image.
    """
    originals, reconstructions = (x.detach().float().clamp(-1, 1) for x in (originals, reconstructions))
    found = {"l1": (originals - reconstructions).abs().mean(dim=(1, 2, 3)).tolist()}
    if protocol == "vqct":
        pairs = list(zip(to_jpeg(originals), to_jpeg(reconstructions)))
        found["psnr"] = [_compute_psnr(a, b) for a, b in pairs]
        found["ssim"] = [_compute_ssim(a, b) for a, b in pairs]
    else:
        found.update(_measure_pixels((originals + 1) / 2, (reconstructions + 1) / 2))
    if lpips is not None:
        found["lpips"] = lpips(originals, reconstructions).reshape(-1).tolist()
    return {name: found[name] for name in PROTOCOLS[protocol] if name in found}


def _measure_pixels(originals: Tensor, reconstructions: Tensor) -> Dict[str, List[float]]:
    """Of RGB in [0, 1]: a data range of 1 for all three figures."""
    error = (originals.cpu().double() - reconstructions.cpu().double()).square().mean(dim=(1, 2, 3))
    found = {"psnr": -10 * torch.log10(error)}
    shorter = min(originals.shape[-2:])
    if shorter >= SMALLEST_SSIM:
        found["ssim"] = compute_ssim(originals, reconstructions)
    if shorter >= SMALLEST_MS_SSIM:
        found["ms_ssim"] = compute_ms_ssim(originals, reconstructions)
    return {name: values.tolist() for name, values in found.items()}


def to_bytes(images: Tensor) -> np.ndarray:
    """(B, H, W, 3) uint8 of images (B, 3, H, W) in [-1, 1], rounded."""
    scaled = ((images.clamp(-1, 1) + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8)
    array: np.ndarray = scaled.permute(0, 2, 3, 1).cpu().numpy()
    return array


def to_jpeg(images: Tensor) -> List[Any]:
    """PIL images of a batch in [-1, 1], written as JPEG and read again."""
    from PIL import Image

    read = []
    for pixels in to_bytes(images):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG")
        read.append(Image.open(file).convert("RGB"))
    return read


def to_pixels(images: Tensor, protocol: str) -> Tensor:
    """(B, 3, H, W) uint8 of images in [-1, 1], as networks see them: rounded, with ``"vqct"`` also written as JPEG."""
    pixels = np.stack([np.asarray(i) for i in to_jpeg(images)]) if protocol == "vqct" else to_bytes(images)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _compute_psnr(a: Any, b: Any) -> float:
    error = float(np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2))
    return float("inf") if error == 0 else float(20 * np.log10(255 / np.sqrt(error)))


def _compute_ssim(a: Any, b: Any) -> float:
    from skimage.metrics import structural_similarity

    return float(structural_similarity(np.asarray(a.convert("L")), np.asarray(b.convert("L"))))
