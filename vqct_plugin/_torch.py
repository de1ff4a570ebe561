"""What differs between torch releases, and where float32 has to mean float32: no autocast, no TF32, no bfloat16."""

from contextlib import contextmanager
from typing import Any, ContextManager, Iterator

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> ContextManager[Any]:
    """A context in which autocast is off for ``device``, on every torch since 1.7."""
    if hasattr(torch, "autocast"):  # since torch 1.10
        return torch.autocast(device_type=device.type, enabled=False)
    return torch.cuda.amp.autocast(enabled=False)  # type: ignore[deprecated, unused-ignore]


@contextmanager
def exact_float32_products() -> Iterator[None]:
    """A context in which float32 matrix products are not computed in TF32 or bfloat16.

    ``torch.set_float32_matmul_precision("high")``, a usual speed-up, would move one distance in a thousand.
    """
    if not hasattr(torch, "set_float32_matmul_precision"):  # torch < 1.12: TF32 has its own switch only
        previous = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = previous
        return
    precision = torch.get_float32_matmul_precision()
    if precision == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or its float32 copy where it is half or bfloat16 (a model cast by ``.half()``)."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def compiling() -> bool:
    """Whether ``torch.compile`` is tracing this call."""
    compiler = getattr(torch, "compiler", None)
    return compiler is not None and hasattr(compiler, "is_compiling") and bool(compiler.is_compiling())
