"""What the library logs and raises, shown to the user of a command."""

import argparse
import logging
import os
import re
import sys
from typing import List, Mapping, Optional, Sequence, Tuple

from vqct_plugin._files import printable

#: how the library's messages name functions that are commands too -> the command
_COMMANDS = {
    r"call vqct_plugin\.hosts\.patching\.patch_host\(('[^']*')\)": r"run `vqct-patch \1`",
    r"vqct_plugin\.build_prior\b": "vqct-build-prior",
    r"vqct_plugin\.training\.launcher\.run\b": "vqct-train",
}


class _Terminal(logging.Handler):
    """Information on stdout, warnings on stderr, looked up at each record, because both may be redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(printable_lines(self.format(record)), file=stream, flush=True)


def printable_lines(text: object) -> str:
    """A text of several lines, fit for a terminal: what it quotes of a file may hold control characters."""
    return "\n".join(printable(line.replace("\t", " "), most=len(line) + 1) for line in str(text).split("\n"))


def show_messages() -> None:
    """Show the library's log messages on the terminal, once each however often this is called."""
    logger = logging.getLogger("vqct_plugin")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Terminal) for handler in logger.handlers):
        logger.addHandler(_Terminal())


def name_flags(message: object, parser: argparse.ArgumentParser, more: Optional[Mapping[str, str]] = None) -> str:
    """A message of the library with the command's flags in place of the arguments that it names.

    A function that is a command becomes the command.
    ``name=True`` becomes ``--name``, ``name='value'`` becomes ``--name value``, and the name of an argument becomes its
    flag where it has an underscore, which no English word has.

    Args:
        message: what was raised.
        parser: its flags, whose ``dest`` is the name of the argument.
        more: other phrases -> what the command calls them.

    >>> parser = argparse.ArgumentParser()
    >>> _ = parser.add_argument("-f", "--force", action="store_true")
    >>> _ = parser.add_argument("--batch-size", type=int)
    >>> name_flags("a.png exists; pass force=True to replace it", parser)
    'a.png exists; pass --force to replace it'
    >>> name_flags("build it with vqct_plugin.build_prior", parser)
    'build it with vqct-build-prior'
    >>> name_flags("batch_size is 0; expected 1 or more", parser)
    '--batch-size is 0; expected 1 or more'
    """
    text = printable_lines(message)
    for phrase, flag in (more or {}).items():
        text = text.replace(phrase, flag)
    for function, command in _COMMANDS.items():
        text = re.sub(function, command, text)
    for action in parser._actions:
        flag = next((option for option in action.option_strings if option.startswith("--")), "")
        if not flag:
            continue
        name = rf"(?<![\w./\\-]){re.escape(action.dest)}"
        text = re.sub(rf"{name}=True\b", flag, text)
        text = re.sub(rf"{name}='([^']*)'", rf"{flag} \1", text)
        text = re.sub(rf"{name}=(?=[A-Z.])", f"{flag} ", text)
        if "_" in action.dest:
            text = re.sub(rf"{name}(?![\w/\\=-]|\.\w)", flag, text)
    return text


def split_overrides(words: Sequence[str]) -> Tuple[List[str], List[str]]:
    """The words that are files or folders, and those that are ``key=value``, in the order given.

    >>> split_overrides(["logs/a", "model.params.n_embed=64"])
    (['logs/a'], ['model.params.n_embed=64'])
    """
    paths = [word for word in words if "=" not in word or os.path.exists(word)]
    return paths, [word for word in words if word not in paths]


def add_set_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """``--set key=value``, which may be repeated; every command that reads a config has it.

    It takes one word, so that what follows it may be a run.
    """
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"a change to {what}; may be repeated"
    )


def add_base_flag(parser: argparse.ArgumentParser, whose: str) -> None:
    """``--base``, for commands that load a run and may take other configs than those it keeps."""
    what = f"configs instead of {whose} own: files, or vqct:NAME of the package"
    parser.add_argument("-b", "--base", nargs="+", default=[], metavar="YAML", help=what)
