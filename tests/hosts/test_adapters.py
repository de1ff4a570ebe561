"""What holds for every quantizer that a host may be given: all adapters, the plain one, with a remap, and Gumbel's."""

import importlib

import numpy as np
import pytest
import torch

from tests.conftest import make_prior
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
