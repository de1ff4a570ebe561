"""Everything here needs a device, and is skipped where there is none.

    python -m pytest tests/gpu

takes about ten minutes on one card and no network. To try the tests themselves where there is none:

    VQCT_TEST_DEVICE=cpu python -m pytest tests/gpu

which takes small models, and leaves out what only CUDA has.
"""

import os

# cuBLAS asks for it in deterministic mode, and reads it when the first product is computed.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from pathlib import Path

import pytest
import torch

from tests import device_checks


def found_device():
    """The device to test on: the one named, else the first there is; None without."""
    if os.environ.get("VQCT_TEST_DEVICE"):
        return torch.device(os.environ["VQCT_TEST_DEVICE"])
    for name in ("cuda", "xpu", "mps"):
        there = getattr(torch, name, None) or getattr(torch.backends, name, None)
        if there is not None and getattr(there, "is_available", lambda: False)():
            return torch.device(name)
    return None


DEVICE = found_device()
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE not in Path(str(item.fspath)).parents:
            continue
        if DEVICE is None:
            item.add_marker(pytest.mark.skip(reason="no GPU"))
        elif DEVICE.type != "cuda" and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason=f"only CUDA has it, and this is {DEVICE.type}"))


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def rehearsal():
    """Whether this is a try on a CPU, with small models."""
    return DEVICE.type == "cpu"


@pytest.fixture
def make(rehearsal):
    """A function from a device, and options, to a quantizer and the shape of its maps."""
    return device_checks.small if rehearsal else device_checks.usual
