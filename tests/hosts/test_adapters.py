"""What holds for every quantizer that a host may be given: all adapters, the plain one, with a remap, and Gumbel's."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, make_prior
from vqct_plugin.gumbel import GumbelTransferQuantizer
from vqct_plugin.hosts.quantizer_config import ADAPTERS
from vqct_plugin.quantizer import CodebookTransferQuantizer


def class_of(target):
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


CLASSES = [CodebookTransferQuantizer, GumbelTransferQuantizer, *map(class_of, sorted(set(ADAPTERS.values())))]


def tensors_in(output):
    """All tensors of a nested output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    output = tuple(output.values()) if isinstance(output, dict) else output
    return [t for one in output for t in tensors_in(one)] if isinstance(output, tuple) else []


@pytest.mark.skipif(not hasattr(torch.nn.Module, "to_empty"), reason="to_empty came with torch 1.8")
@pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch.device as a context came with torch 2")
@pytest.mark.parametrize("remap", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_built_and_run_on_the_meta_device_nothing_constant_is_lost(cls, remap, tmp_path):
    options = {"prior": make_prior(), "parts_of_speech": "joint", "dropout": 0.0}
    if remap:
        if cls is GumbelTransferQuantizer:
            pytest.skip("it has no remap")
        np.save(tmp_path / "used.npy", np.arange(3, 40))
        options.update(remap=str(tmp_path / "used.npy"), unknown_index=0)
    expected = cls(40, 16, **options)
    with torch.device("meta"):
        built = cls(40, 16, **options)
    z = torch.randn(2, 16, 4, 4)
    built(z.to("meta"))  # shapes
    built = built.to_empty(device="cpu")
    built.load_state_dict(expected.state_dict())
    outputs = []
    for quantizer in (expected, built):
        torch.manual_seed(1)  # Gumbel's draws
        outputs.append(tensors_in(quantizer(z)))
    assert outputs[0]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*outputs))


IN_AN_OLDER_TORCH = """
import torch
import torch._dynamo

del torch.library.custom_op  # so torch 2.0 to 2.3 look
depth = [0]


def disable(method):
    def eager(*args, **options):
        depth[0] += 1
        try:
            return method(*args, **options)
        finally:
            depth[0] -= 1

    return eager


torch._dynamo.disable = disable

from tests.hosts.test_adapters import CLASSES, make_prior
from vqct_plugin.dropout import SharedDropout

seen = []
forward = SharedDropout.forward
SharedDropout.forward = lambda self, *args: (seen.append(("mask", depth[0] > 0)), forward(self, *args))[1]
for cls in CLASSES:
    quantizer = cls(40, 16, prior=make_prior(), transfer="graph")
    check = quantizer._check_input
    quantizer._check_input = lambda z, check=check: (seen.append(("quantizing", depth[0] > 0)), check(z))[1]
    seen.clear()
    quantizer(torch.randn(2, 16, 4, 4))
    print(cls.__name__, *[f"{what}:{eager}" for what, eager in seen])
"""


@pytest.mark.skipif(
    not hasattr(getattr(torch, "library", None), "custom_op"), reason="an older torch is what this stands for"
)
def test_before_torch_2_4_every_quantizer_stays_eager_inside_a_compiled_model():
    """Its masks and the search for codes run in a method that ``torch._dynamo.disable`` keeps out of the graph."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", IN_AN_OLDER_TORCH]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "mask:" in line]
    assert lines == [f"{cls.__name__} quantizing:True mask:True" for cls in CLASSES]
