"""Errors about what is on a device, raised without making the host wait for it."""

from typing import Any, List, Tuple, Type

import torch
from torch import Tensor


class DeferredErrors:
    """Raises an error when a condition computed on a device turns out false.

    On the CPU at once. On a GPU the answer is copied over in the background, and the error comes at the first call
    after it has arrived, usually one step later.
    """

    def __init__(self) -> None:
        self._pending: List[Tuple[Any, Tensor, str, Type[Exception]]] = []

    def unless(self, condition: Tensor, message: str, error: Type[Exception] = ValueError) -> None:
        """Raise ``error(message)`` if the 0-d bool ``condition`` is false, and whatever earlier call has come due."""
        if condition.device.type != "cuda":
            if not bool(condition):
                raise error(message)
            return
        self._raise_due()
        if torch.cuda.is_current_stream_capturing() if hasattr(torch.cuda, "is_current_stream_capturing") else False:
            return  # a copy to the host cannot be part of a CUDA graph
        answer = torch.empty((), dtype=torch.bool, pin_memory=True)
        answer.copy_(condition, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((arrived, answer, message, error))

    def _raise_due(self) -> None:
        while self._pending and self._pending[0][0].query():
            _, answer, message, error = self._pending.pop(0)
            if not bool(answer):
                self._pending.clear()
                raise error(f"{message} (in an earlier step: the GPU's answer is not waited for)")

    # Copies and pickles of a module do not take along what is still under way.
    def __deepcopy__(self, memo: Any) -> "DeferredErrors":
        return DeferredErrors()

    def __reduce__(self) -> Tuple[Any, ...]:
        return DeferredErrors, ()
