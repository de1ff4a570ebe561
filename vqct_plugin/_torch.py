"""What differs between torch releases, and where float32 has to mean float32: no autocast, no TF32, no bfloat16."""

import sys
from contextlib import contextmanager, nullcontext
from typing import Any, ContextManager, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

#: matrix products in float32 that are float32: the values of torch's newer switch, ``fp32_precision``
_REDUCED = ("tf32", "bf16")


_is_compiling: Any = getattr(getattr(torch, "compiler", None), "is_compiling", None)  # since torch 2.3


def without_autocast(device: torch.device) -> ContextManager[Any]:
    """A context in which autocast is off for ``device``, on every torch since 1.7."""
    if device.type == "meta" or tracing():
        return nullcontext()  # nothing is computed there; no context is written down
    if not hasattr(torch, "autocast"):  # since torch 1.10
        return torch.cuda.amp.autocast(enabled=False)  # type: ignore[deprecated, unused-ignore]
    if compiling():
        return torch.autocast(device_type=device.type, enabled=False)
    available = getattr(getattr(torch, "amp", None), "is_autocast_available", None)  # since torch 2.4
    if available is not None and not available(device.type):
        return nullcontext()
    try:
        return torch.autocast(device_type=device.type, enabled=False)
    except (RuntimeError, AssertionError):  # a device without autocast, as MPS before torch 2.5: nothing to turn off
        return nullcontext()


@contextmanager
def exact_float32_products() -> Iterator[None]:
    """A context in which float32 matrix products are not computed in TF32 or bfloat16, whichever switch asked for it.

    torch has two switches: ``torch.set_float32_matmul_precision`` (since 1.12) and ``fp32_precision`` of
    ``torch.backends`` and its members (since 2.9). The first cannot be read once the second has been set otherwise.
    A lower precision would move one distance in a thousand.
    """
    if not hasattr(torch, "set_float32_matmul_precision"):  # torch < 1.12: TF32 has a switch of its own only
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed
        return
    switches = _switches_of_products()
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer switch is in use
        precision = "highest"
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    for products, _ in switches:
        if products.fp32_precision in _REDUCED:
            products.fp32_precision = "ieee"
    try:
        yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)
        for products, value in switches:
            if products.fp32_precision != value:
                products.fp32_precision = "none"  # as the switch above it says; where that is not it, its own
                if products.fp32_precision != value:
                    products.fp32_precision = value


def _switches_of_products() -> List[Tuple[Any, str]]:
    """The switches of matrix products in torch's newer interface, with their values; empty where it has none.

    One that takes its value from the switch above it (``torch.backends.fp32_precision``) reads as that one.
    """
    if not hasattr(torch._C, "_get_fp32_precision_getter"):  # since torch 2.9
        return []
    return [(b.matmul, b.matmul.fp32_precision) for b in (torch.backends.cuda, torch.backends.mkldnn)]


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or its float32 copy where it is half or bfloat16 (a model cast by ``.half()``)."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is tracing this call."""
    return _is_compiling is not None and bool(_is_compiling())


def in_dynamo() -> bool:
    """Whether ``torch.compile``, or ``torch.export`` in its strict way, is reading this call's Python."""
    asked = getattr(getattr(torch, "compiler", None), "is_dynamo_compiling", None)  # since torch 2.1
    return asked is not None and bool(asked())


def eager_before_2_4(method: Any) -> Any:
    """A decorator: on torch 2.0 to 2.3 ``torch.compile`` leaves the method as it is and compiles what is around it.

    Their partitioners would compute the dropout's mask again in the backward pass, from a counter that has moved on.
    """
    if not hasattr(torch, "compile") or hasattr(torch.library, "custom_op"):
        return method
    from torch._dynamo import disable

    return disable(method)


def tracing() -> bool:
    """Whether what is computed now is being written down for use without this package, by ``torch.export``,
    ``torch.onnx.export`` or ``torch.jit.trace``: then only torch's own operators are used."""
    if not compiling():
        return bool(torch.jit.is_tracing()) if hasattr(torch.jit, "is_tracing") else bool(torch._C._get_tracing_state())
    exporting = getattr(torch.compiler, "is_exporting", None)  # since torch 2.7
    return exporting is not None and bool(exporting())


def without_modes() -> ContextManager[Any]:
    """A context in which ``torch.export``, if it is at work, does not see what is computed: tensors have values."""
    if not compiling():
        return nullcontext()
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


def in_func_transform() -> bool:
    """Whether a transform of ``torch.func`` (``grad``, ``vmap``, ``jvp``) is at work."""
    if compiling():
        return False
    interpreter = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)  # since torch 2.0
    return interpreter is not None and interpreter() is not None


def batched_by_vmap(tensor: Tensor) -> bool:
    """Whether ``tensor`` is one of ``torch.vmap``'s, or of a batch of gradients, which stands for many."""
    functorch = getattr(torch._C, "_functorch", None)  # since torch 2.0
    if functorch is None or compiling():
        return False
    return any(
        getattr(functorch, name)(tensor)
        for name in ("is_batchedtensor", "is_legacy_batchedtensor")
        if hasattr(functorch, name)
    )


def on_the_host(tensor: Tensor) -> bool:
    """Whether Python may look at the values of ``tensor`` now at no cost: on a CPU, and not while anything traces."""
    return tensor.device.type == "cpu" and not compiling() and not tracing() and not is_fake(tensor)


def is_fake(tensor: Tensor) -> bool:
    """Whether ``tensor`` has a shape only: one of ``FakeTensorMode``, or on the meta device."""
    if tensor.device.type == "meta":
        return True
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    return fake is not None and isinstance(tensor, fake.FakeTensor)


def in_backward() -> bool:
    """Whether autograd is running a backward pass on this thread, as when gradient checkpointing computes again."""
    task = getattr(torch._C, "_current_graph_task_id", None)  # since torch 2.0
    if task is not None:
        return bool(task() != -1)
    frame = sys._getframe(1)
    while frame is not None:  # an older torch: is a Python autograd function's backward pass below us?
        if frame.f_code.co_name == "apply" and frame.f_code.co_filename.endswith("function.py"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def keeps_graph() -> bool:
    """Whether the backward pass that runs on this thread leaves its graph for another one, by ``retain_graph=True``;
    where torch cannot say, whether it may."""
    known = getattr(getattr(torch._C, "_autograd", None), "_get_current_graph_task_keep_graph", None)  # since torch 2.5
    if known is not None:
        return bool(known())
    return hasattr(torch.autograd, "graph")  # before torch 1.10 checkpointing could not go back twice


def version_of(tensor: Tensor) -> Optional[int]:
    """How often a tensor was changed in place; None of one that does not count, as in inference mode."""
    try:
        return int(tensor._version)
    except RuntimeError:
        return None


def in_process_group() -> bool:
    """Whether this process is one of a group that torch.distributed has set up."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def running_ddp() -> Optional[Any]:
    """The DistributedDataParallel in whose forward pass this is called; None outside of one."""
    if not in_process_group():
        return None
    from torch.nn.parallel import DistributedDataParallel

    if hasattr(DistributedDataParallel, "_active_ddp_module"):  # since torch 1.10
        return DistributedDataParallel._active_ddp_module
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), DistributedDataParallel):
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    return None
