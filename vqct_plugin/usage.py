"""Which codes are in use: the share of the codebook, its perplexity, and the dead codes, per part of speech."""

from contextlib import nullcontext
from typing import Dict, List, NamedTuple, Sequence, Union

import torch
from torch import Tensor

from vqct_plugin._torch import in_process_group
from vqct_plugin.table import check_range

__all__ = ["CodebookUsage", "PartUsage"]


class PartUsage(NamedTuple):
    """How one part's codes were used.

    Attributes:
        codes: how many codes the part has.
        in_use: how many of them were chosen at least once.
        share: ``in_use / codes``.
        perplexity: ``exp`` of the entropy (natural logarithm) of the codes' frequencies: from 1, one code for
            everything, to ``codes``, all alike. NaN where nothing was counted.
        dead: the codes never chosen, as indices into the whole codebook.
        tokens: how many choices were counted.
    """

    codes: int
    in_use: int
    share: float
    perplexity: float
    dead: List[int]
    tokens: int


class CodebookUsage:
    """Counts how often each code is chosen, over any number of batches.

    Under ``torch.distributed`` every process counts its own batches, and :meth:`compute` adds the counts of all of
    them before any figure is made: shares and perplexities of single processes cannot be averaged. Then every process
    has to call it.

    Args:
        part_of_speech: (n_e,) integers, the part of each code (``quantizer.part_of_speech``); or the number of codes,
            for a quantizer with one part.
        parts: the names of the parts (``quantizer.parts``).

    >>> usage = CodebookUsage([0, 0, 1, 1, 1], ("adjective", "noun"))
    >>> usage.update(torch.tensor([0, 0, 2, 3]))
    >>> usage.compute()["noun"]
    PartUsage(codes=3, in_use=2, share=0.6666666666666666, perplexity=2.0, dead=[4], tokens=2)
    """

    def __init__(self, part_of_speech: Union[int, Sequence[int], Tensor], parts: Sequence[str] = ("codes",)) -> None:
        if isinstance(part_of_speech, int):
            part_of_speech = [0] * part_of_speech
        self.part_of_speech = torch.as_tensor(part_of_speech).detach().cpu().long()
        self.parts = tuple(parts)
        if self.part_of_speech.dim() != 1 or self.part_of_speech.numel() == 0:
            raise ValueError(f"part_of_speech has shape {tuple(self.part_of_speech.shape)}; expected (n_e,), n_e >= 1")
        low, high = int(self.part_of_speech.min()), int(self.part_of_speech.max())
        if low < 0 or high >= len(self.parts):
            raise ValueError(f"part_of_speech runs from {low} to {high}, but the parts are {self.parts}")
        self.counts = torch.zeros(self.part_of_speech.numel(), dtype=torch.int64)

    def update(self, indices: Tensor) -> None:
        """Count the codes of one batch: integers in [0, n_e), of any shape. Does not make the host wait for a GPU."""
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError(f"indices have dtype {indices.dtype}; expected integers")
        flat = indices.detach().reshape(-1).long()
        n = self.counts.numel()
        if flat.device.type == "cpu":
            check_range(flat, n - 1)
        if self.counts.device != flat.device:
            # Lightning validates in inference mode; a tensor made in it could not be counted on outside
            outside = torch.inference_mode(False) if hasattr(torch, "inference_mode") else nullcontext()
            with outside:
                self.counts = self.counts.to(flat.device)
        self.counts.scatter_add_(0, flat, torch.ones_like(flat))

    def total_counts(self) -> Tensor:
        """(n_e,) int64 on the CPU: how often each code was chosen, added over all processes."""
        counts = self.counts.clone()
        if in_process_group():
            if torch.distributed.get_backend() == "nccl" and counts.device.type == "cpu":
                counts = counts.cuda()  # a process that has not seen a batch yet
            torch.distributed.all_reduce(counts)
        return counts.cpu()

    def compute(self) -> Dict[str, PartUsage]:
        """The figures of each part, over all batches and processes since the last :meth:`reset`."""
        return usage_of_counts(self.total_counts(), self.part_of_speech, self.parts)

    def reset(self) -> None:
        """Forget all counts."""
        self.counts.zero_()


def usage_of_counts(counts: Tensor, part_of_speech: Tensor, parts: Sequence[str]) -> Dict[str, PartUsage]:
    """The figures of each part from how often each code was chosen, (n_e,)."""
    return {part: _usage_of(counts, part_of_speech == i) for i, part in enumerate(parts)}


def _usage_of(counts: Tensor, mask: Tensor) -> PartUsage:
    places = torch.nonzero(mask).squeeze(1)
    chosen = counts[places]
    tokens, codes, in_use = int(chosen.sum()), int(chosen.numel()), int((chosen > 0).sum())
    frequency = chosen[chosen > 0].double() / max(tokens, 1)
    perplexity = float(torch.exp(-(frequency * frequency.log()).sum())) if tokens else float("nan")
    dead = [int(i) for i in places[chosen == 0]]
    return PartUsage(codes, in_use, in_use / codes if codes else float("nan"), perplexity, dead, tokens)
