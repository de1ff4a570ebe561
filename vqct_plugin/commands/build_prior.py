"""``vqct-build-prior``: captions and a language model in, a prior file out."""

import argparse
import sys
from typing import List, Optional


def make_parser() -> argparse.ArgumentParser:
    """The command's flags, one for each argument of ``build_prior``."""
    parser = argparse.ArgumentParser(
        prog="vqct-build-prior",
        description="Build the word prior of a transferred codebook: adjectives and nouns of captions, an edge for "
        "each adjective right before a noun, and a language model's vectors.",
    )
    parser.add_argument("--plm", required=True, metavar="NAME_OR_FOLDER", help="language model: hub name or folder")
    parser.add_argument(
        "--captions", required=True, nargs="+", metavar="PATH", help="text, a caption a line; or Flickr token files"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the prior file to write (.safetensors)")
    parser.add_argument(
        "--plm-name",
        metavar="NAME",
        help="what the prior calls the model (default: hub name, or the folder's base name)",
    )
    parser.add_argument(
        "--caption-format",
        choices=["auto", "text", "flickr"],
        default="auto",
        help="how the captions are written (default: told from the first lines)",
    )
    parser.add_argument(
        "--min-count", type=int, default=10, metavar="N", help="keep words seen more than N times (default: 10)"
    )
    parser.add_argument(
        "--only-wordnet", action="store_true", help="keep only words that WordNet lists in that part of speech"
    )
    parser.add_argument(
        "--drop-words", metavar="FILE", help="words to leave out: 'word' or 'word adjective|noun' a line"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="what the vectors are stored as (default: float32)",
    )
    parser.add_argument("--batch-size", type=int, default=1024, metavar="N", help="words at a time (default: 1024)")
    parser.add_argument("-f", "--force", action="store_true", help="replace an existing output")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars and no summary")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; the exit status is 0, 1 for an error told on stderr, 130 for Ctrl-C."""
    options = vars(make_parser().parse_args(argv))
    quiet = options.pop("quiet")
    try:
        from vqct_plugin.building.build import build_prior  # nltk takes a while: --help answers without it
    except ImportError as error:
        print(
            f"vqct-build-prior: {error}; install what it needs with: pip install 'vqct-plugin[prior]'", file=sys.stderr
        )
        return 1
    try:
        report = build_prior(progress=not quiet, **options)
    except (ValueError, ImportError) as error:  # BuildError and PriorError are ValueErrors
        print(f"vqct-build-prior: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vqct-build-prior: interrupted; nothing was written", file=sys.stderr)
        return 130
    if not quiet:
        print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
