"""``CodebookPrior.load`` raises ``PriorError`` and nothing else, for any path and any file."""

import json
import os
import time

import numpy as np
import pytest
from safetensors.numpy import save as safetensors_bytes

from tests.conftest import make_prior
from vqct_plugin.prior import CodebookPrior, PriorError


class Path:
    """A path that fails to say which one it is."""

    def __fspath__(self):
        raise RuntimeError("no path")


os.PathLike.register(Path)


def file_with(folder, **changes):
    """A prior's file whose header has these changes."""
    header = {**make_prior().header(), **changes}
    path = folder / "p.safetensors"
    path.write_bytes(safetensors_bytes(make_prior().to_arrays(), metadata={"vqct_prior": json.dumps(header)}))
    return path


@pytest.mark.parametrize(
    "path",
    [
        Path(),
        b"bytes",
        3,
        None,
        "",
        "a" * 5000,
        "/".join(["a" * 200] * 30),
        "\udcff\ud800",
        "a\0b",
        "a\x1b[2Jb",
        "/",
        "/dev/zero",
        "/proc/self/mem",
    ],
    ids=lambda path: repr(path)[:12],
)
def test_any_path(path):
    with pytest.raises(PriorError) as caught:
        CodebookPrior.load(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    with pytest.raises(PriorError, match="is not a regular file"):
        CodebookPrior.load(tmp_path / "pipe")


@pytest.mark.parametrize(
    "provenance",
    [
        {f"key {i}": i for i in range(1_000_000)},
        {"captions": [{"file": i} for i in range(300_000)]},
    ],
    ids=["flat", "nested"],
)
def test_a_million_provenance_keys_are_refused_in_under_a_second(tmp_path, provenance):
    path = file_with(tmp_path, provenance=provenance)
    begun = time.process_time()
    with pytest.raises(PriorError, match="provenance holds more than 100,000 values"):
        CodebookPrior.load(path)
    assert time.process_time() - begun < 1


def test_a_deep_provenance_is_refused(tmp_path):
    path = file_with(tmp_path)
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    text = json.dumps({**make_prior().header(), "provenance": 7}).replace('"provenance": 7', f'"provenance": {deep}')
    path.write_bytes(safetensors_bytes(make_prior().to_arrays(), metadata={"vqct_prior": text}))
    with pytest.raises(PriorError):
        CodebookPrior.load(path)


def test_what_no_check_foresaw_is_a_prior_error_too(tmp_path, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError("Unable to allocate 80 GiB")

    path = file_with(tmp_path)
    monkeypatch.setattr(np, "lexsort", no_memory)
    with pytest.raises(PriorError, match=r"p\.safetensors holds what makes no prior: MemoryError: Unable to allocate"):
        CodebookPrior.load(path)


def test_the_name_of_a_language_model_cannot_write_to_the_terminal(tmp_path):
    prior = CodebookPrior.load(file_with(tmp_path, provenance={"language_model": "bert\x1b[2J\n\u202e"}))
    assert "bert\\x1b[2J\\n\\u202e" in prior.describe()
    with pytest.raises(PriorError) as caught:
        CodebookPrior.load(file_with(tmp_path, words=["\x1b[2J"] * 10**5))
    assert "\x1b" not in str(caught.value)
