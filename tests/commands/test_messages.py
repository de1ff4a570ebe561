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

COMMANDS = ("build_prior", "evaluate", "import_prior", "patch", "report", "sample", "train", "demo")


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
    words = ["run", "a.b=1", "--set", "c=2", "d=3", "-b", "x.yaml", "e=4", "--set", "f=5", "--limit", "3"]
    options = evaluate.evaluation_arguments(vars(evaluate.make_parser().parse_intermixed_args(words)))
    assert (options["runs"], options["base"], options["limit"]) == (["run"], ("x.yaml",), 3)
    assert options["overrides"] == ("c=2", "d=3", "f=5", "e=4", "a.b=1")


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
