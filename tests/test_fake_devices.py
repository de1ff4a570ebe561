"""What a GPU's user turns on, as far as a machine without one can tell. tests/gpu has the same on a real one.

torch.compile, one checkpointed pass, averages of weights and single TF32 switches are in test_switches, and not here
again. Each test says what it does not cover. The checks themselves are in device_checks and emulated_device.
"""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch

from tests import device_checks as checks
from tests.conftest import ROOT, make_prior
from vqct_plugin import CodebookTransferQuantizer

torch2 = pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch.compile needs torch 2")
CPU = torch.device("cpu")

EMULATED = (
    "a_training_step_is_the_cpus",
    "frozen_evaluation_is_the_cpus",
    "nothing_is_in_float64",
    "a_lookup_does_not_wait",
    "a_training_step_does_not_wait",
    "averages_are_the_cpus",
    "averages_do_not_wait",
    "entries_do_not_wait",
    "a_module_that_a_wrapper_moved_is_copied_once",
    "equal_codes_come_lowest_first",
    "far_from_the_origin",
    "a_diverged_encoder_is_told_of",
    "a_wrong_index_is_told_of",
    "changed_weights_behind_a_frozen_codebook_are_told_of",
    "tamings_stage_2_says_at_once_what_it_cannot_decode",
)


@pytest.fixture(scope="session")
def emulated():
    """What each check on the emulated device came to: nothing, or a traceback."""
    backend_registration = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("a device in Python needs torch 2.9")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tests.emulated_device"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", EMULATED)
def test_on_an_emulated_accelerator(emulated, check):
    """The way that is taken off the CPU, without float64 as on MPS, and without a value read on the host.

    Does not cover: kernels, streams, events and CUDA graphs, the lists of autocast (see emulated_device).
    """
    assert set(emulated) == set(EMULATED)
    assert not emulated[check], emulated[check]


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="autocast by a device's name needs torch 1.10")
@pytest.mark.parametrize("asked", [True, False])
def test_a_device_without_autocast_is_served(asked, monkeypatch):
    """As MPS before torch 2.5; torch can be asked about it since 2.4, before that it raises.

    Does not cover another device: the CPU stands for one.
    """

    def raises(*args, **options):
        raise RuntimeError("User specified an unsupported autocast device_type 'mps'")

    monkeypatch.setattr(torch, "autocast", raises)
    if asked:
        monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: False, raising=False)
    else:
        monkeypatch.delattr(torch.amp, "is_autocast_available", raising=False)
    quantizer, shape = checks.small(CPU)
    z_q, loss, _ = quantizer(torch.randn(shape))
    (loss + z_q.sum()).backward()


def test_the_emulated_device_forbids_what_it_says(emulated):
    """The emulation itself: what it lets pass would be worth nothing if it let all pass."""
    code = """
import torch
from tests.emulated_device import Emulated, set_up, without
device = set_up()
with Emulated():
    x = torch.ones(3).to(device)
    tries = [lambda: x.double(), lambda: float(x.sum()), lambda: x.nonzero(), lambda: x.cpu(), lambda: bool(x[0] > 0)]
    for what, attempts in (("float64", tries[:1]), ("waiting", tries[1:])):
        for attempt in attempts:
            attempt()
            with without(what):
                try:
                    attempt()
                except (TypeError, RuntimeError) as error:
                    print("refused")
    with without("float64", "waiting"):
        (x + torch.ones(3, device=device)).to("cpu", non_blocking=True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 5


@torch2
@pytest.mark.parametrize("make", [checks.small, checks.averages])
@pytest.mark.parametrize("training", [True, False])
def test_shapes_on_the_meta_device(training, make):
    """Where there are shapes and no values: what ``torch.device("meta")`` and deferred initialization use.

    Does not cover any value.
    """
    quantizer, (b, c, h, w) = make(CPU)
    quantizer = quantizer.to("meta").train(training)
    z_q, loss, (_, _, indices) = quantizer(torch.empty(b, c, h, w, device="meta"))
    assert (z_q.shape, loss.shape, indices.shape) == ((b, c, h, w), (), (b * quantizer.tokens_per_position * h * w,))
    assert {z_q.device.type, loss.device.type, indices.device.type} == {"meta"}
    assert quantizer.eval().get_codebook_entry(indices, (b, h, w, c)).shape == (b, c, h, w)


@torch2
@pytest.mark.parametrize("make", [checks.small, checks.averages])
@pytest.mark.parametrize("training", [True, False])
def test_shapes_under_fake_tensors(training, make):
    """What torch.export and the compilers trace with.

    Does not cover any value, nor a fake tensor of a GPU, to which torch moves no module.
    """
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    quantizer, (b, c, h, w) = make(CPU)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        quantizer = copy.deepcopy(quantizer).train(training)
    with mode:
        z_q, loss, (_, _, indices) = quantizer(torch.empty(b, c, h, w))
        assert (z_q.shape, loss.shape, indices.shape) == (
            (b, c, h, w),
            (),
            (b * quantizer.tokens_per_position * h * w,),
        )
        assert quantizer.eval().get_codebook_entry(indices, (b, h, w, c)).shape == (b, c, h, w)


@torch2
@pytest.mark.parametrize("where", ["built there", "brought there", "the meta device"])
def test_training_on_shapes_counts_no_mask_and_leaves_the_quantizer_as_it_was(where):
    """Forward and backward; afterwards the quantizer trains on values as if nothing had been.

    Does not cover any value on the way.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    quantizer, shape = checks.small(CPU)
    untouched, z = copy.deepcopy(quantizer), torch.randn(shape)
    if where == "the meta device":
        quantizer.to("meta")
        checks.loss_of(quantizer, z.to("meta").requires_grad_()).backward()
        quantizer.to_empty(device="cpu").load_state_dict(untouched.state_dict())
    else:
        with FakeTensorMode(allow_non_fake_inputs=True):
            used = (
                CodebookTransferQuantizer(60, 24, prior=make_prior(), transfer="graph")
                if where == "built there"
                else quantizer
            )
            for _ in range(2):
                checks.loss_of(used, torch.empty(shape, requires_grad=True)).backward()
    quantizer.zero_grad(set_to_none=True)
    assert torch.equal(checks.loss_of(quantizer, z), checks.loss_of(untouched, z))


def test_lightnings_average_keeps_the_graph(tmp_path):
    """Lightning's callback, which also swaps buffers for validation and writes them to checkpoints.

    Does not cover a GPU's Trainer; tests/gpu has it.
    """
    weights = pytest.importorskip("tests.lightning_average", reason="Lightning 2.6 is not installed")
    weights.lightnings_average_keeps_the_graph(CPU, checks.small, tmp_path)


@torch2
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_two_checkpointed_forwards_are_right_or_refused(use_reentrant):
    """Does not cover backward passes in several threads, one for each device."""
    checks.two_checkpointed_forwards_are_right_or_refused(CPU, checks.small, use_reentrant)


@checks.needs_the_new_switch
@pytest.mark.parametrize("mix", ["new, convolutions", "new, then old", "all of them"])
def test_every_way_to_ask_for_tf32_is_served(mix):
    """That no switch raises, and each stays as it was, in the mixes that test_switches cannot take back.

    Does not cover TF32 itself, which a CPU does not have: its rounding, and whether it is off where it has to be.
    """
    in_a_process_of_its_own("tf32_changes_no_choice", "cpu", "small", mix)


def in_a_process_of_its_own(check, device, make, *more):
    """Run a check of device_checks in a process of its own, for what a process cannot take back."""
    code = (
        "import sys, torch; from tests import device_checks as c; torch.manual_seed(0); "
        "getattr(c, sys.argv[1])(torch.device(sys.argv[2]), getattr(c, sys.argv[3]), *sys.argv[4:])"
    )
    command = [sys.executable, "-c", code, check, device, make, *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_wrong_index_is_told_of():
    """The CPU's way; the other is in the emulated device's check of this name."""
    checks.a_wrong_index_is_told_of(CPU)


@pytest.mark.parametrize("times", [1, 1000])
def test_lookup_is_right_far_from_the_origin(times):
    """The CPU's way; the other is in the emulated device's ``far_from_the_origin``. Does not cover a GPU's products."""
    checks.lookup_is_right_far_from_the_origin(CPU, times, number=512, codes=256)


@pytest.mark.skipif(
    not hasattr(getattr(torch, "amp", None), "GradScaler"), reason="torch.amp.GradScaler needs torch 2.3"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trains_under_autocast(dtype):
    """Does not cover a GPU's half precision, whose products overflow where a CPU's may not."""
    checks.trains_under_autocast(CPU, checks.small, dtype)


@torch2
def test_two_runs_are_one():
    """Does not cover a GPU's atomic additions, which are what makes runs differ."""
    checks.two_runs_are_one(CPU, checks.small)
