"""An accelerator in Python: a device of its own, whose tensors are the CPU's in a wrapper.

    python -m tests.emulated_device

runs the checks below on it and prints, as JSON, what each came to. It is a process of its own because a device, once
named, is there for every test that follows.

What it shows: which operations reach a device that is not the CPU, with values, gradients and autograd as they are;
so the way without waiting is taken, in values that can be compared. ``no_float64`` raises where MPS does,
``no_waiting`` where ``torch.cuda.set_sync_debug_mode("error")`` does.

What it does not: kernels (every product is the CPU's; no TF32, no atomic additions, no missing kernel), streams,
events and CUDA graphs, autocast's own lists, and the memory of a device.
"""

import contextlib
import copy
import json
import sys
import traceback
import types

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.device_checks import (
    a_wrong_index_is_told_of,
    assert_alike,
    averages,
    equal_codes_come_lowest_first,
    gradients,
    lookup_is_right_far_from_the_origin,
    loss_of,
    small,
    told,
)
from vqct_plugin.compat.taming_stage_2 import adapt_taming_stage_2
from vqct_plugin.lookup import find_nearest

NAME = "toy"
#: what reads a value on the host, and so waits for a device
WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select", "aten.is_nonzero")

_forbidden = set()


class OnDevice(torch.Tensor):
    """A tensor of the device; ``held`` is the CPU's."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip

    def __init__(self, held):
        self.held = held

    def __repr__(self, **options):
        return f"OnDevice({self.held!r})"

    def __deepcopy__(self, memo):
        made = OnDevice(self.held.clone())
        return memo.setdefault(id(self), made.requires_grad_(self.requires_grad))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Emulated(TorchDispatchMode):
    """Sees operations that take no tensor, such as ``torch.zeros(3, device=...)``."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    seen = []

    def unwrapped(x):
        if isinstance(x, OnDevice):
            seen.append(x)
            return x.held
        return x

    args, kwargs = tree_map(unwrapped, args), tree_map(unwrapped, kwargs)
    here, target = bool(seen), kwargs.get("device")
    if target is not None:
        here = torch.device(target).type == NAME
        kwargs["device"] = torch.device("cpu") if here else target
    if seen and "waiting" in _forbidden and _waits(func, kwargs, here):
        raise RuntimeError(f"{func} makes the host wait for the device")
    out = func(*args, **kwargs)
    if not here:
        return out

    def wrapped(x):
        if not isinstance(x, torch.Tensor):
            return x
        if x.dtype == torch.float64 and "float64" in _forbidden:
            raise TypeError(f"{func}: this device has no float64")
        for one in seen:
            if one.held is x:  # an operation in place, or one that gives back what it was given
                return one
        return OnDevice(x)

    return tree_map(wrapped, out)


def _waits(func, kwargs, here):
    copied_off = not here and "_to_copy" in str(func) and not kwargs.get("non_blocking")
    return copied_off or str(func).startswith(WAITING)


@contextlib.contextmanager
def without(*what):
    """Raise at ``"float64"`` on the device, or at what is ``"waiting"`` for it."""
    _forbidden.update(what)
    try:
        yield
    finally:
        _forbidden.clear()


class Event:
    """What was done before it was recorded is done: nothing here goes on in the background."""

    def record(self):
        pass

    def query(self):
        return True


def set_up():
    """Name the device; from then on it is this process's accelerator."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).Event = Event  # as XPU, NPU and MPS have one
    return torch.device(NAME, 0)


def step(quantizer, z):
    """A training step; what comes of it, on the CPU."""
    z = z.clone().requires_grad_()
    quantizer.zero_grad()
    loss = loss_of(quantizer, z)
    loss.backward()
    return [held(loss), *map(held, gradients(quantizer, z))]


def held(tensor):
    return tensor.detach().held if isinstance(tensor.detach(), OnDevice) else tensor.detach()


def a_training_step_is_the_cpus(device):
    quantizer, shape = small("cpu")
    there = copy.deepcopy(quantizer).to(device)
    for _ in range(2):
        z = torch.randn(shape)
        assert_alike(step(there, z.to(device)), step(quantizer, z), 1e-5)


def frozen_evaluation_is_the_cpus(device):
    quantizer, (b, c, h, w) = small("cpu")
    there = copy.deepcopy(quantizer).to(device).eval()
    z = torch.randn(b, c, h, w)
    with torch.no_grad():
        expected, _, (_, _, indices) = quantizer.eval()(z)
        for frozen in (False, True):
            if frozen:
                there.freeze_codebook()
            z_q, _, (_, _, found) = there(z.to(device))
            assert torch.equal(held(found), indices)
            assert_alike([held(z_q)], [expected], 1e-6, "z_q")
            assert torch.equal(held(there.get_codebook_entry(found, (b, h, w, c))), held(z_q))


def nothing_is_in_float64(device):
    """As on MPS: the module arrives, trains, evaluates, is frozen and decodes."""
    with without("float64"):
        quantizer, shape = small(device)
        step(quantizer, torch.randn(shape).to(device))
        frozen_evaluation_is_the_cpus(device)


def a_lookup_does_not_wait(device):
    z, codes = torch.randn(50, 8).to(device), torch.randn(20, 8).to(device)
    with without("waiting"):
        for k in (1, 3):
            find_nearest(z, codes, k)


def a_training_step_does_not_wait(device):
    quantizer, shape = small(device)
    z = torch.randn(shape).to(device)
    for _ in range(2):
        step(quantizer, z)
    with without("waiting"):
        step(quantizer, z)


def averages_are_the_cpus(device):
    """Steps on both devices leave the same counts and codes, and ask for no float64."""
    quantizer, shape = averages("cpu")
    there = copy.deepcopy(quantizer).to(device)
    with without("float64"):
        for _ in range(3):
            z = torch.randn(shape)
            assert_alike(step(there, z.to(device)), step(quantizer, z), 1e-5)
        assert_alike([held(x) for x in there.buffers()], [*quantizer.buffers()], 1e-5, "buffer")


def averages_do_not_wait(device):
    quantizer, shape = averages(device)
    z = torch.randn(shape).to(device)
    step(quantizer, z)
    with without("waiting"):
        step(quantizer, z)


def entries_do_not_wait(device):
    quantizer, (b, c, h, w) = small(device)
    quantizer.eval()
    with torch.no_grad():
        _, _, (_, _, indices) = quantizer(torch.randn(b, c, h, w).to(device))
        with without("waiting"):
            quantizer.get_codebook_entry(indices, (b, h, w, c))
            quantizer.embed_code(indices.view(b, -1))


def a_module_that_a_wrapper_moved_is_copied_once(device):
    """Parameters moved one by one, as wrappers do that shard them: what never changes follows in the first step."""
    quantizer, (b, c, h, w) = small("cpu")
    for module in quantizer.modules():
        for name, parameter in list(module._parameters.items()):
            module._parameters[name] = torch.nn.Parameter(parameter.detach().to(device))
    z = torch.randn(b, c, h, w).to(device)

    def train_and_decode():
        step(quantizer, z)
        with torch.no_grad():
            _, _, (_, _, indices) = quantizer(z)
            quantizer.get_codebook_entry(indices, (b, h, w, c))

    train_and_decode()
    copied = []
    to = torch.Tensor.to

    def counted(tensor, *args, **options):
        moved = to(tensor, *args, **options)
        if moved.device.type == NAME and tensor.device.type == "cpu":
            copied.append(tuple(tensor.shape))
        return moved

    torch.Tensor.to = counted
    try:
        train_and_decode()
    finally:
        torch.Tensor.to = to
    assert copied == []


def far_from_the_origin(device):
    lookup_is_right_far_from_the_origin(device, 1000)


def a_diverged_encoder_is_told_of(device):
    quantizer, shape = small(device)
    z = torch.full(shape, float("nan")).to(device)
    assert "NaN" in told(lambda: quantizer(z))


def changed_weights_behind_a_frozen_codebook_are_told_of(device):
    quantizer, shape = small(device)
    quantizer.eval().freeze_codebook()
    z = torch.randn(shape).to(device)
    with torch.no_grad():
        quantizer(z)
        for parameter in quantizer.parameters():
            parameter.add_(1.0)
        assert "freeze_codebook" in told(lambda: quantizer(z))


def tamings_stage_2_says_at_once_what_it_cannot_decode(device):
    """With a host of taming's names, so that taming need not be there; the quantizer alone says it a call later."""

    class Net2NetTransformer:
        sample = encode_to_c = configure_optimizers = init_cond_stage_from_ckpt = print

        def decode_to_img(self, index, zshape):
            b, c, h, w = zshape
            return self.first_stage_model.quantize.get_codebook_entry(index.reshape(-1), shape=(b, h, w, c))

    quantizer, shape = small(device)
    quantizer.eval()
    sys.modules["taming.models.cond_transformer"] = types.SimpleNamespace(Net2NetTransformer=Net2NetTransformer)
    adapt_taming_stage_2()
    model = Net2NetTransformer()
    model.first_stage_model = types.SimpleNamespace(quantize=quantizer)
    with torch.no_grad():
        _, _, (_, _, indices) = quantizer(torch.randn(shape).to(device))
        indices = indices.view(shape[0], -1)
        model.decode_to_img(indices, shape)
        wrong = indices.flip(1)  # nouns where adjectives must be
        assert "of position 0 of image 0 is code" in told(lambda: model.decode_to_img(wrong, shape), calls=1)


CHECKS = (
    a_training_step_is_the_cpus,
    frozen_evaluation_is_the_cpus,
    nothing_is_in_float64,
    a_lookup_does_not_wait,
    a_training_step_does_not_wait,
    averages_are_the_cpus,
    averages_do_not_wait,
    entries_do_not_wait,
    a_module_that_a_wrapper_moved_is_copied_once,
    equal_codes_come_lowest_first,
    far_from_the_origin,
    a_diverged_encoder_is_told_of,
    a_wrong_index_is_told_of,
    changed_weights_behind_a_frozen_codebook_are_told_of,
    tamings_stage_2_says_at_once_what_it_cannot_decode,
)


def main():
    device = set_up()
    found = {}
    for check in CHECKS:
        torch.manual_seed(0)
        try:
            with Emulated():
                check(device)
            found[check.__name__] = ""
        except Exception:
            found[check.__name__] = traceback.format_exc()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
