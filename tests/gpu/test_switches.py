"""What a GPU's user turns on: compilation, averages, checkpointing, TF32, half precision, deterministic algorithms."""

import pytest
import torch

from tests import device_checks as checks
from tests.test_fake_devices import in_a_process_of_its_own


def test_compiled_gradients_are_eagers(device, make):
    checks.compiled_gradients_are_eagers(device, make, "inductor")


def test_entries_and_frozen_evaluation_compile_in_one_piece(device, make):
    checks.entries_compile_in_one_piece(device, make, "inductor")


def test_averaging_buffers_keeps_the_graph(device, make):
    checks.averaging_keeps_the_graph(device, make)


def test_lightnings_average_keeps_the_graph(device, make, tmp_path):
    lightning = pytest.importorskip("tests.lightning_average", reason="Lightning 2.6 is not installed")
    lightning.lightnings_average_keeps_the_graph(device, make, tmp_path)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing(device, make, use_reentrant):
    checks.checkpointing_changes_nothing(device, make, use_reentrant)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_two_checkpointed_forwards_are_right_or_refused(device, make, use_reentrant):
    checks.two_checkpointed_forwards_are_right_or_refused(device, make, use_reentrant)


@checks.needs_the_new_switch
@pytest.mark.parametrize("mix", checks.TF32_MIXES)
def test_tf32_changes_no_choice(device, rehearsal, mix):
    in_a_process_of_its_own("tf32_changes_no_choice", str(device), "small" if rehearsal else "usual", mix)


@pytest.mark.parametrize("times", [0, 1, 1000])
def test_lookup_is_right_far_from_the_origin(device, times):
    if device.type == "mps":
        pytest.skip("the oracle is in float64, and so are the vectors made for it")
    checks.lookup_is_right_far_from_the_origin(device, times)


def test_a_wrong_index_is_told_of(device):
    checks.a_wrong_index_is_told_of(device)


def test_equal_codes_come_lowest_first(device):
    checks.equal_codes_come_lowest_first(device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trains_under_autocast(device, make, dtype):
    checks.trains_under_autocast(device, make, dtype)


def test_two_runs_are_one(device, make):
    checks.two_runs_are_one(device, make)


def test_the_gpu_agrees_with_the_cpu(device, make):
    """One quantizer, two devices: the same loss and gradients, dropout's mask included."""
    quantizer, shape = make(torch.device("cpu"))
    there = make(device)[0]
    there.load_state_dict(quantizer.state_dict())
    for training in (False, True):
        quantizer.train(training), there.train(training)
        z = torch.randn(shape)
        results = []
        for module, leaf in ((quantizer, z.clone()), (there, z.to(device))):
            module.zero_grad()
            leaf.requires_grad_()
            loss = checks.loss_of(module, leaf)
            loss.backward()
            results.append([loss.detach(), *checks.gradients(module, leaf)])
        # where rounding makes another choice of code, a few of many vectors differ
        checks.assert_alike(results[1], results[0], 1e-2)


def test_averages_are_compiled(device):
    checks.compiled_gradients_are_eagers(device, checks.averages, "inductor")


def test_averages_are_checkpointed(device):
    checks.checkpointing_changes_nothing(device, checks.averages, False)


def test_averages_train_under_autocast(device):
    checks.trains_under_autocast(device, checks.averages, torch.bfloat16)


def test_two_runs_of_averages_are_one(device):
    checks.two_runs_are_one(device, checks.averages)
