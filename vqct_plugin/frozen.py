"""A codebook computed once, for inference, that knows whether it is still true."""

import warnings
from typing import List, NamedTuple, Sequence

import torch
from torch import Tensor

from vqct_plugin._torch import without_modes


class FrozenCodebook(NamedTuple):
    """Codes (n, D), a copy of the parameters they were computed from, and these parameters."""

    codes: Tensor
    weights: List[Tensor]
    sources: List[Tensor]

    @classmethod
    def of(cls, codes: Tensor, sources: Sequence[Tensor]) -> "FrozenCodebook":
        return cls(codes, [w.detach().clone() for w in sources], list(sources))

    def is_stale(self) -> bool:
        """Whether the parameters have changed, asked on the host in the middle of an export, which puts tensors
        without values, or a record of every operation, in the place of the module's own parameters."""
        with without_modes(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # that this value is no part of the trace
            return not bool(self.unchanged(self.sources))

    def unchanged(self, now: Sequence[Tensor]) -> Tensor:
        """0-d bool: whether the parameters are what they were."""
        same = [n.dtype == then.dtype and (n.detach() == then.to(n.device)).all() for n, then in zip(now, self.weights)]
        if not same or any(s is False for s in same):
            return torch.tensor(not same, device=self.codes.device)
        return torch.stack(same).all()  # type: ignore[arg-type]
