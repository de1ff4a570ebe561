"""``vqct-train``: taming's launcher with the same flags, on today's Lightning."""

import argparse
import json
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

from vqct_plugin.commands.messages import add_set_flag, name_flags, show_messages, split_overrides

DESCRIPTION = """\
Train a taming-transformers YAML, stock or VQCT, on today's Lightning.

  vqct-train --base configs/custom_vqgan.yaml -t True --gpus 0, model.target=vqct_plugin.VQModel
  vqct-train --base vqct:cub_vqct.yaml vqct:over/paper.yaml --gpus 0, ...

vqct:NAME is a config of the package; a wrong NAME lists them all.

KEY=VALUE with dots, or --set KEY=VALUE, overrides the config. --key value is an argument of Lightning's Trainer, such
as --max_epochs 10, --accelerator, --devices, --num_nodes, --strategy, --precision.
"""


def make_parser() -> argparse.ArgumentParser:
    """The command's flags: taming's own, one for each argument of ``run``, and ``--set``."""
    parser = argparse.ArgumentParser(
        prog="vqct-train",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --no is no --no-test; an unknown flag is one of the Trainer's
    )
    parser.add_argument(
        "-b",
        "--base",
        nargs="*",
        default=[],
        metavar="YAML",
        help="configs, files or vqct:NAME; later ones override earlier ones",
    )
    add_set_flag(parser, "the config")
    parser.add_argument("-n", "--name", default="", help="name of the run (default: that of the first config)")
    parser.add_argument("-f", "--postfix", default="", help="appended to the name")
    parser.add_argument(
        "-r",
        "--resume",
        nargs="?",
        const=True,
        default=None,
        metavar="RUN",
        help="resume a run: its folder, or a checkpoint in it; alone, the newest run of --logdir that has a checkpoint",
    )
    parser.add_argument("-l", "--logdir", default="logs", metavar="DIR", help="folder of the runs (default: logs)")
    parser.add_argument(
        "-s",
        "--seed",
        type=int,
        default=None,
        help="seed of weights, batches and dropout (default: 23; a resumed run keeps its own)",
    )
    _add_boolean_flag(parser, "-t", "--train", default=True, help="train")
    _add_boolean_flag(parser, "--no-test", default=False, help="do not test after training")
    parser.add_argument(
        "--check",
        action="store_true",
        help="check configs, devices, data, loggers and model, print a summary, and stop; nothing is written",
    )
    parser.add_argument(
        "--schema",
        action="store_true",
        help="print a JSON schema of the YAML, with which an editor completes and checks one, and stop",
    )
    parser.add_argument("--gpus", default=None, metavar="LIST", help="indices of GPUs, as taming takes them: 0, or 0,1")
    _add_boolean_flag(parser, "-d", "--debug", default=False, help="open the debugger at an error")
    return parser


def _add_boolean_flag(parser: argparse.ArgumentParser, *names: str, default: bool, help: str) -> None:
    """A flag as taming has them: alone it means true, and it takes true or false."""
    parser.add_argument(
        *names,
        type=_true_or_false,
        nargs="?",
        const=True,
        default=default,
        metavar="BOOL",
        help=f"{help} (default: {str(default).lower()})",
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; the exit status is 0, or 1 after an error, which is printed to stderr."""
    parser = make_parser()
    options, rest = parser.parse_known_args(argv)
    show_messages()
    # `--base a.yaml key=value`: argparse takes both for files
    base, swallowed = split_overrides(options.base)
    try:
        if options.schema:
            from vqct_plugin.training.schema import make_schema

            print(json.dumps(make_schema(), indent=1))
            return 0
        from vqct_plugin.training.launcher import check, run
    except ImportError as error:
        print(f"vqct-train: {error}; install what it needs with: pip install 'vqct-plugin[train]'", file=sys.stderr)
        return 1
    from vqct_plugin.runs.config import ConfigError, DataError

    try:
        trainer, overrides = split(rest)
        resume = options.resume
        if isinstance(resume, str) and split_overrides([resume])[1]:  # `-r key=value`: argparse takes it for a run
            overrides, resume = [resume, *overrides], True
        keywords: Dict[str, Any] = {
            "trainer": trainer,
            "gpus": options.gpus,
            "name": options.name,
            "postfix": options.postfix,
            "resume": resume,
            "logdir": options.logdir,
            "seed": options.seed,
            "train": options.train,
        }
        overrides = [*options.set, *swallowed, *overrides]
        if options.check:
            print(check(base, overrides, **keywords))
        else:
            run(base, overrides, **keywords, test=not options.no_test)
    except (ConfigError, DataError, OSError) as error:
        if options.debug:
            _post_mortem()
        print(f"\nvqct-train: {name_flags(error, parser)}", file=sys.stderr)
        return 1
    except Exception:
        if options.debug:
            _post_mortem()
        raise
    return 0


def split(words: Sequence[str]) -> Tuple[Dict[str, Any], List[str]]:
    """``--key value`` and ``--key=value`` for the Trainer, and ``key=value`` for the config.

    >>> split(["--max_epochs", "3", "--fast-dev-run", "model.params.n_embed=64", "--precision=bf16-mixed"])
    ({'max_epochs': 3, 'fast_dev_run': True, 'precision': 'bf16-mixed'}, ['model.params.n_embed=64'])
    """
    import yaml

    trainer: Dict[str, Any] = {}
    overrides: List[str] = []
    waiting: Optional[str] = None  # a --key whose value may follow
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            trainer[key] = yaml.safe_load(value) if equals else True
            waiting = None if equals else key
        elif waiting is not None and "=" not in word:
            trainer[waiting] = yaml.safe_load(word)
            waiting = None
        else:
            overrides.append(word)
            waiting = None
    return trainer, overrides


def _true_or_false(word: str) -> bool:
    known = {"yes": True, "true": True, "t": True, "y": True, "1": True}
    known.update({"no": False, "false": False, "f": False, "n": False, "0": False})
    if word.lower() not in known:
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return known[word.lower()]


def _post_mortem() -> None:
    import pdb

    pdb.post_mortem(sys.exc_info()[2])


if __name__ == "__main__":
    sys.exit(main())
