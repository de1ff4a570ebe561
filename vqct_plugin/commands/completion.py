"""``vqct-completion``: what makes a shell complete the flags of all our commands."""

import argparse
import importlib
import sys
from typing import List, Optional

#: the commands, by their files
COMMANDS = ("train", "build_prior", "import_prior", "evaluate", "report", "sample", "patch", "demo", "completion")
SHELLS = ("bash", "zsh", "tcsh")

DESCRIPTION = """\
Print what makes a shell complete the flags of all our commands. In ~/.bashrc or, behind compinit, in ~/.zshrc:

  eval "$(vqct-completion bash)"
"""


def make_parser() -> argparse.ArgumentParser:
    """The command's flags: the shell."""
    parser = argparse.ArgumentParser(
        prog="vqct-completion", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell to complete in")
    return parser


def make_completion(shell: str) -> str:
    """The lines for a shell, of all commands.

    Raises:
        ImportError: shtab is not installed.
    """
    import shtab

    scripts = []
    for command in COMMANDS:
        parser = importlib.import_module(f"vqct_plugin.commands.{command}").make_parser()
        for action in parser._actions:
            if action.nargs == 0 or action.choices or action.type in (int, float):
                continue
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
        scripts.append(shtab.complete(parser, shell))
    return "\n".join(scripts)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; the exit status is 0, or 1 after an error, which is printed to stderr."""
    options = make_parser().parse_args(argv)
    try:
        print(make_completion(options.shell))
    except ImportError as error:
        print(f"vqct-completion: {error}; install it with: pip install 'vqct-plugin[completion]'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
