"""How good the reconstructions are, and which codes made them."""

from typing import Any, Dict, Iterable, List, NamedTuple, Optional

import torch
from torch import Tensor

from vqct_plugin.usage import CodebookUsage, PartUsage


class Evaluation(NamedTuple):
    """A model's figures over a set of images.

    Attributes:
        psnr: peak signal-to-noise ratio in dB, the mean over images, on RGB in [0, 1].
        ssim: structural similarity (Wang et al. 2004), the mean over images and channels.
        usage: of each part of the codebook, over the whole set.
        counts: (n_e,) how often each code was chosen.
        part_of_speech: (n_e,) the part of each code, an index into the keys of ``usage``.
        images: how many images were seen.
    """

    psnr: float
    ssim: float
    usage: Dict[str, PartUsage]
    counts: Tensor
    part_of_speech: Tensor
    images: int


def usage_of(quantizer: Any) -> CodebookUsage:
    """A counter for a quantizer's codes: per part of speech, or as one part where it has none (a stock one)."""
    if hasattr(quantizer, "part_of_speech"):
        return CodebookUsage(quantizer.part_of_speech, quantizer.parts)
    return CodebookUsage(max(codes_of(quantizer), int(getattr(quantizer, "re_embed", 0))))


def codes_of(quantizer: Any) -> int:
    """How many codes a quantizer has, stock or ours."""
    return int(quantizer.n_e if hasattr(quantizer, "n_e") else quantizer.n_embed)  # VectorQuantizer2, GumbelQuantize


@torch.no_grad()
def evaluate(model: Any, batches: Iterable[Dict[str, Any]], device: Optional[torch.device] = None) -> Evaluation:
    """PSNR, SSIM and the use of the codebook over batches as a taming data set gives them, values in [-1, 1].

    Args:
        model: a taming ``VQModel``, stock or ours.
        batches: mappings whose ``model.image_key`` is (B, H, W, C).
        device: where to compute; the model's own by default.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    device = device or next(model.parameters()).device
    was_training = model.training
    model.eval()
    usage, psnr, ssim = usage_of(model.quantize), [], []
    try:
        for batch in batches:
            x = model.get_input(batch, model.image_key).to(device)
            quantized, _, (_, _, indices) = model.encode(x)
            usage.update(indices)
            original, reconstruction = _unit(x), _unit(model.decode(quantized))
            psnr += peak_signal_noise_ratio(
                reconstruction, original, data_range=1.0, reduction="none", dim=(1, 2, 3)
            ).tolist()
            ssim += structural_similarity_index_measure(
                reconstruction, original, data_range=1.0, reduction="none"
            ).tolist()
    finally:
        model.train(was_training)
    if not psnr:
        raise ValueError("there is no batch to evaluate; the data set is empty")
    return Evaluation(_mean(psnr), _mean(ssim), usage.compute(), usage.total_counts(), usage.part_of_speech, len(psnr))


def _unit(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], cut off beyond."""
    return ((x.float() + 1) / 2).clamp(0, 1)


def _mean(values: List[float]) -> float:
    return sum(values) / len(values)
