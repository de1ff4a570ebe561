"""``vqct-report``: what trained models make of images, on one page."""

import argparse
import sys
from typing import List, Optional

from vqct_plugin.commands.evaluate import add_evaluation_flags, evaluation_arguments


def make_parser() -> argparse.ArgumentParser:
    """The command's flags, one for each argument of ``report_runs``."""
    parser = argparse.ArgumentParser(
        prog="vqct-report",
        description="Evaluate trained first stages, stock or VQCT, and write one page that holds all it shows: "
        "the table, reconstructions with error maps, which codes are used, the words of every position, a search for "
        "words, the code space before and after transfer, and learning curves.",
    )
    add_evaluation_flags(parser)
    parser.add_argument("--images_shown", type=int, default=24, metavar="N", help="images on the page (24)")
    parser.add_argument("--size_shown", type=int, metavar="PIXELS", help="their side, where not that of the evaluation")
    parser.add_argument(
        "--words", nargs="+", default=[], metavar="WORD", help="whose neighbours to show (the most used)"
    )
    parser.add_argument(
        "-o", "--output", default="report", metavar="DIR", help="for the page and its pictures (report)"
    )
    parser.add_argument("--force", action="store_true", help="write over a report that is there")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; the exit status is 0, or 1 for an error told on stderr."""
    options = vars(make_parser().parse_args(argv))
    try:
        from vqct_plugin.report.page import report_runs
    except ImportError as error:
        print(f"vqct-report: {error}; install what it needs with: pip install 'vqct-plugin[eval]'", file=sys.stderr)
        return 1
    try:
        page = report_runs(**evaluation_arguments(options))
    except (ValueError, OSError) as error:
        print(f"vqct-report: {error}", file=sys.stderr)
        return 1
    print(f"{page}: open it in a browser; it holds all it shows. Its pictures, and evaluation/, are beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
