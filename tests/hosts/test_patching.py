"""``vqct-patch`` on a copy of the installed wheel; on the other hosts' real checkouts in test_real_hosts.py."""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
taming = pytest.importorskip("taming", reason="taming-transformers is not installed")

from tests.conftest import ROOT, make_prior  # noqa: E402
from vqct_plugin.commands.patch import main  # noqa: E402
from vqct_plugin.hosts.patching import PATCHES, PatchError, list_hosts, patch_host  # noqa: E402
from vqct_plugin.hosts.quantizer_config import refuse_unpatched  # noqa: E402
from vqct_plugin.quantizer import CodebookTransferQuantizer  # noqa: E402

FILE = "taming/models/vqgan.py"


@pytest.fixture
def wheel(tmp_path):
    """A folder with a copy of the installed wheel in it."""
    source = Path(next(iter(taming.__path__)))
    if not (source / "main.py").is_file():
        pytest.skip("taming is a checkout, not the wheel")
    folder = tmp_path / "site-packages"
    shutil.copytree(source, folder / "taming", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def files_of(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("inside", [False, True])
def test_in_and_out_leaves_every_byte(wheel, inside):
    before = files_of(wheel)
    path = wheel / "taming" if inside else wheel
    result = patch_host(path)
    after = files_of(wheel)
    assert [file for file in after if after[file] != before[file]] == [wheel / FILE]
    assert result.host.name == "taming-transformers-rom1504"
    assert "+                 quantizer_config=None," in result.diff
    assert patch_host(path, revert=True).files == [FILE]
    assert files_of(wheel) == before


def test_inside_another_repository_the_folder_is_still_the_root(wheel, monkeypatch):
    """git apply would take the paths as the outer repository's, and skip them all without a word."""
    subprocess.run(["git", "init", "-q", str(wheel.parent)], check=True)
    monkeypatch.setenv("GIT_DIR", str(wheel.parent / ".git"))
    before = (wheel / FILE).read_bytes()
    patch_host(wheel)
    assert (wheel / FILE).read_bytes() != before


def test_windows_line_ends_are_kept(wheel):
    file = wheel / FILE
    with_crlf = file.read_bytes().replace(b"\n", b"\r\n")
    file.write_bytes(with_crlf)
    patch_host(wheel)
    patched = file.read_bytes()
    assert patched.count(b"\n") == patched.count(b"\r\n") == with_crlf.count(b"\n") + 5
    patch_host(wheel, revert=True)
    assert file.read_bytes() == with_crlf


def test_the_target_of_every_host_is_a_quantizer_of_ours():
    for host in list_hosts():
        module, _, name = host.target.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), name), CodebookTransferQuantizer)


def test_a_dry_run_changes_nothing(wheel, capsys):
    before = files_of(wheel)
    assert main([str(wheel), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "would be patched, 1 file(s)" in told
    assert "+            self.quantize = build_quantizer(" in told
    assert files_of(wheel) == before


def refused(folder, sentence, capsys, *flags):
    before = files_of(folder)
    assert main([str(folder), *flags]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("vqct-patch: ")
    assert sentence in told.err
    assert files_of(folder) == before


def test_twice_and_back_twice_are_refused(wheel, capsys):
    refused(wheel, "is not patched", capsys, "--revert")
    patch_host(wheel)
    refused(wheel, "is patched already; pass --revert to remove the patch", capsys)


def test_a_fork_is_patched_where_git_apply_finds_the_place_and_had_back(wheel, capsys):
    file = wheel / FILE
    file.write_text("# a fork\n\n\n" + file.read_text() + "# mine\n")
    before = files_of(wheel)
    assert main([str(wheel)]) == 0
    told = capsys.readouterr().out
    assert f"note: {FILE}: not as in commit 78bf165; the patch was applied with `git apply`, which matches" in told
    assert "build_quantizer(" in file.read_text()
    refused(wheel, "is patched already", capsys)
    assert main([str(wheel), "--revert"]) == 0
    assert files_of(wheel) == before
    capsys.readouterr()
    refused(wheel, "is not patched", capsys, "--revert")


def test_a_hunk_that_does_not_apply_is_named_and_nothing_is_changed(wheel, capsys):
    file = wheel / FILE
    file.write_text(file.read_text().replace("post_quant_conv = torch.nn.Conv2d(", "post_quant_conv = Conv("))
    refused(wheel, "the patch does not fit: 1 of its 2 hunks do not apply", capsys)
    with pytest.raises(PatchError, match=r"(?s)a three-way merge needs commit 78bf165.*\+ .*build_quantizer\("):
        patch_host(wheel)
    refused(wheel, "the patch cannot be removed", capsys, "--revert")


def test_a_place_that_would_be_wrong_is_refused(wheel, capsys):
    """The constructor's arguments find a place in another class; the line that uses them does not know them there."""
    file = wheel / FILE
    text = file.read_text()
    signature = "                 sane_index_shape=False,  # tell vector quantizer to return indices as bhw\n"
    assert text.count(signature) >= 1
    head, tail = text.split(signature, 1)
    decoy = "class Other:\n    def __init__(self,\n" + signature + "                 ):\n        pass\n\n\n"
    cut = head.index("class VQModel")
    file.write_text(head[:cut] + decoy + head[cut:] + signature.rstrip() + " or not\n" + tail)
    refused(wheel, "__init__ would use quantizer_config, which is not one of its arguments", capsys)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_fork_with_the_commit_in_its_history_is_merged_three_ways(wheel, monkeypatch, capsys, ends):
    """What stands around a place has changed, but not the place itself."""

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=false"]
        done = subprocess.run(["git", *who, *words], cwd=str(wheel), check=True, stdout=subprocess.PIPE)
        return done.stdout.decode().strip()

    git("init", "-q")
    git("add", FILE)
    git("commit", "-q", "-m", "theirs")
    commit = git("rev-parse", "HEAD")
    hosts = [host._replace(commit=commit) for host in list_hosts()]
    monkeypatch.setattr("vqct_plugin.hosts.patching.list_hosts", lambda: hosts)
    file = wheel / FILE
    text = file.read_text()
    place = text.index("        self.post_quant_conv = torch.nn.Conv2d(embed_dim")
    insert = "        # a line of the fork's\n" * 3
    mine = ("import os\n" + text[:place] + insert + text[place:]).replace("\n", ends)
    file.write_bytes(mine.encode())
    result = patch_host(wheel)
    assert "applied with a three-way merge" in result.notes[0]
    assert "+            self.quantize = build_quantizer(" in result.diff
    patched = file.read_bytes().decode()
    assert "build_quantizer(" in patched
    assert insert.replace("\n", ends) in patched
    assert patched.count("\n") == patched.count(ends)
    file.write_text(text.replace("self.post_quant_conv = torch.nn.Conv2d(", "self.post_quant_conv = Conv("))
    refused(wheel, "a three-way merge with commit", capsys)


def test_a_checkout_beside_the_installed_wheel_is_warned_of(wheel, tmp_path, monkeypatch, capsys):
    """Python takes the wheel, wherever the checkout lies; and who trains the wheel all the same is told both."""
    checkout = tmp_path / "checkout"
    shutil.copytree(str(wheel), str(checkout))
    (checkout / "taming" / "__init__.py").unlink()
    monkeypatch.setattr(sys, "path", [str(checkout), str(wheel)])
    assert main([str(checkout), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"note: this Python has the wheel taming-transformers-rom1504 in {wheel}" in told
    assert main([str(wheel), "--dry-run"]) == 0
    assert "note:" not in capsys.readouterr().out


def test_an_unpatched_wheel_before_a_patched_checkout_is_named_with_it(tmp_path, monkeypatch):
    """A host of its own name, so that nothing has to be imported anew."""
    for place in ("wheel", "checkout"):
        (tmp_path / place / "some_host" / "models").mkdir(parents=True)
        (tmp_path / place / "some_host" / "models" / "vqgan.py").write_text("class VQModel:\n    pass\n")
    (tmp_path / "wheel" / "some_host" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "checkout"), str(tmp_path / "wheel"), *sys.path])
    model = importlib.import_module("some_host.models.vqgan").VQModel
    file, checkout = tmp_path / "wheel" / "some_host" / "models" / "vqgan.py", tmp_path / "checkout"
    assert sys.modules[model.__module__].__file__ == str(file)  # as Python has it
    sentence = f"comes from {file}, which is not patched. {checkout} has such a file too, which it hides"
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        refuse_unpatched(model)
    assert f"call vqct_plugin.hosts.patching.patch_host({str(tmp_path / 'wheel')!r})" in str(caught.value)
    (checkout / "some_host" / "models" / "vqgan.py").unlink()
    with pytest.raises(ValueError, match=r"which is not patched\. To have it, call"):
        refuse_unpatched(model)
    refuse_unpatched(type("Patched", (), {"__init__": lambda self, quantizer_config=None: None}))


def test_a_reader_that_has_read_enough_is_no_error(wheel):
    command = f"{sys.executable} -m vqct_plugin.commands.patch {wheel} --dry-run | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_unknown_folder_is_refused(tmp_path, capsys):
    (tmp_path / "some.py").write_text("")
    refused(tmp_path, "is not a host that has a patch", capsys)
    with pytest.raises(PatchError, match="is not a folder"):
        patch_host(tmp_path / "none")


def test_simvq_is_told_that_it_needs_none(tmp_path, capsys):
    (tmp_path / "taming" / "models").mkdir(parents=True)
    (tmp_path / "taming" / "models" / "vq.py").write_text("quantconfig")
    what = "it needs no patch: write `target: vqct_plugin.hosts.simvq.SimVQQuantizer` in its quantconfig"
    refused(tmp_path, what, capsys)
    assert "SimVQ" not in {host.name for host in list_hosts()}  # which have a patch


def test_without_git_it_says_so(wheel, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(wheel))
    refused(wheel, "git is not installed", capsys)


SIDE = "taming/side.py"


@pytest.fixture
def two_files(wheel, monkeypatch, tmp_path):
    """The wheel's patch with a second file, which the wheel has."""
    copied = tmp_path / "patches"
    shutil.copytree(PATCHES, copied)
    patch = copied / "taming-transformers-rom1504" / "quantizer.patch"
    part = f"diff --git a/{SIDE} b/{SIDE}\n--- a/{SIDE}\n+++ b/{SIDE}\n@@ -1,1 +1,2 @@\n a = 1\n+b = 2\n"
    patch.write_text(part + patch.read_text())
    manifest = json.loads((copied / "hosts.json").read_text())
    hashes = [hashlib.sha256(text).hexdigest() for text in (b"a = 1\n", b"a = 1\nb = 2\n")]
    manifest["taming-transformers-rom1504"]["files"][SIDE] = hashes
    (copied / "hosts.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("vqct_plugin.hosts.patching.PATCHES", copied)
    (wheel / SIDE).write_text("a = 1\n")
    return wheel


@pytest.mark.parametrize("fork", [False, True])
def test_a_side_file_that_a_fork_has_not_is_left_out_and_named(two_files, fork):
    """Where the rest is as in the commit, and where it is not; the rest goes in and out as if the file were there."""
    (two_files / SIDE).unlink()
    if fork:
        (two_files / FILE).write_bytes(b"import os\n" + (two_files / FILE).read_bytes())
    before = files_of(two_files)
    result = patch_host(two_files)
    assert any(note == f"{SIDE}: not there, and left out" for note in result.notes)
    assert result.files == [FILE]
    assert b"build_quantizer(" in (two_files / FILE).read_bytes()
    assert SIDE not in result.diff
    with pytest.raises(PatchError, match="patched already"):
        patch_host(two_files)
    patch_host(two_files, revert=True)
    assert files_of(two_files) == before


def test_a_missing_file_that_builds_the_quantizer_is_refused(two_files, monkeypatch, capsys):
    (two_files / FILE).unlink()
    (two_files / "taming" / "known.py").write_text("from taming.main import")
    copied = two_files.parent / "patches" / "hosts.json"
    manifest = json.loads(copied.read_text())
    manifest["taming-transformers-rom1504"]["marks"] = [["taming/known.py", "from taming.main import"]]
    copied.write_text(json.dumps(manifest))
    refused(two_files, f"{FILE} is not there", capsys)


def test_a_result_that_is_not_the_expected_is_put_back(wheel, monkeypatch, tmp_path):
    copied = tmp_path / "patches"
    shutil.copytree(PATCHES, copied)
    patch = copied / "taming-transformers-rom1504" / "quantizer.patch"
    patch.write_text(patch.read_text().replace("beta=0.25", "beta=0.26"))
    monkeypatch.setattr("vqct_plugin.hosts.patching.PATCHES", copied)
    before = files_of(wheel)
    with pytest.raises(PatchError, match="every file was restored"):
        patch_host(wheel)
    assert files_of(wheel) == before


def test_every_patch_is_of_the_files_its_host_lists_and_pins_a_commit():
    assert {host.name for host in list_hosts()} == {path.parent.name for path in PATCHES.glob("*/quantizer.patch")}
    for host in list_hosts():
        text = host.patch.read_text()
        assert [line[6:] for line in text.splitlines() if line.startswith("+++ b/")] == list(host.files)
        assert len(host.commit) == 40
        readme = (PATCHES / "README.md").read_text()
        assert f"{host.repository}` at `{host.commit[:7]}" in readme
        assert "build_quantizer(" in text


SCRIPT = """
import sys, torch
from vqct_plugin.compat.taming_imports import import_taming
VQModel = import_taming().VQModel
assert import_taming().__file__.startswith(sys.argv[1]), import_taming().__file__
from tests.hosts.toy import params
torch.manual_seed(0)
stock = VQModel(**params())
torch.save(stock.state_dict(), sys.argv[2])
if len(sys.argv) > 3:
    config = {"target": "vqct_plugin.Quantizer", "params": {"prior": sys.argv[3]}}
    torch.manual_seed(0)
    ours = VQModel(**params(), quantizer_config=config)
    assert type(ours.quantize).__name__ == "CodebookTransferQuantizer"
    assert ours.quantize.n_e == 40 and ours.quantize.e_dim == 16
    for key, value in stock.state_dict().items():
        assert key.startswith("quantize.") or torch.equal(value, ours.state_dict()[key]), key
    image, loss = ours(torch.randn(1, 3, 16, 16))
    loss.backward()

    import_taming("taming.modules.transformer.mingpt")
    Net2NetTransformer = import_taming("taming.models.cond_transformer").Net2NetTransformer
    def stage_2(block_size):
        gpt = dict(vocab_size=40, block_size=block_size, n_layer=1, n_head=1, n_embd=8)
        stage = {"target": "taming.models.vqgan.VQModel", "params": {**params(), "quantizer_config": config}}
        cond = "__is_unconditional__"
        gpt = {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt}
        return Net2NetTransformer(gpt, stage, cond, unconditional=True).eval()
    model = stage_2(200)
    drawn = model.sample(torch.zeros(1, 0).long(), torch.zeros(1, 1).long(), steps=128, sample=True)
    first, last = model.first_stage_model.quantize.token_bounds
    tokens = drawn.view(1, 2, -1)
    assert (tokens >= first[:, None]).all() and (tokens < last[:, None]).all()
    try:
        stage_2(100).sample(drawn[:, :0], drawn[:, :1] * 0, steps=128)
    except ValueError as error:
        assert "block_size of the transformer is 100; expected 128" in str(error)
    else:
        raise AssertionError("a block that is too small was not said")
"""


def test_a_patched_wheel_takes_the_config_and_is_itself_without_it(wheel, tmp_path):
    torch = pytest.importorskip("torch")
    make_prior().save(tmp_path / "prior.safetensors")

    def state(*arguments):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(wheel), str(ROOT)])}
        command = [sys.executable, "-c", SCRIPT, str(wheel), str(tmp_path / "state.pt"), *arguments]
        done = subprocess.run(command, env=environment, cwd=str(tmp_path), stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        return torch.load(str(tmp_path / "state.pt"))

    before = state()
    patch_host(wheel)
    after = state(str(tmp_path / "prior.safetensors"))
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
