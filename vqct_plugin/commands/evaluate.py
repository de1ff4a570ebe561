"""``vqct-evaluate``: how good trained models are, side by side."""

import argparse
import sys
from typing import Any, Dict, List, Optional

from vqct_plugin.commands.messages import add_base_flag, add_set_flag, name_flags, show_messages, split_overrides


def make_parser() -> argparse.ArgumentParser:
    """The command's flags, one for each argument of ``evaluate_runs``."""
    parser = argparse.ArgumentParser(
        prog="vqct-evaluate",
        description="PSNR, SSIM, MS-SSIM, L1, LPIPS, reconstruction FID, inception score, a Fréchet distance over "
        "EfficientNet-Lite0 and use of the codebook of one or several trained first stages, stock or VQCT, on the "
        "same images. An interrupted evaluation resumes where it stopped.",
    )
    add_evaluation_flags(parser)
    parser.add_argument(
        "-o", "--output", default="evaluation", metavar="DIR", help="folder for tables and shards (default: evaluation)"
    )
    return parser


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """What to evaluate, and how."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or a checkpoint in one; KEY=VALUE works like --set"
    )
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="NAME", help="names of the runs in tables (default: their folders)"
    )
    add_base_flag(parser, "the runs'")
    add_set_flag(parser, "the runs' configs")
    parser.add_argument("--images", metavar="PATH", help="a folder or list file (default: the config's validation set)")
    parser.add_argument(
        "--size", type=int, help="side of the squares that --images are cropped to (default: the model's resolution)"
    )
    parser.add_argument(
        "--protocol",
        default="plain",
        choices=["plain", "vqct"],
        help="vqct: JPEG files and SSIM on luminance, as the authors measured (default: plain)",
    )
    parser.add_argument(
        "--weights", metavar="DIR", help="folder with the weights of LPIPS and FID (default: $VQCT_WEIGHTS)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images processed at a time (default: 16)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that read images (default: 0, the main process)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="processes that share the shards, one per GPU, or all on the CPU (default: 1)",
    )
    parser.add_argument(
        "--precision", default="32", choices=["32", "bf16", "16"], help="precision of the model (default: 32)"
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=512,
        help="images per shard; finished shards are kept when the command is interrupted (default: 512)",
    )
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out images that cannot be read, and list them (default: an error at the end)",
    )
    parser.add_argument("--limit", type=int, help="evaluate only the first N images", metavar="N")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def evaluation_arguments(options: Dict[str, Any]) -> Dict[str, Any]:
    """The flags as ``evaluate_runs`` takes them."""
    runs, positional = split_overrides(options["runs"])
    base, after_base = split_overrides(options["base"])
    if not runs:
        raise ValueError(
            f"there is no run, only {' '.join(positional)}; expected a run's folder, or a checkpoint in one"
        )
    return {
        **{name: value for name, value in options.items() if name not in ("set", "quiet")},
        "runs": runs,
        "base": tuple(base),
        "overrides": (*options["set"], *after_base, *positional),
        "progress": not options["quiet"],
    }


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; the exit status is 0, or 1 after an error, which is printed to stderr."""
    parser = make_parser()
    options = vars(parser.parse_intermixed_args(argv))
    show_messages()
    try:
        from vqct_plugin.evaluation.runs import evaluate_runs
        from vqct_plugin.evaluation.tables import FILES, format_tables
    except ImportError as error:
        print(
            f"vqct-evaluate: {error}; install what it needs with: pip install 'vqct-plugin[eval]'",
            file=sys.stderr,
        )
        return 1
    try:
        figures = evaluate_runs(**evaluation_arguments(options))
    except (ValueError, OSError, ImportError) as error:
        print(f"vqct-evaluate: {name_flags(error, parser)}", file=sys.stderr)
        return 1
    print(format_tables(figures))
    print(f"in {options['output']}: {', '.join(FILES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
