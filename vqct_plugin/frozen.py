"""A codebook computed once, for inference, that knows whether it is still true."""

from typing import List, NamedTuple, Sequence

import torch
from torch import Tensor


class FrozenCodebook(NamedTuple):
    """Codes (n, D), and a copy of the parameters they were computed from."""

    codes: Tensor
    weights: List[Tensor]

    def unchanged(self, now: Sequence[Tensor]) -> Tensor:
        """0-d bool: whether the parameters are what they were."""
        same = [n.dtype == then.dtype and (n.detach() == then.to(n.device)).all() for n, then in zip(now, self.weights)]
        if not same or any(s is False for s in same):
            return torch.tensor(not same, device=self.codes.device)
        return torch.stack(same).all()  # type: ignore[arg-type]
