"""The contributor's one command finds what changed, and its tests."""

import subprocess

import pytest

from tests.conftest import ROOT, load_tool

check = load_tool("check")


def test_what_changed_is_what_differs_from_the_branch_it_left(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)

    def write(name):
        (tmp_path / name).write_text(name)
        git("add", name)

    git("init", "-q")
    git("checkout", "-q", "-b", "main")
    for name in ("kept.py", "edited.py", "removed.py"):
        write(name)
    git("commit", "-q", "-m", "first")
    git("checkout", "-q", "-b", "mine")
    write("committed.py")
    git("rm", "-q", "removed.py")
    git("commit", "-q", "-m", "second")
    (tmp_path / "edited.py").write_text("other")
    (tmp_path / "new, not tracked.py").touch()
    git("checkout", "-q", "main", "--")  # main goes on; that is no change of this branch
    git("stash", "-q", "-u")
    write("theirs.py")
    git("commit", "-q", "-m", "third")
    git("checkout", "-q", "mine")
    git("stash", "pop", "-q")
    assert check.list_changed(tmp_path, "main") == ["committed.py", "edited.py", "new, not tracked.py"]


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("vqct_plugin/runs/config.py", ["tests/runs/test_config.py"]),
        ("vqct_plugin/transfer.py", ["tests/test_transfer.py"]),
        ("tests/test_usage.py", ["tests/test_usage.py"]),
        ("tests/conftest.py", []),
        ("tests/gpu/test_vqgan.py", []),  # needs what most machines do not have
        ("vqct_plugin/runs/build.py", []),  # has no test file of its name
        ("configs_taming/cub_vqct.yaml", ["tests/runs/test_shipped_configs.py"]),
        ("tools/check.py", ["tests/test_check.py"]),
        ("vqct_plugin/patches/hosts.json", ["tests/hosts/test_patching.py"]),
        ("README.md", ["tests/test_readme.py"]),
        ("docs/gpu.md", ["tests/test_readme.py"]),
        ("mkdocs.yml", ["tests/test_readme.py"]),
        ("pyproject.toml", ["tests/test_house.py", "tests/test_package.py"]),
        ("benchmarks/README.md", ["tests/test_benchmarks.py"]),
        ("benchmarks/quantizer.py", ["tests/test_benchmarks.py"]),
        ("tests/README.md", []),
        ("vqct_plugin/training/callbacks.py", ["tests/training/test_launcher.py"]),
        ("vqct_plugin/training/restart.py", ["tests/training/test_one_run.py", "tests/training/test_resume.py"]),
        ("vqct_plugin/training/trainer.py", ["tests/training/test_launcher.py", "tests/training/test_loggers.py"]),
    ],
)
def test_a_files_tests_are_found(changed, tests):
    assert check.find_tests(ROOT, [changed]) == tests


def test_every_test_that_is_named_is_there():
    assert [test for tests in check.BESIDE.values() for test in tests if not (ROOT / test).is_file()] == []
