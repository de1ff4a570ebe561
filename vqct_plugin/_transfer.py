"""What every transfer is: a module that takes no input and returns the codes."""

from typing import Any, Optional, Tuple

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin._torch import is_fake, tracing
from vqct_plugin.dropout import move_like


class Transfer(nn.Module):
    """What all transfers share: ``forward`` gives the codes (n, D) of the prior's words, in float32 or float64.

    Attributes:
        of_words: whether the words' vectors have a say in which code lies where; otherwise words are mere names.
    """

    of_words = True

    def __init__(self) -> None:
        super().__init__()
        self._constants: Tuple[str, ...] = ()

    def forward(self, dropout: bool = False, fingerprint: Optional[Tensor] = None) -> Tensor:
        """The codes (n, D). ``dropout``: with a fresh dropout mask, as in training; ``fingerprint``: see
        :class:`vqct_plugin.dropout.SharedDropout`."""
        raise NotImplementedError

    def hold(self, name: str, constant: Tensor) -> None:
        """Keep a tensor that never changes as the attribute ``name``: it follows the module from device to device, and
        is neither a parameter nor a buffer, nor in the state."""
        setattr(self, name, constant)
        self._constants += (name,)

    def constant(self, name: str, like: Tensor) -> Tensor:
        """A tensor that :meth:`hold` keeps, on the device of ``like``; it stays there, so that it is copied once where
        a wrapper moves parameters without ``Module._apply``."""
        held: Tensor = getattr(self, name)
        if held.device == like.device:
            return held
        moved = held.to(like.device)
        if not tracing() and not is_fake(moved):
            setattr(self, name, moved)
        return moved

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        super()._apply(fn, *args, **kwargs)
        for name in self._constants:
            setattr(self, name, move_like(fn, getattr(self, name)))
        return self


def sum_rows(x: Tensor, neighbors: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """``W · x`` (n, D) for a sparse W in compressed rows: sums of weighted rows, parallel on a CPU, on a GPU without
    atomic additions, so that it is deterministic."""
    return F.embedding_bag(neighbors, x, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
