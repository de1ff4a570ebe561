"""Files written whole or not at all, and what stands in files made fit to be printed."""

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Optional


class NotAFileError(OSError):
    """Something other than a regular file stands where a file is to be written: it is left alone."""

    def __str__(self) -> str:
        return str(self.strerror)


def printable(text: object, most: int = 300) -> str:
    """A text that came out of a file or from outside, fit for a terminal: what is not printable is escaped.

    Control characters, marks that change the direction of writing and undecodable bytes become ``\\x1b`` and the like;
    of what is longer than ``most`` letters only the beginning is shown, and the length named.

    >>> printable("red\\x1b[2J dog")
    'red\\\\x1b[2J dog'
    """
    whole = str(text)
    begun = whole if len(whole) <= most else whole[: most // 5]
    shown = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in begun)
    return shown if begun == whole else f"{shown}... ({len(whole):,} letters)"


def find_target(path: Path) -> Path:
    """Where a file of this name is to be written: links are followed.

    Raises:
        NotAFileError: a folder, a device, a pipe or a socket is there, which no file may replace.
        OSError: it cannot be told what is there, as with links in a circle.
    """
    target = Path(os.path.realpath(str(path)))
    there = _stat(target)
    if there is not None and not stat.S_ISREG(there.st_mode):
        mode = there.st_mode
        kind = "folder; name a file in it" if stat.S_ISDIR(mode) else f"{_kind(mode)}; only a file can be replaced"
        raise NotAFileError(errno.EINVAL, f"{printable(path)} is a {kind}")
    return target


def _stat(path: Path) -> Optional[os.stat_result]:
    try:
        return os.stat(str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
    return next((kind for is_it, kind in kinds if is_it(mode)), "special file")


def write_whole(path: Path, data: bytes, overwrite: bool) -> None:
    """Write aside, then move: a reader sees the old file or the new one, never a part.

    Where the system has files without a name (Linux), not even a process killed on the way leaves anything behind.
    Links are followed. A file that is replaced keeps its permissions, and its owner and group where this process may
    give a file to them.

    Raises:
        NotAFileError: a folder, a device or the like is there; it is never replaced.
        FileExistsError: a file is there, and not ``overwrite``.
        OSError: it cannot be written.
    """
    path = find_target(path)
    old = _stat(path)
    if not overwrite and old is not None:
        raise FileExistsError(str(path))
    if not _written_without_a_name(path, data, overwrite, old):
        _written_beside(path, data, overwrite, old)


def _keep_owner(handle: int, old: os.stat_result) -> None:
    """Give an open file the owner and the group of the one that it replaces; its permissions come after that, because a
    change of owner takes some of them away."""
    new = os.fstat(handle)
    if hasattr(os, "fchown") and (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        for owner in (old.st_uid, -1):  # who may not give files away may still know the group
            try:
                os.fchown(handle, owner, old.st_gid)
                break
            except OSError:
                continue


def _written_without_a_name(path: Path, data: bytes, overwrite: bool, old: Optional[os.stat_result]) -> bool:
    """Whether it worked; it does not on other systems and on some network file systems."""
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        handle = os.open(str(path.parent), os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if old is not None:
            _keep_owner(file.fileno(), old)
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
        source = f"/proc/self/fd/{file.fileno()}"
        name = path if not overwrite else path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            folder = os.open(str(path.parent), os.O_RDONLY)  # with a folder's handle, link() follows the link in /proc
            try:
                os.link(source, name.name, dst_dir_fd=folder, follow_symlinks=True)
            finally:
                os.close(folder)
        except FileExistsError:
            if overwrite:  # of a process killed in this very moment; the other way makes a name of its own
                return False
            raise
        except OSError:
            return False
    if overwrite:
        os.replace(str(name), str(path))
    return True


def _written_beside(path: Path, data: bytes, overwrite: bool, old: Optional[os.stat_result]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if old is not None:
                _keep_owner(file.fileno(), old)
        # mkstemp's files are private; ours are shared as other files are
        os.chmod(name, 0o666 & ~_umask() if old is None else stat.S_IMODE(old.st_mode))
        if overwrite:
            os.replace(name, str(path))
        else:
            _move_unless_there(name, path)
    finally:
        if os.path.exists(name):
            os.unlink(name)


def _move_unless_there(name: str, path: Path) -> None:
    try:
        os.link(name, str(path))  # unlike a rename, this fails where a file is, also one that came this moment
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(str(path)) from None
        os.replace(name, str(path))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
