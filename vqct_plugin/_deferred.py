"""Errors about what is on a device, raised without making the host wait for it."""

from typing import Any, List, NamedTuple, Optional, Type

import torch
from torch import Tensor


class _Pending(NamedTuple):
    arrived: Optional[Any]  # an event of the device; None where it has none, and then the next call waits
    answer: Tensor
    message: str
    error: Type[Exception]


class DeferredErrors:
    """Raises an error when a condition computed on a device turns out false.

    On the CPU at once. On any other device the answer is copied over in the background, and the error comes at the
    first call after it has arrived, usually one step later. Nothing is asked while a CUDA graph is captured.
    """

    def __init__(self) -> None:
        self._pending: List[_Pending] = []

    def unless(self, condition: Tensor, message: str, error: Type[Exception] = ValueError) -> None:
        """Raise ``error(message)`` if the 0-d bool ``condition`` is false, and whatever earlier call has come due."""
        if condition.device.type == "cpu":
            if not bool(condition):
                raise error(message)
            return
        if is_capturing(condition.device):
            return  # neither a question to an event nor a copy to the host can be part of a CUDA graph
        self._raise_due()
        if condition.device.type == "cuda":
            answer = torch.empty((), dtype=torch.bool, pin_memory=True)
            answer.copy_(condition, non_blocking=True)
        elif _event_class(condition.device) is not None:
            answer = condition.detach().to("cpu", non_blocking=True)
        else:
            answer = condition.detach().clone()
        self._pending.append(_Pending(_record_event(condition.device), answer, message, error))

    def _raise_due(self) -> None:
        while self._pending and (self._pending[0].arrived is None or self._pending[0].arrived.query()):
            due = self._pending.pop(0)
            if not bool(due.answer):
                self._pending.clear()
                raise due.error(f"{due.message} (this happened in an earlier step; checks on a GPU are reported late)")

    # Copies and pickles of a module do not take along what is still under way.
    def __deepcopy__(self, memo: Any) -> "DeferredErrors":
        return DeferredErrors()

    def __reduce__(self) -> Any:
        return DeferredErrors, ()


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on ``device``."""
    if device.type != "cuda" or not hasattr(torch.cuda, "is_current_stream_capturing"):
        return False
    return bool(torch.cuda.is_current_stream_capturing())


def _record_event(device: torch.device) -> Optional[Any]:
    """An event that has happened when the device has done all that it was given so far; None where there is none."""
    make = _event_class(device)
    if make is None:
        return None
    event = make()
    event.record()
    return event


def _event_class(device: torch.device) -> Optional[Any]:
    module = getattr(torch, device.type, None)  # torch.cuda, torch.xpu, torch.npu, torch.mps
    if device.type == "mps":
        module = getattr(module, "event", None)
    return getattr(module, "Event", None)
