"""A host's patch on files that are not the host's: forks, other commits, a user's own changes.

A three-way merge of the user's file with the patched file of the host's commit, if the fork's history has that commit;
else ``git apply``, which finds a place by the lines around it. All of it happens in a copy; what comes out has to
parse, and has to know the name that the patch brings.
"""

import ast
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from vqct_plugin.hosts.git_apply import PatchError, fits, git_apply, run_git, with_line_ends, without_files

Merged = Tuple[Dict[str, bytes], List[str]]


class Fork(NamedTuple):
    """Files that a patch is to go into, and that are not as in the commit it was made from.

    Attributes:
        repository, commit: where the patch was made from.
        patch: its file.
        root: the user's folder.
        files: those that the patch changes, and that are there.
        others: those of them that are neither as in the commit nor as patched.
    """

    repository: str
    commit: str
    patch: Path
    root: Path
    files: List[str]
    others: List[str]

    @property
    def part(self) -> bytes:
        """The patch of the files that are there."""
        diff = self.patch.read_bytes()
        touched = re.findall(r"(?m)^\+\+\+ b/(.*?)\r?$", diff.decode("utf-8"))
        return without_files(diff, [file for file in touched if file not in self.files])

    @property
    def diff(self) -> bytes:
        return with_line_ends(self.part, self.root)


def merge(fork: Fork) -> Merged:
    """The files with the patch, and what to tell the user.

    Raises:
        PatchError: they have it already; or hunks of it do not apply, which the message lists.
    """
    with _copy(fork) as folder:
        if fits(folder, fork.diff, ["-R"]):
            raise PatchError(f"{fork.root} ({fork.repository}) is patched already; pass revert=True to remove it")
        how = f"a three-way merge with {fork.commit[:7]}"
        merged, conflict = _merge_three_ways(fork)
        if merged is None:
            if not fits(folder, fork.diff, []):
                raise PatchError(_what_does_not_apply(fork, "", conflict))
            how = "`git apply`, which matches the surrounding lines"
            git_apply(folder, fork.diff, [])
        else:
            for file, content in merged.items():
                (folder / file).write_bytes(content)
        mistake = _find_mistake(folder, fork.files)
        if mistake:
            raise PatchError(_what_does_not_apply(fork, mistake, conflict or "that is what a three-way merge gives"))
        notes = [
            f"{', '.join(fork.others)}: not as in commit {fork.commit[:7]}; the patch was applied with {how}. Look at "
            "the diff before you train"
        ]
        if not fits(folder, fork.diff, ["-R"]):
            notes.append("this merge cannot be undone by the patch; restore the files with git (git checkout -- FILE)")
        return {file: (folder / file).read_bytes() for file in fork.files}, notes


def take_back(fork: Fork) -> Merged:
    """The files without the patch, and what to tell the user.

    Raises:
        PatchError: they do not have it, or its lines were changed.
    """
    with _copy(fork) as folder:
        if not fits(folder, fork.diff, ["-R"]):
            if fits(folder, fork.diff, []):
                raise PatchError(f"{fork.root} ({fork.repository}) is not patched")
            raise PatchError(
                f"{fork.root} is {fork.repository}, but its files are neither as in commit {fork.commit[:7]} nor as "
                "patched, and the patch cannot be removed: its lines were changed, or it is the patch of another "
                "version of this package. Nothing was changed; restore the files with git (git checkout -- FILE)"
            )
        git_apply(folder, fork.diff, ["-R"])
        return {file: (folder / file).read_bytes() for file in fork.files}, []


@contextmanager
def _copy(fork: Fork) -> Iterator[Path]:
    """A folder with a copy of the files."""
    with tempfile.TemporaryDirectory() as folder:
        for file in fork.files:
            (Path(folder) / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / file).write_bytes((fork.root / file).read_bytes())
        yield Path(folder)


def _merge_three_ways(fork: Fork) -> Tuple[Optional[Dict[str, bytes]], str]:
    """The user's files merged with the commit's patched ones; else None, and why not."""
    with tempfile.TemporaryDirectory() as name:
        base, patched, mine = (Path(name) / folder for folder in ("base", "patched", "mine"))
        for file in fork.files:
            shown = run_git(fork.root, ["show", f"{fork.commit}:./{file}"])
            if shown.returncode != 0:
                return None, (
                    f"a three-way merge needs commit {fork.commit[:7]} of {fork.repository}, which is not in this "
                    "folder's history (git fetch it, and try again)"
                )
            contents = zip((base, patched, mine), (shown.stdout, shown.stdout, (fork.root / file).read_bytes()))
            for folder, content in contents:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content.replace(b"\r\n", b"\n"))
        git_apply(patched, with_line_ends(fork.part, patched), [])
        merged = {}
        for file in fork.files:
            own = (fork.root / file).read_bytes()
            if own.count(b"\r\n") not in (0, own.count(b"\n")):
                return None, f"a three-way merge needs one kind of line endings, and {file} has two"
            done = run_git(Path(name), ["merge-file", "-p", *(str(folder / file) for folder in (mine, base, patched))])
            if done.returncode != 0:
                return None, f"a three-way merge with commit {fork.commit[:7]} conflicts in {file}"
            merged[file] = done.stdout.replace(b"\n", b"\r\n") if b"\r\n" in own else done.stdout
        return merged, ""


def _find_mistake(folder: Path, files: Sequence[str]) -> str:
    """Why patched files cannot be right: one does not parse, or uses ``quantizer_config`` where nothing gives it."""
    for file in files:
        try:
            tree = ast.parse((folder / file).read_bytes())
        except (SyntaxError, ValueError) as error:
            return f"{file} could not be parsed: {error}"
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            arguments = {a.arg for a in [*function.args.args, *function.args.kwonlyargs]}
            if "quantizer_config" in names - arguments:
                return f"{file}: {function.name} would use quantizer_config, which is not one of its arguments"
    return ""


def _what_does_not_apply(fork: Fork, mistake: str, conflict: str) -> str:
    hunks = _split(fork.diff)
    with _copy(fork) as folder:
        without = [(file, hunk) for file, header, hunk in hunks if not fits(folder, header + hunk, [])]
    listed = "\n".join(f"{file}:\n{hunk.decode('utf-8', 'replace').rstrip()}" for file, hunk in without)
    what = f"{len(without)} of its {len(hunks)} hunks do not apply" if without else mistake
    return (
        f"{fork.root} is {fork.repository}, but not as at commit {fork.commit[:7]}, and the patch does not fit: "
        f"{what}; {conflict}. Nothing was changed. Add these lines by hand, and the rest of {fork.patch}"
        f"{':' if listed else ''}\n{listed}".rstrip()
    )


def _split(diff: bytes) -> List[Tuple[str, bytes, bytes]]:
    """(file, the lines that begin its part of a diff, hunk) for each hunk."""
    found = []
    for part in re.split(rb"(?m)^(?=diff --git )", diff):
        header, *hunks = re.split(rb"(?m)^(?=@@ )", part)
        name = re.search(rb"(?m)^\+\+\+ b/(.*?)\r?$", header)
        found += [(name.group(1).decode(), header, hunk) for hunk in hunks if name]
    return found
