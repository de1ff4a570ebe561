"""``vqct-patch``: adds ``quantizer_config`` to a host's checkout, and removes it again to the last byte.

The patches are in ``vqct_plugin/patches/``, one folder for each host; ``hosts.json`` there says which repository and
commit each was made from, how to recognize the host, the ``target`` to write where it is not
``vqct_plugin.Quantizer``, and which files it changes, with the SHA-256 that each has before and after (its lines ended
with ``\\n``, so that it is the same in a checkout with Windows' line ends).
"""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

__all__ = ["patch_host", "list_hosts", "Host", "Patched", "PatchError"]

PATCHES = Path(__file__).parent.parent / "patches"
_NEEDS_NONE = {
    "SimVQ": (
        ("taming/models/vq.py", "quantconfig"),
        "it needs no patch: write `target: vqct_plugin.hosts.simvq.SimVQQuantizer` in its quantconfig",
    )
}


class PatchError(ValueError):
    """A folder cannot be patched or reverted; nothing in it was changed."""


class Host(NamedTuple):
    """A codebase with a patch.

    Attributes:
        name: the folder of its patch.
        repository: ``owner/name`` on GitHub.
        commit: the commit that the patch was made from.
        marks: (file, text) pairs; a folder whose files hold these texts is a checkout of this host.
        files: each file that the patch changes, with its SHA-256 before and after.
        target: what to write as ``target`` in the ``quantizer_config`` of the patched host.
    """

    name: str
    repository: str
    commit: str
    marks: Sequence[Tuple[str, str]]
    files: Dict[str, Tuple[str, str]]
    target: str = "vqct_plugin.Quantizer"

    @property
    def patch(self) -> Path:
        return PATCHES / self.name / "quantizer.patch"


class Patched(NamedTuple):
    """What :func:`patch_host` did, or with ``dry_run`` would do: the host, its root, the files, and the diff."""

    host: Host
    root: Path
    files: List[str]
    diff: str


def list_hosts() -> List[Host]:
    """The hosts that have a patch, by name."""
    manifest = json.loads((PATCHES / "hosts.json").read_text(encoding="utf-8"))
    return [
        Host(
            name,
            about["repository"],
            about["commit"],
            [(file, text) for file, text in about["marks"]],
            {file: (before, after) for file, (before, after) in about["files"].items()},
            about.get("target", "vqct_plugin.Quantizer"),
        )
        for name, about in sorted(manifest.items(), key=lambda item: item[0].lower())
    ]


def patch_host(path: Any, revert: bool = False, dry_run: bool = False) -> Patched:
    """Add ``quantizer_config`` to the host in a folder, or with ``revert`` remove it.

    Args:
        path: the root of a checkout, or for taming-transformers' wheel the ``site-packages`` (or ``taming``) folder
            that it is installed in.
        revert: remove the patch; every file is then as it was, to the last byte.
        dry_run: check everything, change nothing.

    Raises:
        PatchError: the folder is no known host, is patched already (or is not, with ``revert``), or has a file
            that is neither as in the commit nor as patched. Nothing was changed.
    """
    host, root = find_host(path)
    states = {file: _state(root / file, hashes) for file, hashes in host.files.items()}
    _check(host, root, states, revert)
    diff = _with_line_ends(host.patch.read_bytes(), root)
    result = Patched(host, root, list(host.files), diff.decode("utf-8"))
    _git_apply(root, diff, ["--check", *["-R"] * revert])
    if dry_run:
        return result
    before = {file: (root / file).read_bytes() for file in host.files}
    try:
        _git_apply(root, diff, ["-R"] * revert)
        wrong = [file for file, hashes in host.files.items() if _hash(root / file) != hashes[not revert]]
        if wrong:
            raise PatchError(f"git apply left {wrong[0]} in {root} other than expected; every file was put back")
    except BaseException:
        for file, content in before.items():
            if (root / file).read_bytes() != content:
                (root / file).write_bytes(content)
        raise
    return result


def find_host(path: Any) -> Tuple[Host, Path]:
    """Which host a folder is, and its root.

    Raises:
        PatchError: there is no such folder, or it is none of them.
    """
    given = Path(path)
    if not given.is_dir():
        raise PatchError(f"{path} is not a folder; expected the root of a checkout ({_names()})")
    roots = [given, given.resolve().parent] if given.resolve().name == "taming" else [given]
    for root in roots:
        for host in list_hosts():
            if all(_holds(root / file, text) for file, text in host.marks):
                return host, root
        for name, (mark, instead) in _NEEDS_NONE.items():
            if _holds(root / mark[0], mark[1]):
                raise PatchError(f"{path} is {name}: {instead}")
    raise PatchError(
        f"{path} is no host that has a patch; expected the root of a checkout of {_names()}, or the site-packages "
        "folder with the taming-transformers wheel. Without a patch: `model.target: vqct_plugin.VQModel`"
    )


def _names() -> str:
    return ", ".join(host.repository for host in list_hosts())


def _holds(file: Path, text: str) -> bool:
    return file.is_file() and text in file.read_text(encoding="utf-8", errors="replace")


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _state(file: Path, hashes: Tuple[str, str]) -> str:
    if not file.is_file():
        return "missing"
    found = _hash(file)
    return {hashes[0]: "original", hashes[1]: "patched"}.get(found, "changed")


def _check(host: Host, root: Path, states: Dict[str, str], revert: bool) -> None:
    wanted, other = ("patched", "original") if revert else ("original", "patched")
    if all(state == wanted for state in states.values()):
        return
    if all(state == other for state in states.values()):
        what = "is not patched" if revert else "is patched already; pass revert=True to remove the patch"
        raise PatchError(f"{root} ({host.repository}) {what}")
    listed = "; ".join(f"{file} is {_MEANING[state]}" for file, state in states.items() if state != wanted)
    raise PatchError(
        f"{root} is {host.repository}, but {listed}. Expected every file as in commit {host.commit[:7]}"
        f"{' with the patch' * revert}: commit or put aside your changes and check that commit out, or apply "
        f"{host.patch} by hand"
    )


_MEANING = {
    "missing": "not there",
    "changed": "neither as in the commit nor as patched (another commit, or changed here)",
    "original": "not patched",
    "patched": "patched already",
}


def _with_line_ends(diff: bytes, root: Path) -> bytes:
    """The diff with the line ends of the files that lie in ``root``."""
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


def _git_apply(root: Path, diff: bytes, options: Sequence[str]) -> None:
    # git looks upwards for a repository, and would then take the paths as that repository's, and skip what lies
    # outside this folder without a word. Here the folder is the root.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"):
        environment.pop(name, None)
    command = [
        "git",
        "-c",
        "core.autocrlf=false",
        "-c",
        "core.safecrlf=false",
        "apply",
        "--whitespace=nowarn",
        *options,
        "-",
    ]
    try:
        done = subprocess.run(command, cwd=root, input=diff, env=environment, capture_output=True)
    except FileNotFoundError as error:
        raise PatchError("git is not installed; vqct-patch applies its patches with `git apply`") from error
    if done.returncode != 0:
        reason = re.sub(r"(?m)^(error|fatal): ", "", done.stderr.decode(errors="replace")).strip()
        raise PatchError(f"git apply cannot change {root}: {reason}")
