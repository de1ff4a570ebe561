"""Files that are written whole: what they may replace, and what of a file's text is printed."""

import doctest
import os
import stat

import pytest

from vqct_plugin import _files
from vqct_plugin._files import NotAFileError, find_target, printable, write_whole


@pytest.fixture(params=["without a name", "beside"])
def write(request, monkeypatch):
    """Both ways of writing: that of Linux, and that of other systems."""
    if request.param == "beside":
        monkeypatch.setattr(_files, "_written_without_a_name", lambda *_: False)
    return write_whole


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_pipe_is_never_replaced(tmp_path, write, overwrite, through_a_link):
    pipe, path = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(str(pipe))
    path.symlink_to(pipe)
    with pytest.raises(NotAFileError, match=r"(pipe|link) is a pipe; only a file can be replaced"):
        write(path if through_a_link else pipe, b"data", overwrite)
    assert stat.S_ISFIFO(os.lstat(str(pipe)).st_mode)
    assert path.is_symlink()
    assert sorted(os.listdir(str(tmp_path))) == ["link", "pipe"]


def test_a_device_is_told_by_its_kind_and_a_folder_by_its(tmp_path):
    device = tmp_path / "device"
    try:
        os.mknod(str(device), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except (AttributeError, OSError):
        pytest.skip("only root makes devices")
    with pytest.raises(NotAFileError, match=r"device is a device; only a file"):
        write_whole(device, b"data", True)
    assert stat.S_ISCHR(os.lstat(str(device)).st_mode)


def test_a_folder_is_never_replaced(tmp_path, write):
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotAFileError, match="folder is a folder; name a file in it"):
        write(tmp_path / "folder", b"data", True)
    assert (tmp_path / "folder").is_dir()


def test_links_are_followed_and_stay(tmp_path, write):
    (tmp_path / "deep").mkdir()
    real, link, second = tmp_path / "deep" / "real", tmp_path / "link", tmp_path / "second"
    real.write_bytes(b"old")
    link.symlink_to(os.path.join("deep", "real"))
    second.symlink_to("link")
    with pytest.raises(FileExistsError):
        write(second, b"new", False)
    write(second, b"new", True)
    assert real.read_bytes() == b"new"
    assert link.is_symlink()
    assert second.is_symlink()
    real.unlink()
    write(second, b"made", False)  # a link to nothing: what it names is made
    assert real.read_bytes() == b"made"
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="round"):
        write(tmp_path / "round", b"data", True)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_replaced_file_keeps_its_permissions_and_a_new_one_has_those_of_any_other(tmp_path, write, mode):
    old, new, other = tmp_path / "old", tmp_path / "new", tmp_path / "other"
    old.write_bytes(b"old")
    old.chmod(mode)
    write(old, b"data", True)
    assert (old.read_bytes(), stat.S_IMODE(old.stat().st_mode)) == (b"data", mode)
    other.write_bytes(b"")
    write(new, b"data", True)
    assert new.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("mode", [0o640, 0o6750])  # a change of owner clears the upper bits
def test_a_replaced_file_keeps_its_owner(tmp_path, write, mode):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    try:
        os.chown(str(path), 12345, 23456)
    except (AttributeError, OSError):
        pytest.skip("only root gives files away")
    path.chmod(mode)
    write(path, b"data", True)
    there = path.stat()
    assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (12345, 23456, mode)
    assert path.read_bytes() == b"data"


def test_who_may_not_give_a_file_away_keeps_its_group_and_writes(tmp_path, write, monkeypatch):
    path, asked = tmp_path / "old", []
    path.write_bytes(b"old")
    path.chmod(0o640)

    def not_the_owner(handle, owner, group):
        asked.append((owner, group))
        raise PermissionError("not the owner")

    monkeypatch.setattr(os, "fchown", not_the_owner, raising=False)
    old = path.stat()
    theirs = os.stat_result((old.st_mode, old.st_ino, old.st_dev, 1, old.st_uid + 1, old.st_gid + 1, 0, 0, 0, 0))
    monkeypatch.setattr(_files, "_stat", lambda _: theirs)
    write(path, b"data", True)
    assert asked == [(old.st_uid + 1, old.st_gid + 1), (-1, old.st_gid + 1)]
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"data", 0o640)


def test_the_target_of_a_name_that_is_free_is_the_name(tmp_path):
    assert find_target(tmp_path / "new") == (tmp_path / "new").resolve()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\u00e9 \u72ac", "caf\u00e9 \u72ac"),
        ("a\x1b[2Jb\r\n", "a\\x1b[2Jb\\r\\n"),
        ("a\u202eb\u200b", "a\\u202eb\\u200b"),
        ("\udcff", "\\udcff"),
        ("x" * 400, "x" * 60 + "... (400 letters)"),
    ],
)
def test_what_is_printed_is_printable(text, shown):
    assert printable(text) == shown


def test_the_examples_hold():
    assert doctest.testmod(_files).failed == 0


def test_what_a_command_prints_of_a_file_is_printable(capsys):
    import argparse
    import logging

    from vqct_plugin.commands.messages import name_flags, show_messages

    told = "a\x1b[2J.ckpt:\n\tdecoder\u202e.weight\r"
    assert name_flags(told, argparse.ArgumentParser()) == "a\\x1b[2J.ckpt:\n decoder\\u202e.weight\\r"
    show_messages()
    logging.getLogger("vqct_plugin.a_test").warning("%s", told)
    assert capsys.readouterr().err == "a\\x1b[2J.ckpt:\n decoder\\u202e.weight\\r\n"
