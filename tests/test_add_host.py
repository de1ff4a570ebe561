"""A contributor's patch and entry come from a changed checkout, and ``vqct-patch`` applies them."""

import json
import subprocess

import pytest

from tests.conftest import ROOT, load_tool
from vqct_plugin.hosts import patching

tool = load_tool("add_host")

BEFORE = "class Toy:\n    def __init__(self, n):\n        self.quantize = Quantizer(n)\n"
AFTER = BEFORE.replace("n)", "n, quantizer_config=None)", 1) + "        if quantizer_config: build_quantizer(n)\n"


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path / "toy", check=True, stdout=subprocess.DEVNULL)

    (tmp_path / "toy" / "models").mkdir(parents=True)
    git("init", "-q")
    (tmp_path / "toy" / "models" / "toy.py").write_text(BEFORE)
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path / "toy"


def test_what_it_writes_is_applied_and_reverted(checkout, tmp_path, monkeypatch):
    patches = tmp_path / "patches"
    patches.mkdir()
    (patches / "hosts.json").write_text("{}")
    file = checkout / "models" / "toy.py"
    file.write_text(AFTER)
    entry = tool.add_host("toy", checkout, patches)
    assert entry["repository"] == "OWNER/NAME"
    entry["marks"] = [["models/toy.py", "class Toy"]]
    (patches / "hosts.json").write_text(json.dumps({"toy": {**entry, "target": "my.Quantizer"}}))
    again = tool.add_host("toy", checkout, patches)
    assert (again["marks"], again["target"]) == (entry["marks"], "my.Quantizer")  # filled in once

    file.write_text(BEFORE)
    monkeypatch.setattr(patching, "PATCHES", patches)
    assert patching.patch_host(checkout).host.target == "my.Quantizer"
    assert file.read_text() == AFTER
    patching.patch_host(checkout, revert=True)
    assert file.read_text() == BEFORE


def test_the_packages_own_entries_are_as_it_writes_them():
    """The same keys in the same order, so that writing an entry again changes nothing else of the file."""
    text = (ROOT / "vqct_plugin" / "patches" / "hosts.json").read_text(encoding="utf-8")
    assert json.dumps(json.loads(text), indent=1) + "\n" == text


def test_a_checkout_without_a_change_is_refused(checkout, capsys):
    assert tool.main(["toy", str(checkout)]) == 1
    message = capsys.readouterr().err
    assert "has no change" in message
    assert "an entry without files in hosts.json" in message
