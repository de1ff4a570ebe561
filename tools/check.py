"""Format, lint, type-check and test what changed: ``python tools/check.py``, in seconds.

What changed is what differs from ``main`` (or another commit: ``python tools/check.py HEAD~3``), what is not committed
and not tracked included. A file's tests are those that mirror it: ``vqct_plugin/runs/config.py`` has
``tests/runs/test_config.py``; ``BESIDE`` has those of another name, and a changed test file is run too.
``.ci/run`` runs all of them.
"""

import subprocess
import sys
from pathlib import Path
from typing import Iterable, List, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
#: what every change is held against: imports, circles, lengths
ALWAYS = ("tests/test_house.py",)
#: files and folders whose tests have another name
BESIDE = {
    "README.md": ["tests/test_readme.py"],
    "docs": ["tests/test_readme.py"],
    "mkdocs.yml": ["tests/test_readme.py"],
    "pyproject.toml": ["tests/test_house.py", "tests/test_package.py"],
    "benchmarks": ["tests/test_benchmarks.py"],
    "vqct_plugin/patches": ["tests/hosts/test_patching.py"],
    "vqct_plugin/training/callbacks.py": ["tests/training/test_launcher.py"],
    "vqct_plugin/training/restart.py": ["tests/training/test_one_run.py", "tests/training/test_resume.py"],
    "vqct_plugin/training/trainer.py": ["tests/training/test_launcher.py", "tests/training/test_loggers.py"],
}


def list_changed(root: Path, since: str) -> List[str]:
    """Paths, with ``/``, of the files that differ from where this branch left ``since`` and are still there."""

    def git(*words: str) -> List[str]:
        done = subprocess.run(["git", *words], cwd=root, check=True, stdout=subprocess.PIPE)
        return [path for path in done.stdout.decode().split("\0") if path]

    base = git("merge-base", "HEAD", since)[0].strip()
    found = {*git("diff", "-z", "--name-only", base), *git("ls-files", "-z", "--others", "--exclude-standard")}
    return sorted(path for path in found if (root / path).is_file())


def find_tests(root: Path, changed: Iterable[str]) -> List[str]:
    """The test files that mirror the changed files."""
    found = set()
    for path in map(Path, changed):
        if path.parts[0] == "tests" and path.name.startswith("test_"):
            found.add(path)
        elif path.suffix == ".py" and path.parts[0] == "vqct_plugin":
            found.add(Path("tests", *path.parts[1:-1], f"test_{path.stem.lstrip('_')}.py"))
        elif path.parts[0] in ("configs_taming", "tools"):
            shipped = path.suffix == ".yaml"
            found.add(Path("tests/runs/test_shipped_configs.py" if shipped else f"tests/test_{path.stem}.py"))
        for place in (path, *path.parents):
            found |= {Path(test) for test in BESIDE.get(place.as_posix(), [])}
    here = {path.as_posix() for path in found if (root / path).is_file() and path.parts[:2] != ("tests", "gpu")}
    return sorted(here)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if len(words) > 1 or any(word.startswith("-") for word in words):
        print(__doc__)
        return 2
    changed = list_changed(ROOT, words[0] if words else "main")
    python = [path for path in changed if path.endswith(".py")]
    tests = sorted({*find_tests(ROOT, changed), *ALWAYS})
    commands = [["pytest", "-q", "-x", *tests]]
    if python:
        # formatted and mended in place; what ruff cannot mend, it names
        commands = [["ruff", "format", *python], ["ruff", "check", "--fix", *python], ["mypy"], *commands]
    for command in commands:
        print("+", *command, flush=True)
        code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
