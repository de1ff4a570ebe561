"""Files written whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes, overwrite: bool) -> None:
    """Write aside, then move: a reader sees the old file or the new one, never a part.

    Where the system has files without a name (Linux), not even a process killed on the way leaves anything behind.

    Raises:
        FileExistsError: a file is there, and not ``overwrite``.
        OSError: it cannot be written.
    """
    if not overwrite and path.exists():
        raise FileExistsError(str(path))
    if not _written_without_a_name(path, data, overwrite):
        _written_beside(path, data, overwrite)


def _written_without_a_name(path: Path, data: bytes, overwrite: bool) -> bool:
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


def _written_beside(path: Path, data: bytes, overwrite: bool) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are private; ours are shared as other files are
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
