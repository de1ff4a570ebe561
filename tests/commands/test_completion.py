"""A shell that has read what ``vqct-completion`` prints completes the flags and values of every command."""

import shutil
import subprocess
import sys

import pytest

pytest.importorskip("shtab")

from tests.conftest import ROOT
from vqct_plugin.commands import completion

ASK = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
function=$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function "$1" "${COMP_WORDS[$COMP_CWORD]}" "$1"
echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("completion") / "vqct.bash"
    command = [sys.executable, "-m", "vqct_plugin.commands.completion", "bash"]
    file.write_text(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    return file


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("vqct-train --log", "--logdir"),
        ("vqct-train --se", "--set --seed"),
        ("vqct-build-prior --plm x --vectors p", "prompts"),
        ("vqct-evaluate --batch", "--batch-size"),
        ("vqct-patch --", "--help --revert --dry-run"),
        ("vqct-completion b", "bash"),
        ("vqct-train --base ro", "room.yaml rooms"),
        ("vqct-train --logdir ro", "rooms"),
    ],
)
def test_bash_completes_what_is_typed(typed, expected, script, tmp_path):
    (tmp_path / "room.yaml").touch()
    (tmp_path / "rooms").mkdir()
    command = ["bash", "-c", ASK, "bash", str(script), *typed.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted(expected.split())


def test_every_command_and_every_shell_is_there(script):
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    names = {line.split(" = ")[0] for line in lines if line.startswith("vqct-")}
    assert len(names) == len(completion.COMMANDS)
    assert all(f"-F _shtab_{name.replace('-', '_')} {name}\n" in script.read_text() for name in names)
    assert "#compdef vqct-train" in completion.make_completion("zsh")
    assert "complete vqct-train" in completion.make_completion("tcsh")


def test_without_shtab_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert completion.main(["bash"]) == 1
    assert "pip install 'vqct-plugin[completion]'" in capsys.readouterr().err
