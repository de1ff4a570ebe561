"""``vqct-patch``: adds ``quantizer_config`` to a host's checkout, and removes it again to the last byte.

The patches are in ``vqct_plugin/patches/``, one folder for each host; ``hosts.json`` there says which repository and
commit each was made from, how to recognize the host, the ``target`` to write where it is not
``vqct_plugin.Quantizer``, and which files it changes, with the SHA-256 that each has before and after (its lines ended
with ``\\n``, so that it is the same in a checkout with Windows' line endings). A host that needs no patch has no
``files`` there, but the ``option`` of its own in which to write the ``target``.
"""

import difflib
import hashlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from vqct_plugin.hosts.forks import Fork, merge, take_back
from vqct_plugin.hosts.git_apply import PatchError, git_apply, with_line_ends, without_files

__all__ = ["patch_host", "list_hosts", "Host", "Patched", "PatchError"]

PATCHES = Path(__file__).parent.parent / "patches"


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
    """What :func:`patch_host` did, or with ``dry_run`` would do: the host, its root, the files, and the diff.

    ``notes`` are sentences that a user should read: what is not as in the commit, and what stands in the way.
    """

    host: Host
    root: Path
    files: List[str]
    diff: str
    notes: Sequence[str] = ()


def list_hosts() -> List[Host]:
    """The hosts that have a patch, by name."""
    return [
        Host(
            name,
            about["repository"],
            about["commit"],
            [(file, text) for file, text in about["marks"]],
            {file: (before, after) for file, (before, after) in about["files"].items()},
            about.get("target", "vqct_plugin.Quantizer"),
        )
        for name, about in sorted(_read_manifest().items(), key=lambda item: item[0].lower())
        if "files" in about
    ]


def _read_manifest() -> Dict[str, Dict[str, Any]]:
    manifest: Dict[str, Dict[str, Any]] = json.loads((PATCHES / "hosts.json").read_text(encoding="utf-8"))
    return manifest


def patch_host(path: Any, revert: bool = False, dry_run: bool = False) -> Patched:
    """Add ``quantizer_config`` to the host in a folder, or with ``revert`` remove it.

    A fork, or another commit, whose files are not the host's is patched where ``git apply`` finds the place, or a
    three-way merge does with the host's commit in the fork's own history. Files that a fork has not are left out, and
    named in the notes; the one that builds the quantizer has to be there.

    Args:
        path: the root of a checkout, or for taming-transformers' wheel the ``site-packages`` (or ``taming``) folder
            that it is installed in.
        revert: remove the patch; every file is then as it was, to the last byte.
        dry_run: check everything, change nothing.

    Raises:
        PatchError: the folder is not a known host, is patched already (or is not, with ``revert``), or has a file
            in which hunks do not apply: which lines, and where. Nothing was changed.
    """
    host, root = find_host(path)
    states = {file: _state(root / file, hashes) for file, hashes in host.files.items()}
    notes = [] if revert else _find_wheel_before(root)
    missing = [file for file, state in states.items() if state == "missing"]
    files = [file for file in host.files if file not in missing]
    own = without_files(host.patch.read_bytes(), missing)
    if missing and b"build_quantizer(" in own:  # else what is missing is where the quantizer is built
        notes = [f"{', '.join(missing)}: not there, and left out", *notes]
        states = {file: states[file] for file in files}
    if "changed" in states.values() and "missing" not in states.values():
        others = [file for file, state in states.items() if state == "changed"]
        fork = Fork(host.repository, host.commit, host.patch, root, files, others)
        return _patch_fork(host, fork, revert, dry_run, notes)
    _check(host, root, states, revert)
    diff = with_line_ends(own, root)
    result = Patched(host, root, files, diff.decode("utf-8"), notes)
    git_apply(root, diff, ["--check", *["-R"] * revert])
    if dry_run:
        return result
    with _put_back(root, files):
        git_apply(root, diff, ["-R"] * revert)
        wrong = [file for file in files if _hash(root / file) != host.files[file][not revert]]
        if wrong:
            raise PatchError(f"after `git apply`, {wrong[0]} in {root} is not as expected; every file was restored")
    return result


def _patch_fork(host: Host, fork: Fork, revert: bool, dry_run: bool, notes: Sequence[str]) -> Patched:
    contents, more = take_back(fork) if revert else merge(fork)
    diff = "".join(_diff(file, (fork.root / file).read_bytes(), content) for file, content in contents.items())
    if not dry_run:
        with _put_back(fork.root, fork.files):
            for file, content in contents.items():
                (fork.root / file).write_bytes(content)
    return Patched(host, fork.root, fork.files, diff, [*more, *notes])


def _diff(file: str, before: bytes, after: bytes) -> str:
    old = before.decode("utf-8", "replace").splitlines(keepends=True)
    new = after.decode("utf-8", "replace").splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new, f"a/{file}", f"b/{file}"))


@contextmanager
def _put_back(root: Path, files: Iterable[str]) -> Iterator[None]:
    """Within: an error, or an interruption, leaves every file as it was."""
    before = {file: (root / file).read_bytes() for file in files}
    try:
        yield
    except BaseException:
        for file, content in before.items():
            if (root / file).read_bytes() != content:
                (root / file).write_bytes(content)
        raise


def _find_wheel_before(root: Path) -> List[str]:
    """A checkout's ``taming/`` has no ``__init__.py``: an installed wheel takes precedence, wherever it lies."""
    if not (root / "taming" / "models").is_dir() or (root / "taming" / "__init__.py").exists():
        return []
    folder = _find_installed_taming()
    if folder is None or folder.resolve() == root.resolve():
        return []
    return [
        f"this Python has the wheel taming-transformers-rom1504 in {folder}, and `import taming` finds that one, not "
        f"this checkout: uninstall it (`pip uninstall taming-transformers-rom1504`), or patch {folder} instead"
    ]


def _find_installed_taming() -> Optional[Path]:
    """The folder that an installed wheel lies in, if there is one."""
    for place in sys.path:
        if (Path(place or ".") / "taming" / "__init__.py").is_file():
            return Path(place or ".")
    return None


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
        for name, about in _read_manifest().items():
            if "files" not in about and all(_holds(root / file, text) for file, text in about["marks"]):
                what = f"write `target: {about['target']}` in its {about['option']}"
                raise PatchError(f"{path} is {name}: it needs no patch: {what}")
    raise PatchError(
        f"{path} is not a host that has a patch; expected the root of a checkout of {_names()}, or the site-packages "
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
        f"{' with the patch' * revert}: commit or stash your changes and check out that commit, or apply "
        f"{host.patch} by hand"
    )


_MEANING = {
    "missing": "not there",
    "changed": "neither as in the commit nor as patched",
    "original": "not patched",
    "patched": "patched already",
}
