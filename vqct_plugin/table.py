"""Rows of a codebook: one by one, as of an ``nn.Embedding``, and the mean of several."""

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


def mean_of(codes: Tensor, indices: Tensor) -> Tensor:
    """(N, D): the mean of the codes at indices (N, k)."""
    if indices.shape[1] == 1:
        return F.embedding(indices.squeeze(1), codes)
    return F.embedding(indices, codes).mean(dim=1)
