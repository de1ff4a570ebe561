"""``vqct-demo``: a small VQGAN on real photographs with three codebooks, and a table and a page at the end."""

import argparse
import sys
import time
from typing import Optional, Sequence

from vqct_plugin.commands.messages import add_set_flag, name_flags, show_messages

DESCRIPTION = """\
Train a small VQGAN on the photographs of scikit-image three times, each time with codebooks of 399 and 625 codes, and
so at equal bits: with taming's learned tables; with moving averages that restart unused codes (EMA); and as VQCT, which
is taming's YAML with model.target changed to vqct_plugin.VQModel.
It takes six to twelve minutes on two CPU cores, and uses a GPU if there is one. At the end it prints a
table and writes a page with held-out photographs and the words of their codes. If interrupted, run it again with the
same flags to resume.
"""
TILES = 3  # a photograph of 32 x 32 pixels is hard to see


def make_parser() -> argparse.ArgumentParser:
    """The command's flags, one for each argument of ``compare``."""
    parser = argparse.ArgumentParser(
        prog="vqct-demo", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the config of all models")
    add_set_flag(parser, "the config of all models")
    parser.add_argument(
        "-o",
        "--output",
        default="vqct-demo",
        metavar="DIR",
        help="each call makes a folder of its own in this one, for runs, table and page (default: vqct-demo)",
    )
    parser.add_argument("-s", "--seed", type=int, default=23, help="seed of weights and batches (default: 23)")
    parser.add_argument(
        "--max-steps", type=int, metavar="N", help="stop each training after N batches (default: the config's)"
    )
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; the exit status is 0, or 1 after an error, which is printed to stderr."""
    parser = make_parser()
    options = parser.parse_intermixed_args(argv)
    overrides = [*options.set, *options.overrides]
    begin = time.perf_counter()
    show_messages()
    print("loading PyTorch and Lightning ...", flush=True)
    try:
        from vqct_plugin.report.comparison import compare
    except ImportError as error:
        print(f"vqct-demo: {error}; install what it needs with: pip install 'vqct-plugin[demo]'", file=sys.stderr)
        return 1
    from vqct_plugin.runs.config import ConfigError, DataError

    # images of another size are large enough as they are
    tiles = 1 if any(".size=" in word for word in overrides) else TILES
    trainer = {} if options.max_steps is None else {"max_steps": options.max_steps}
    try:
        done = compare(
            overrides=overrides, output=options.output, trainer=trainer, seed=options.seed, tiles_shown=tiles
        )
    except (ConfigError, DataError, OSError) as error:
        print(f"\nvqct-demo: {name_flags(error, parser)}", file=sys.stderr)
        return 1
    print(f"\n{done.table}\n\n{done.report}: open it in a browser; it shows reconstructions of held-out photographs,")
    print("which codes are used, and their words. Its pictures are in the same folder")
    print(f"{time.perf_counter() - begin:.0f} seconds in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
