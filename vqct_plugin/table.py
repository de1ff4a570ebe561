"""Rows of a codebook: one by one, as of an ``nn.Embedding``, the mean of several, and which there are."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Table(NamedTuple):
    """What ``quantizer.embedding`` gives, as an ``nn.Embedding``: ``weight`` (n_e, e_dim / parts), and a call with
    indices gives their rows."""

    weight: Tensor

    def __call__(self, indices: Tensor) -> Tensor:
        """The rows (..., e_dim / parts) of some indices (...)."""
        return F.embedding(indices.long(), self.weight)


def average_codes(codes: Tensor, indices: Tensor) -> Tensor:
    """(N, D): the mean of the codes at indices (N, k)."""
    if indices.shape[1] == 1:
        return F.embedding(indices.squeeze(1), codes)
    return F.embedding(indices, codes).mean(dim=1)


def check_range(indices: Tensor, most: int) -> None:
    """Refuse indices outside [0, most]; reads them on the host."""
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) <= most:
        raise ValueError(f"indices run from {int(indices.min())} to {int(indices.max())}; expected 0 to {most}")
