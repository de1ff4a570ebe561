"""What the README prints, runs."""

import re
import shlex

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_block_runs(block, capsys, tmp_path, monkeypatch):
    if "vqct_plugin.training" in block:
        pytest.importorskip("pytorch_lightning", "2.0")
        pytest.importorskip("taming")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_blocks_and_the_two_commands():
    assert len(BLOCKS) >= 2
    for mark in ("<!-- the demo command -->", "<!-- the test command -->"):
        command = re.search(re.escape(mark) + r"\n```bash\n(.*?)\n```", README, flags=re.S)
        assert command
        assert "\n" not in command.group(1)  # one command


def test_every_option_of_the_quantizer_is_in_the_table():
    import inspect

    from vqct_plugin import CodebookTransferQuantizer

    options = set(inspect.signature(CodebookTransferQuantizer.__init__).parameters) - {"self", "n_e", "e_dim"}
    from_the_host = {"remap", "sane_index_shape"}
    documented = set(re.findall(r"`(\w+)`", README))
    assert options - from_the_host <= documented


def commands(name):
    """The README's lines that call one of our commands, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{name} ")]


def test_every_call_of_vqct_train_is_understood(monkeypatch):
    pytest.importorskip("pytorch_lightning", "2.0")
    pytest.importorskip("omegaconf")
    pytest.importorskip("taming")
    from vqct_plugin.commands.train import main
    from vqct_plugin.runs.config import load_config
    from vqct_plugin.training import launcher

    calls = []
    monkeypatch.setattr(launcher, "run", lambda *args, **keywords: calls.append((args, keywords)))
    assert len(commands("vqct-train")) >= 3
    for words in commands("vqct-train"):
        main(words)
    for (base, overrides), keywords in calls:
        assert base or keywords["resume"]
        assert set(keywords["trainer"]) <= set(launcher.TRAINER_ARGUMENTS)
        if base and (ROOT / base[0]).exists():
            load_config([ROOT / base[0]], overrides)
    assert any((ROOT / base[0]).exists() for (base, _), _ in calls if base)


def test_every_call_of_the_prior_commands_is_understood(monkeypatch):
    from vqct_plugin.commands import build_prior, import_prior

    assert len(commands("vqct-build-prior")) >= 3
    for words in commands("vqct-build-prior"):
        build_prior.make_parser().parse_args(words)
    for words in commands("vqct-import-prior"):
        import_prior.make_parser().parse_args(words)


def test_every_call_of_the_other_commands_is_understood():
    from vqct_plugin.commands import patch, sample
    from vqct_plugin.hosts.patching import list_hosts

    patched = {patch.make_parser().parse_args(words).path for words in commands("vqct-patch")}
    assert patched == {host.name for host in list_hosts()} - {"taming-transformers-rom1504"}  # whose hunk is the same
    assert commands("vqct-sample")
    for words in commands("vqct-sample"):
        sample.make_parser().parse_intermixed_args(words)


def test_every_call_and_flag_of_the_measuring_commands_is_understood():
    from vqct_plugin.commands import evaluate, report

    documented = set(re.findall(r"`(-{1,2}\w+)`", README))
    for name, module in (("vqct-evaluate", evaluate), ("vqct-report", report)):
        assert commands(name)
        for words in commands(name):
            module.make_parser().parse_args(words)
        for action in module.make_parser()._actions:
            flags = set(action.option_strings)
            assert not flags or flags & documented or "--help" in flags, flags


def test_every_flag_of_the_prior_command_is_in_the_table_with_its_default():
    from vqct_plugin.commands.build_prior import make_parser

    section = README[README.index("## Build a prior") :]
    rows = [line for line in section.splitlines() if line.startswith("| `--")]
    for action in make_parser()._actions:
        flag = action.option_strings[-1]
        if flag == "--help":
            continue
        row = next((row for row in rows if f"`{flag}`" in row), None)
        assert row, flag
        default = " ".join(action.default) if isinstance(action.default, tuple) else action.default
        if default not in (None, False):
            assert f"`{default}`" in row, (flag, default)


def test_every_target_and_file_that_is_named_is_there():
    import importlib

    for target in re.findall(r"`(vqct_plugin\.training\.[\w.]+)`", README):
        pytest.importorskip("pytorch_lightning", "2.0")
        pytest.importorskip("taming")
        module, name = target.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name)
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
