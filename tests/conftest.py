"""What several rooms' tests use: small priors, and where the real data lies."""

import importlib
import importlib.util
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from vqct_plugin.prior import CodebookPrior

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


def load_tool(name):
    """The module ``tools/NAME.py``, which is not in the package; skips the tests where it is not beside them."""
    file = ROOT / "tools" / f"{name}.py"
    if not file.is_file():
        pytest.skip("tools/ is not beside the tests", allow_module_level=True)
    spec = importlib.util.spec_from_file_location(f"tools_{name}", file)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that lies beside the project."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip("the folder of real data, ../shared/data, is not beside the project")
    return data


def make_prior(sizes=(30, 50), dim=12, n_edges=120, seed=0, parts=None) -> CodebookPrior:
    """A prior of made-up words: random vectors, edges between the parts, some words left without an edge."""
    rng = np.random.RandomState(seed)
    parts = parts or ("adjective", "noun", "verb")[: len(sizes)]
    pos = np.repeat(np.arange(len(sizes)), sizes)
    n = len(pos)
    # the first few words of each part have the same spelling: orange the color, orange the fruit
    place = np.arange(n) - np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    words = [f"both{i}" if i < 5 else f"{parts[p]}{i}" for i, p in zip(place, pos)]
    ends = rng.randint(0, max(n - 4, 1), size=(2, 4 * n_edges)) if len(sizes) > 1 else np.zeros((2, 0), dtype=int)
    ends = ends[:, pos[ends[0]] != pos[ends[1]]][:, :n_edges]
    return CodebookPrior(
        words=words,
        part_of_speech=pos,
        count=rng.randint(0, 1000, size=n),
        vectors=rng.randn(n, dim).astype(np.float32),
        edges=ends,
        edge_count=rng.randint(1, 30, size=ends.shape[1]),
        parts=parts,
        provenance={"language_model": f"made up from seed {seed}"},
    )


@pytest.fixture
def prior() -> CodebookPrior:
    return make_prior()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in of the Hugging Face hub on loopback, with an empty cache in ``tmp_path / "cache"``."""
    library = pytest.importorskip("huggingface_hub", "1.0")
    from tests.hub_stand_in import Hub

    hub, constants = Hub(), importlib.import_module("huggingface_hub.constants")
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,  # the tests' own environment sets it
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_XET": True,  # it speaks to servers of its own
        "AGENT_HARNESSES_PATH": str(tmp_path / "harnesses"),
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # between two tries
    library.close_session()  # of a client that another test's settings made
    yield hub
    library.close_session()
    hub.close()


def heed_interrupts():
    """For Popen's ``preexec_fn``: a job in a shell's background hands it on to its children that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def assert_close(ours, theirs, rtol=1e-5, atol=1e-6):
    """``torch.testing.assert_close``, which torch 1.7 does not have."""
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=rtol, atol=atol)
