"""How good the reconstructions are, and which codes made them."""

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Union

import torch
from torch import Tensor
from torchmetrics import Metric

from vqct_plugin import usage as core
from vqct_plugin.runs.usage import make_counter
from vqct_plugin.usage import PartUsage


class CodebookUsage(Metric):
    """:class:`vqct_plugin.usage.CodebookUsage` as a torchmetrics metric: for ``self.log``, collections and devices.

    Counts are added over batches and processes before any figure is made.

    Args:
        part_of_speech: (n_e,) integers, the part of each code (``quantizer.part_of_speech``); or the number of codes,
            for a quantizer with one part.
        parts: the names of the parts (``quantizer.parts``).

    Raises:
        ValueError: on updating with what is no index of the codebook.

    >>> usage = CodebookUsage([0, 0, 1, 1, 1], ("adjective", "noun"))
    >>> usage.update(torch.tensor([0, 0, 2, 3]))
    >>> {name: float(figure) for name, figure in usage.compute().items()}["dead/noun"]
    1.0
    """

    full_state_update = False
    counts: Tensor

    def __init__(
        self, part_of_speech: Union[int, Sequence[int], Tensor], parts: Sequence[str] = ("codes",), **options: Any
    ) -> None:
        super().__init__(**options)
        self._counter = core.CodebookUsage(part_of_speech, parts)
        self.add_state("counts", torch.zeros_like(self._counter.counts), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Count the codes of one batch: integers in [0, n_e), of any shape."""
        self._counter.counts = self.counts
        self._counter.update(indices.to(self.counts.device))
        self.counts = self._counter.counts

    def compute(self) -> Dict[str, Tensor]:
        """``in_use/PART``, a share; ``perplexity/PART``; and ``dead/PART``, a number; as 0-d tensors."""
        found = {}
        for part, usage in self.usage().items():
            found[f"in_use/{part}"] = torch.tensor(usage.share)
            found[f"perplexity/{part}"] = torch.tensor(usage.perplexity)
            found[f"dead/{part}"] = torch.tensor(float(len(usage.dead)))
        return found

    def usage(self) -> Dict[str, PartUsage]:
        """The figures of each part, of the counts that this process has."""
        return core.usage_of_counts(self.counts.cpu(), self._counter.part_of_speech, self._counter.parts)


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
    usage, psnr, ssim = make_counter(model.quantize), [], []
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
