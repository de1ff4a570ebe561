"""``vqct-sample``: images from a stage-2 checkpoint."""

import argparse
import sys
from pathlib import Path
from typing import Any, List, Optional

from vqct_plugin.commands.messages import add_base_flag, add_set_flag, name_flags, show_messages, split_overrides


def make_parser() -> argparse.ArgumentParser:
    """The command's flags, one for each argument of ``load_run`` and ``draw_samples``."""
    parser = argparse.ArgumentParser(
        prog="vqct-sample",
        description="Draw images from a stage 2, taming's Net2NetTransformer or vqct_plugin's, on any first stage.",
        epilog="KEY=VALUE arguments after the run are merged into its config, as with vqct-train.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint in one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the run's config")
    add_set_flag(parser, "the run's config")
    add_base_flag(parser, "the run's")
    parser.add_argument(
        "-o", "--output", default="samples", metavar="DIR", help="a new or empty folder (default: samples)"
    )
    parser.add_argument(
        "-n", "--number", type=int, default=16, help="number of images, for each class or condition (default: 16)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images drawn at a time (default: 8)")
    parser.add_argument(
        "--size", metavar="HxW", help="size of the images in pixels (default: the first stage's resolution)"
    )
    parser.add_argument("-t", "--temperature", type=float, default=1.0, help="divides the logits (default: 1.0)")
    parser.add_argument("-k", "--top-k", type=int, help="draw from the k most likely codes (default: all)")
    parser.add_argument(
        "-p", "--top-p", type=float, help="draw from the most likely codes with this total probability (default: all)"
    )
    parser.add_argument("-s", "--seed", type=int, default=23, help="seed of the random numbers (default: 23)")
    parser.add_argument("-c", "--classes", metavar="0,1,2", help="classes, for a class-conditional model")
    parser.add_argument(
        "--conditions", type=int, metavar="N", help="for a model conditioned on pictures: the first N validation items"
    )
    parser.add_argument("--no-grid", action="store_true", help="write no grid, only single images")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; the exit status is 0, or 1 after an error, which is printed to stderr."""
    parser = make_parser()
    options = parser.parse_intermixed_args(argv)
    show_messages()
    try:
        import torch

        from vqct_plugin.runs.load import load_run
        from vqct_plugin.stage_2.samples import draw_samples
    except ImportError as error:
        print(f"vqct-sample: {error}; install what it needs with: pip install 'vqct-plugin[train]'", file=sys.stderr)
        return 1
    try:
        base, after_base = split_overrides(options.base)
        runs, positional = split_overrides([options.run, *options.overrides])
        if len(runs) != 1:
            found = " and ".join(runs) or "only " + " ".join(positional)
            raise ValueError(f"expected one run, its folder or a checkpoint in it, but there is {found}")
        trained = load_run(runs[0], base, [*options.set, *after_base, *positional])
        model = trained.model.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if not hasattr(model, "first_stage_model"):
            raise ValueError(f"{trained.checkpoint} is a {type(model).__name__}, a first stage; expected a stage 2")
        samples = draw_samples(
            model,
            options.output,
            options.number,
            batch_size=options.batch_size,
            size=_size(options.size),
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            classes=_classes(options.classes),
            conditions=_conditions(trained.config, options.conditions),
            grid=not options.no_grid,
            progress=not options.quiet,
        )
    except (ValueError, OSError, RuntimeError) as error:
        more = {"conditions=ITEMS of a data set that have it": "--conditions N"}
        print(f"vqct-sample: {name_flags(error, parser, more)}", file=sys.stderr)
        return 1
    print(f"{len(samples.files)} images in {Path(options.output)}, tokens drawn in {samples.seconds:.1f} s")
    if samples.grid is not None:
        print(f"together: {samples.grid}")
    return 0


def _size(text: Optional[str]) -> Optional[List[int]]:
    if text is None:
        return None
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--size is {text!r}; expected height and width in pixels, such as 256x256") from None
    return [height, width]


def _classes(text: Optional[str]) -> List[int]:
    try:
        return [int(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--classes is {text!r}; expected numbers with commas, such as 0,1,2") from None


def _conditions(config: Any, number: Optional[int]) -> Optional[List[Any]]:
    if number is None:
        return None
    from vqct_plugin.runs.build import build_validation_set
    from vqct_plugin.runs.config import DataError

    items = build_validation_set(config)
    if number < 1 or number > len(items):
        raise DataError(f"--conditions is {number}; expected 1 to {len(items)}, the validation items")
    return [items[i] for i in range(number)]


if __name__ == "__main__":
    sys.exit(main())
