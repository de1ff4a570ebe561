"""``vqct-import-prior``: the authors' pickled prior in, a prior file out."""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from vqct_plugin.commands.messages import name_flags, printable_lines, show_messages


def make_parser() -> argparse.ArgumentParser:
    """The command's flags, one for each argument of ``import_prior``."""
    parser = argparse.ArgumentParser(
        prog="vqct-import-prior",
        description="Read a prior of the VQCT authors' layout (big_nlp_word_knowledge_clip.pkl) without running the "
        "pickle, and write it as a prior file.",
    )
    parser.add_argument("pickle_file", metavar="PICKLE", help="the authors' file")
    parser.add_argument("-o", "--output", metavar="FILE", help="prior file to write (default: PICKLE.safetensors here)")
    parser.add_argument("-f", "--force", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--plm-name",
        default="openai/clip-vit-base-patch32",
        metavar="NAME",
        help="the language model of its vectors, for the record (default: openai/clip-vit-base-patch32)",
    )
    parser.add_argument(
        "--authors-edges",
        action="store_true",
        help="connect the words as the authors' module does, for weights trained with it: of a word that is both "
        "adjective and noun, only the noun (default: both, each with its own edges, as the paper defines it)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no summary")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; the exit status is 0, or 1 after an error, which is printed to stderr."""
    parser = make_parser()
    options = vars(parser.parse_args(argv))
    quiet = options.pop("quiet")
    options["output"] = options["output"] or f"{Path(options['pickle_file']).stem}.safetensors"
    try:
        from vqct_plugin.building.imported import import_prior
        from vqct_plugin.building.report import describe_prior
    except ImportError as error:
        print(
            f"vqct-import-prior: {error}; install what it needs with: pip install 'vqct-plugin[prior]'", file=sys.stderr
        )
        return 1
    show_messages()
    try:
        prior = import_prior(**options)
    except ValueError as error:  # BuildError and PriorError
        print(f"vqct-import-prior: {name_flags(error, parser, {'overwrite=True': '--force'})}", file=sys.stderr)
        return 1
    if quiet:
        return 0
    print(printable_lines("\n".join(describe_prior(prior))))
    left_out = prior.provenance["edges_left_out"]
    if left_out:
        print(f"edges left out because a word of theirs is not a code: {left_out:,} occurrences")
    loops = prior.provenance.get("loops_left_out", 0)
    if loops:
        print(f"loops of a noun with itself left out (as GCNConv does): {loops:,} occurrences")
    print(printable_lines(f"written: {options['output']}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
