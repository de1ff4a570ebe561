"""The same flags in every command, and messages of the library in the words of a command."""

import argparse
import doctest
import importlib
import os
import re
import subprocess
import sys

import pytest

from vqct_plugin.commands import messages
from vqct_plugin.commands.messages import name_flags

COMMANDS = ("build_prior", "evaluate", "import_prior", "patch", "report", "sample", "train", "demo", "completion")


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(messages).failed == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_spelled_with_hyphens_and_alike_in_all_commands(command):
    parser = importlib.import_module(f"vqct_plugin.commands.{command}").make_parser()
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    assert all(re.fullmatch(r"--[a-z]+(-[a-z]+)*|-[a-z]", flag) for flag in flags)
    shorts = [("-o", "--output"), ("-b", "--base"), ("-q", "--quiet")]
    shorts.append(("-f", "--postfix" if command == "train" else "--force"))  # taming's own
    for short, long in shorts:
        assert flags.get(short) is flags.get(long)
    if "--base" in flags:
        assert "vqct:NAME" in flags["--base"].help


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "a/force=True_x.png exists; pass force=True to replace it",
            "a/force=True_x.png exists; pass --force to replace it",
        ),
        ("pass vectors='prompts'", "pass --vectors prompts"),
        ("pass the folder: plm=FOLDER", "pass the folder: --plm FOLDER"),
        ("min_count is -1; lower min_count", "--min-count is -1; lower --min-count"),
        ("/data/min_count/a.txt, min_count.txt and my-min_count are no files", None),
        ("the vectors overflow", None),
        ("build a larger one with vqct_plugin.build_prior", "build a larger one with vqct-build-prior"),
        (
            "To have it, call vqct_plugin.hosts.patching.patch_host('/a b'); or",
            "To have it, run `vqct-patch '/a b'`; or",
        ),
        ("vqct_plugin.training.launcher.run takes it", "vqct-train takes it"),
    ],
)
def test_arguments_become_flags_and_paths_stay(message, expected):
    parser = argparse.ArgumentParser()
    for flag in ("--force", "--plm", "--vectors", "--min-count"):
        parser.add_argument(flag)
    assert name_flags(message, parser) == (expected or message)


def test_changes_to_a_config_are_given_with_set_or_without():
    evaluate = importlib.import_module("vqct_plugin.commands.evaluate")
    words = ["--set", "c=2", "run", "a.b=1", "-b", "x.yaml", "e=4", "--set", "f=5", "--limit", "3"]
    options = evaluate.evaluation_arguments(vars(evaluate.make_parser().parse_intermixed_args(words)))
    assert (options["runs"], options["base"], options["limit"]) == (["run"], ("x.yaml",), 3)
    assert options["overrides"] == ("c=2", "f=5", "e=4", "a.b=1")


@pytest.mark.parametrize(("command", "own"), [*((command, None) for command in COMMANDS), ("train", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(command, own):
    """Set before anything that a command's module imports can load torch, whose OpenMP reads it once."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    words = (
        f"import vqct_plugin.commands.{command}, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", words], env={**environment, **({"OMP_WAIT_POLICY": own} if own else {})},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [own or "PASSIVE", "False"]


@pytest.mark.parametrize("command", ["evaluate", "report", "sample", "train", "demo"])
def test_a_change_takes_one_word_so_that_a_run_may_follow(command):
    parser = importlib.import_module(f"vqct_plugin.commands.{command}").make_parser()
    options, rest = parser.parse_known_args(["--set", "a.b=1", "--set", "c=2", "logs/x"])
    assert options.set == ["a.b=1", "c=2"]
    found = {"evaluate": "runs", "report": "runs", "sample": "run", "demo": "overrides"}.get(command)
    assert "logs/x" in (rest if found is None else getattr(options, found))


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        ("evaluate", ["c=2"], "there is no run, only c=2; expected a run's folder"),
        ("report", ["c=2", "d=3"], "there is no run, only c=2 d=3; expected a run's folder"),
        ("sample", ["c=2"], "expected one run, its folder or a checkpoint in it, but there is only c=2"),
        ("sample", ["logs/a", "c=2", "logs/b"], "but there is logs/a and logs/b"),
    ],
)
def test_a_change_is_never_taken_for_a_run(command, words, sentence, capsys):
    pytest.importorskip("pytorch_lightning", "2.0")
    pytest.importorskip("torchmetrics")
    main = importlib.import_module(f"vqct_plugin.commands.{command}").main
    assert main(words) == 1
    assert sentence in capsys.readouterr().err


def test_a_run_may_stand_behind_its_changes(monkeypatch, capsys):
    pytest.importorskip("pytorch_lightning", "2.0")
    from vqct_plugin.runs import load

    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise ValueError("so far")

    monkeypatch.setattr(load, "load_run", fail)
    sample = importlib.import_module("vqct_plugin.commands.sample")
    assert sample.main(["--set", "c=2", "d=3", "logs/a"]) == 1
    assert calls == [("logs/a", [], ["c=2", "d=3"])]
    assert "so far" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_are_written_in_one_way(command):
    """As "(default: x)", and never as a bare "(x)"."""
    parser = importlib.import_module(f"vqct_plugin.commands.{command}").make_parser()
    for action in parser._actions:
        value = " ".join(action.default) if isinstance(action.default, tuple) else action.default
        text = action.help or ""
        if value in (None, "", [], False, argparse.SUPPRESS):
            assert not re.search(r"\(default (?!:)", text)
        else:
            assert re.search(rf"\(default: {re.escape(str(value).lower())}", text.lower())
