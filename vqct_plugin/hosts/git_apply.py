"""``git apply`` in a folder that is not a repository of its own, and patches with that folder's line endings."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any, Sequence


class PatchError(ValueError):
    """A folder cannot be patched, or its patch cannot be removed; nothing in it was changed."""


def with_line_ends(diff: bytes, root: Path) -> bytes:
    """The diff with the line endings of the files that lie in ``root``."""
    lines, end = [], b""
    for line in diff.split(b"\n"):
        line = line.rstrip(b"\r")
        if line.startswith(b"--- a/"):
            end = b""
            crlf = b"\r\n" in (root / os.fsdecode(line[6:])).read_bytes()
        elif line.startswith(b"@@ "):
            end = b"\r" if crlf else b""
            lines.append(line)
            continue
        elif line.startswith(b"diff --git "):
            end = b""
        lines.append(line + end if line else line)
    return b"\n".join(lines)


def without_files(diff: bytes, files: Sequence[str]) -> bytes:
    """The diff without what it does to some files."""
    left_out = [f"+++ b/{file}".encode() for file in files]
    parts = re.split(rb"(?m)^(?=diff --git )", diff)
    return b"".join(part for part in parts if not any(line.rstrip() in left_out for line in part.split(b"\n")))


def git_apply(root: Path, diff: bytes, options: Sequence[str]) -> None:
    """Apply a diff in ``root``.

    Raises:
        PatchError: git is not installed, or the diff does not fit; with git's reason.
    """
    # git looks upwards for a repository, and would then take the paths as that repository's, and skip what lies
    # outside this folder silently. Here the folder is the root.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"):
        environment.pop(name, None)
    options = ["-c", "core.autocrlf=false", "-c", "core.safecrlf=false", "apply", "--whitespace=nowarn", *options, "-"]
    done = run_git(root, options, environment, diff)
    if done.returncode != 0:
        reason = re.sub(r"(?m)^(error|fatal): ", "", done.stderr.decode(errors="replace")).strip()
        raise PatchError(f"git apply cannot change {root}: {reason}")


def fits(root: Path, diff: bytes, options: Sequence[str]) -> bool:
    """Whether ``git apply`` takes a diff in ``root``; nothing is changed."""
    try:
        git_apply(root, diff, ["--check", *options])
    except PatchError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise
        return False
    return True


def run_git(root: Path, words: Sequence[str], environment: Any = None, given: bytes = b"") -> Any:
    """``git ...`` in ``root``: the finished process, its output as bytes.

    Raises:
        PatchError: git is not installed.
    """
    try:
        return subprocess.run(["git", *words], cwd=root, input=given, env=environment, capture_output=True)
    except FileNotFoundError as error:
        raise PatchError("git is not installed; the patches are applied with `git apply`: install git") from error
