"""Checkpoints of stock VQGANs and of ours load through ``ckpt_path``, and none of their code is run."""

import builtins
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from vqct_plugin.compat.checkpoints import CheckpointError, read_state_dict, read_weights

OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (1, 13)


def save(checkpoint, path, stream=False):
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not stream)
    return path


def tensors():
    whole = torch.arange(24, dtype=torch.float32)
    return OrderedDict(
        float=torch.randn(3, 4), double=torch.randn(2).double(), half=torch.randn(5).half(),
        bfloat=torch.randn(4).bfloat16(), long=torch.arange(5), byte=torch.arange(5, dtype=torch.uint8),
        bool=torch.tensor([True, False]), scalar=torch.tensor(2.5), empty=torch.zeros(0, 3),
        complex=torch.randn(2, dtype=torch.complex64), view=whole[4:16].view(3, 4), transposed=whole.view(4, 6).t(),
        parameter=torch.nn.Parameter(torch.randn(2)),
    )  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["zip", "stream"])
def test_every_tensor_comes_back_as_torch_load_gives_it(tmp_path, stream):
    path = save({"state_dict": tensors(), "epoch": 3}, tmp_path / "a.ckpt", stream)
    expected = torch.load(path) if OLD_TORCH else torch.load(path, weights_only=False)
    read = read_state_dict(path)
    assert list(read) == list(expected["state_dict"])
    for key, tensor in expected["state_dict"].items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor), key


@pytest.mark.skipif(not hasattr(torch, "uint16"), reason="this torch has no uint16 and float8")
def test_dtypes_without_a_storage_of_their_own(tmp_path):
    state = {"u": torch.tensor([1, 65535], dtype=torch.uint16), "f": torch.randn(4).to(torch.float8_e4m3fn)}
    read = read_state_dict(save({"state_dict": state}, tmp_path / "a.ckpt"))
    assert read["u"].dtype == torch.uint16
    assert read["u"].tolist() == [1, 65535]
    assert torch.equal(read["f"].float(), state["f"].float())


class Hostile:
    """What a pickle can do to whoever loads it."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("stream", [False, True], ids=["zip", "stream"])
def test_no_code_of_the_pickle_runs(tmp_path, stream):
    touched = [tmp_path / f"touched{i}" for i in range(4)]
    checkpoint = {
        "a": Hostile(os.mkdir, str(touched[0])),
        "b": Hostile(builtins.eval, f"__import__('os').mkdir({str(touched[1])!r})"),
        "callbacks": {os.path.join: [Hostile(os.system, f"mkdir {touched[2]}")]},
        "state_dict": OrderedDict(w=torch.ones(2)),
        "z": Hostile(getattr, Hostile(__import__, "os"), "mkdir"),
        "numpy": np.float64(2.5),
    }
    path = save(checkpoint, tmp_path / "hostile.ckpt", stream)
    assert torch.equal(read_state_dict(path)["w"], torch.ones(2))
    assert not any(there.exists() for there in touched)
    if OLD_TORCH:
        torch.load(path)
    else:
        torch.load(path, weights_only=False)
    assert all(there.exists() for there in touched[:3])  # the pickle does bite


def test_a_hostile_value_in_the_state_dict_is_refused(tmp_path):
    path = save({"state_dict": {"w": Hostile(os.mkdir, str(tmp_path / "touched"))}}, tmp_path / "hostile.ckpt")
    with pytest.raises(CheckpointError, match="expected a tensor"):
        read_state_dict(path)
    assert not (tmp_path / "touched").exists()


def test_a_pickle_cannot_change_the_reader(tmp_path):
    # BUILD sets attributes of what lies on the stack; here on the function that rebuilds tensors, and on OrderedDict
    def build(module, name):
        return f"c{module}\n{name}\n".encode() + b"(N}X\x0c\x00\x00\x00__defaults__)tb."

    for name in (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), ("os", "system")):
        with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
            archive.writestr("archive/data.pkl", build(*name))
        with pytest.raises(CheckpointError):
            read_state_dict(tmp_path / "a.ckpt")
    test_every_tensor_comes_back_as_torch_load_gives_it(tmp_path, False)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nowhere\.ckpt"):
        read_state_dict(tmp_path / "nowhere.ckpt")
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        read_state_dict(tmp_path)
    for name, content in (
        ("empty", b""), ("text", b"hello, I am no checkpoint"), ("pickle", pickle.dumps({"state_dict": {}})),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is not a checkpoint that torch\.save wrote"):
            read_state_dict(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a/readme", b"")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        read_state_dict(tmp_path / "zip")
    with pytest.raises(CheckpointError, match="has no state_dict, it holds the keys 'w'"):
        read_state_dict(save({"w": torch.ones(1)}, tmp_path / "bare"))
    with pytest.raises(CheckpointError, match="has no state_dict, it holds a list"):
        read_state_dict(save([torch.ones(1)], tmp_path / "list"))


@pytest.mark.parametrize("stream", [False, True], ids=["zip", "stream"])
def test_damage_is_noticed_and_never_crashes(tmp_path, stream):
    good = save({"state_dict": {"w": torch.randn(50)}}, tmp_path / "good", stream).read_bytes()
    bad, refused = tmp_path / "bad", 0
    rng = np.random.RandomState(0)
    for trial in range(300):
        data = bytearray(good)
        if trial % 3 == 0:
            data = data[: rng.randint(len(data))]
        else:
            data[rng.randint(len(data))] ^= 1 << rng.randint(8)
        bad.write_bytes(bytes(data))
        try:
            read_state_dict(bad)
        except CheckpointError:
            refused += 1
    assert refused >= 100  # every truncation, at least


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    saved = io.BytesIO()
    torch.save({"state_dict": {"w": torch.randn(8)}}, saved)
    source = zipfile.ZipFile(saved)
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            archive.writestr(name, data[:16] if "/data/" in name else data)
    with pytest.raises(CheckpointError, match="cut short"):
        read_state_dict(tmp_path / "a.ckpt")
    stream = save({"state_dict": {"w": torch.randn(8)}}, tmp_path / "s.ckpt", True).read_bytes()
    (tmp_path / "s.ckpt").write_bytes(stream[:-40] + struct.pack("<q", -1) + stream[-32:])
    with pytest.raises(CheckpointError):
        read_state_dict(tmp_path / "s.ckpt")


@pytest.mark.parametrize("kind", ["safetensors", "bin", "ckpt"])
def test_only_what_is_asked_for_is_read(kind, tmp_path, monkeypatch):
    weights = {"a.weight": torch.ones(3), "b.weight": torch.zeros(2)}
    file = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        arrays = {name: tensor.numpy() for name, tensor in weights.items()}
        pytest.importorskip("safetensors.numpy").save_file(arrays, file)
    else:
        torch.save(weights if kind == "bin" else {"state_dict": weights}, file)
        from vqct_plugin.compat import checkpoints

        whole, read = checkpoints.materialize, []
        monkeypatch.setattr(checkpoints, "materialize", lambda *its: read.append(its) or whole(*its))
    for function in (read_weights, *[read_state_dict] * (kind != "bin")):
        found = function(file, ("b.",))
        assert list(found) == ["b.weight"]
        assert torch.equal(found["b.weight"], weights["b.weight"])
        assert function(file, ("quantize.",)) == {}
    if kind != "safetensors":
        assert len(read) == 1 + (kind == "ckpt")
