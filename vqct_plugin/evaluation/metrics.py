"""The use of a codebook as a torchmetrics metric."""

from typing import Any, Dict, Sequence, Union

import torch
from torch import Tensor
from torchmetrics import Metric

from vqct_plugin.usage import CodebookUsage, PartUsage, usage_of_counts

__all__ = ["CodebookUsageMetric"]


class CodebookUsageMetric(Metric):
    """:class:`vqct_plugin.usage.CodebookUsage` as a torchmetrics metric: for ``self.log``, collections and devices.

    Counts are added over batches and processes before any figure is made.

    Args:
        part_of_speech: (n_e,) integers, the part of each code (``quantizer.part_of_speech``); or the number of codes,
            for a quantizer with one part.
        parts: the names of the parts (``quantizer.parts``).

    Raises:
        ValueError: on updating with values that are not indices of the codebook.

    >>> usage = CodebookUsageMetric([0, 0, 1, 1, 1], ("adjective", "noun"))
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
        self._counter = CodebookUsage(part_of_speech, parts)
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
        return usage_of_counts(self.counts.cpu(), self._counter.part_of_speech, self._counter.parts)
