"""Pickles that do harm by their data alone are read in bounded memory and time, and refused in one sentence."""

import io
import pickle
import resource
import struct
import time

import pytest
import torch

from tests.building.test_imported import authors, pickled
from vqct_plugin.building import imported, untrusted
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.imported import import_prior

START, STOP, MARK = b"\x80\x04", b".", b"("
LARGEST = b"r\xff\xff\xff\x0f"  # LONG_BINPUT to place 0x0fffffff: a memo of 4 GB


def rebuilt(size, stride, numel=8):
    """A tensor of these sizes and strides over ``numel`` numbers, as a pickle has it."""

    class Tensor:
        def __reduce__(self):
            storage = torch.zeros(numel).storage()  # what torch itself pickles
            return torch._utils._rebuild_tensor_v2, (storage, 0, size, stride, False, {})

    return Tensor()


def with_vector(vector):
    content = authors()
    content["adj_code_book_vec"]["red"] = vector
    return pickle.dumps(content)


def nested_tuples(depth):
    return START + b")" + b"\x85" * depth


def memo_bomb(levels=40):
    """Lists of two times the list before: hashing or printing the last takes 2**levels steps."""
    return START + b")" + b"".join(b"q\x01h\x01\x86" for _ in range(levels))


def colliding(numbers=60_000):
    """A dictionary of integers with one hash: each is compared with all before."""
    step = (1 << 61) - 1
    items = b"".join(b"\x8a" + bytes([len(d)]) + d + b"N" for d in (signed(i * step) for i in range(1, numbers)))
    return START + b"}" + MARK + items + b"u" + STOP


def signed(number):
    return number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True)


def storages(times):
    """One storage's stream, kept in the memo and loaded so often, each time into another list item."""
    file = io.BytesIO()
    torch.save(torch.zeros(1 << 20).storage(), file, _use_new_zipfile_serialization=False)
    held, name, load = file.getvalue(), b"ctorch.storage\n_load_from_bytes\n", b"h\x00h\x01\x85R"
    return (
        START + name + b"q\x00" + b"0" + b"B" + struct.pack("<I", len(held)) + held + b"q\x01" + b"0"
        + b"]" + MARK + load * times + b"e" + STOP
    )  # fmt: skip


HOSTILE = {
    "a memo of 4 GB in nine bytes": (START + b"N" + LARGEST + STOP, "more than 512 MB of memory"),
    "the same in a storage": (
        pickle.dumps({"x": None})[:-1] + b"0ctorch.storage\n_load_from_bytes\nC\x09" + START + b"N" + LARGEST + STOP
        + b"\x85R" + STOP,
        "more than 5.. MB of memory",
    ),
    "bytes that are not there": (START + b"\x8e" + struct.pack("<Q", 1 << 40) + b"x" + STOP, "is refused: "),
    "a bytearray that is not there": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"x" + STOP, "is refused: "),
    "a memo bomb as a key": (START + b"}" + memo_bomb()[2:] + b"Ns" + STOP, "more than 1 seconds"),
    "colliding integers": (colliding(), "more than 1 seconds"),
    "nested tuples as keys": (START + b"}" + nested_tuples(2_000_000)[2:] + b"Ns" + STOP, "is refused: "),
    "nested lists in the place of words": (START + b"]" * 1_000_000 + b"a" * 999_999 + STOP, "has no adj_code|refused"),
    "stride 0": (with_vector(rebuilt((20_000_000_000,), (0,))), "a vector of 20000000000 numbers, 0 apart"),
    "numbers beyond the storage": (with_vector(rebuilt((9,), (1,))), "a vector of 9 numbers, 1 apart"),
    "a negative stride": (with_vector(rebuilt((6,), (-1,))), "a vector of 6 numbers, -1 apart"),
    "a long number": (START + b"L" + b"9" * 3_000_000 + b"L\n" + STOP, "is refused: |has no adj"),
    "a name for the terminal": (START + b"cos\x1b[2J\nsystem\x1b]0;owned\x07\n" + STOP, r"os\\x1b\[2J\.system\\x1b\]0"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_in_bounded_time_and_memory(tmp_path, name, monkeypatch):
    data, sentence = HOSTILE[name]
    monkeypatch.setattr(untrusted, "SECONDS", 1)
    path = tmp_path / "hostile.pkl"
    path.write_bytes(data)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(BuildError, match=sentence) as caught:
        import_prior(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert time.monotonic() - begun < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_a_storage_is_loaded_once_however_often_it_is_asked_for(tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(storages(20_000))  # 80 GB, if each were read
    with pytest.raises(BuildError, match="has no adj_code_book_num"):
        import_prior(path)


def test_a_view_that_is_not_dense_is_read_as_it_is(tmp_path):
    content = authors(torch.float32)
    content["adj_code_book_vec"]["red"] = torch.arange(24.0).view(6, 4)[:, 1]
    prior = import_prior(pickled(tmp_path, content))
    assert prior.vectors[prior.index("red")].tolist() == [1, 5, 9, 13, 17, 21]


def test_many_vectors_of_one_large_storage_are_refused(tmp_path):
    shared = torch.zeros(2_000_000)
    content = authors(torch.float32)
    content["noun_code_book_vec"] = dict.fromkeys(map(str, range(40)), shared)
    content["noun_code_book_num"] = dict.fromkeys(map(str, range(40)), 11)
    with pytest.raises(BuildError, match="views of one storage"):
        import_prior(pickled(tmp_path, content))


def test_bfloat16_is_read(tmp_path):
    prior = import_prior(pickled(tmp_path, authors(torch.bfloat16)))
    assert prior.vectors[prior.index("red")].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_no_file_is_not_read(tmp_path):
    with pytest.raises(BuildError, match="/dev/zero is not a file"):
        import_prior("/dev/zero")
    with pytest.raises(BuildError, match="is a folder; name a file in it"):
        import_prior(pickled(tmp_path, authors()), tmp_path, force=True)


def test_a_file_beyond_any_prior_is_refused_unread(tmp_path, monkeypatch, capsys):
    """100 GB without a block on the disk; reading a part of it would take memory."""
    from vqct_plugin.commands.import_prior import main

    monkeypatch.chdir(tmp_path)
    with open("x.pth", "wb") as file:
        file.truncate(100 << 30)
    begun = time.monotonic()
    assert main(["x.pth"]) == 1
    assert time.monotonic() - begun < 5
    told = capsys.readouterr().err
    sentence = "vqct-import-prior: x.pth is refused: it has 107,374,182,400 bytes, and at most 1,073,741,824 are read. "
    assert told.startswith(sentence)
    assert told.count("\n") == 1


def test_the_largest_file_that_is_read(tmp_path, monkeypatch):
    path = pickled(tmp_path, authors())
    monkeypatch.setattr(imported, "LARGEST", path.stat().st_size)
    assert len(import_prior(path)) == 4
    monkeypatch.setattr(imported, "LARGEST", path.stat().st_size - 1)
    with pytest.raises(BuildError, match=r"is refused: it has .* bytes, and at most"):
        import_prior(path)
