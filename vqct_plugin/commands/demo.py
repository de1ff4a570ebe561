"""``vqct-demo``: a small VQGAN on real photographs, stock and VQCT, with a table and a picture at the end."""

import argparse
import time
from typing import Optional, Sequence

from vqct_plugin.commands.messages import add_set_flag, show_messages

DESCRIPTION = """\
Train a small VQGAN on the photographs of scikit-image twice: with taming's own quantizer, and with nothing but
model.target changed to vqct_plugin.VQModel. Takes about five minutes on two CPU cores, and uses a GPU if there is one.
At the end it prints a table and writes a page with held-out photographs and the words of their codes. Interrupted, it
goes on where it was when it is called again with the same flags.
"""
TILES = 3  # a photograph of 32 x 32 pixels is hard to see


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        prog="vqct-demo", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-o",
        "--output",
        default="vqct-demo",
        metavar="FOLDER",
        help="folder for everything the command writes (vqct-demo)",
    )
    parser.add_argument("-s", "--seed", type=int, default=23, help="seed of weights and batches (23)")
    parser.add_argument(
        "--max_steps",
        type=int,
        default=None,
        metavar="N",
        help="stop training after N batches, an argument of Lightning's Trainer",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the config of both models")
    add_set_flag(parser, "the config of both models")
    options = parser.parse_intermixed_args(arguments)
    overrides = [*options.set, *options.overrides]
    begin = time.perf_counter()
    show_messages()
    print("loading PyTorch and Lightning ...", flush=True)
    try:
        from vqct_plugin.report.comparison import compare
    except ImportError as error:
        parser.exit(1, f"vqct-demo: {error}; install it with pip install 'vqct-plugin[demo]'\n")
    from vqct_plugin.runs.config import ConfigError, DataError

    # images of another size are large enough as they are
    tiles = 1 if any(".size=" in word for word in overrides) else TILES
    trainer = {} if options.max_steps is None else {"max_steps": options.max_steps}
    try:
        done = compare(
            overrides=overrides, output=options.output, trainer=trainer, seed=options.seed, tiles_shown=tiles
        )
    except (ConfigError, DataError, OSError) as error:
        parser.exit(1, f"\nvqct-demo: {error}\n")
    print(f"\n{done.table}\n\n{done.report}: open it in a browser; it shows reconstructions of held-out photographs,")
    print("which codes are used, and their words. Its pictures are in the same folder")
    print(f"{time.perf_counter() - begin:.0f} seconds in all")


if __name__ == "__main__":
    main()
