"""``vqct-report``: a page that shows how trained models reconstruct images."""

import argparse
import sys
from typing import List, Optional

from vqct_plugin.commands.evaluate import add_evaluation_flags, evaluation_arguments
from vqct_plugin.commands.messages import name_flags, show_messages


def make_parser() -> argparse.ArgumentParser:
    """The command's flags, one for each argument of ``report_runs``."""
    parser = argparse.ArgumentParser(
        prog="vqct-report",
        description="Evaluate trained first stages, stock or VQCT, and write one self-contained page: "
        "the table, reconstructions with error maps, which codes are used, the words of every position, a search for "
        "words, the code space before and after transfer, and learning curves.",
    )
    add_evaluation_flags(parser)
    parser.add_argument("--images-shown", type=int, default=24, metavar="N", help="images on the page (default: 24)")
    parser.add_argument(
        "--size-shown", type=int, metavar="PIXELS", help="side of the images on the page (default: as evaluated)"
    )
    parser.add_argument(
        "--words",
        nargs="+",
        default=[],
        metavar="WORD",
        help="words whose nearest words to show (default: the most used)",
    )
    parser.add_argument(
        "-o", "--output", default="report", metavar="DIR", help="folder for the page and its pictures (default: report)"
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace an existing report")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; the exit status is 0, or 1 after an error, which is printed to stderr."""
    parser = make_parser()
    options = vars(parser.parse_intermixed_args(argv))
    show_messages()
    try:
        from vqct_plugin.report.page import report_runs
    except ImportError as error:
        print(f"vqct-report: {error}; install what it needs with: pip install 'vqct-plugin[eval]'", file=sys.stderr)
        return 1
    try:
        page = report_runs(**evaluation_arguments(options))
    except (ValueError, OSError, ImportError) as error:
        print(f"vqct-report: {name_flags(error, parser)}", file=sys.stderr)
        return 1
    print(f"{page}: open it in a browser; the file is self-contained. Its pictures and evaluation/ are beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
