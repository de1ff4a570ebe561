"""The demo (``vqct-demo``): one taming YAML trained with three codebooks of equal bits, compared."""

import datetime
import json
import logging
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Union

from omegaconf import OmegaConf

from vqct_plugin.evaluation.figures import RunFigures
from vqct_plugin.evaluation.rates import label_rate, warn_of_rates
from vqct_plugin.evaluation.runs import evaluate_runs
from vqct_plugin.evaluation.tables import format_latex, format_table, join_parts, make_difference_rows, write_file
from vqct_plugin.report.page import choose_images, make_report
from vqct_plugin.report.pictures import draw_comparison
from vqct_plugin.report.words import encode_images
from vqct_plugin.runs.build import build_validation_set
from vqct_plugin.runs.config import ConfigError, load_config
from vqct_plugin.runs.load import Trained, load_first_stage
from vqct_plugin.training.launcher import run

__all__ = ["compare", "Comparison", "PHOTOGRAPHS"]

_log = logging.getLogger(__name__)
PHOTOGRAPHS = Path(__file__).parent.parent / "data" / "photographs_vqgan.yaml"
"""The config of ``vqct-demo``: a small stock VQGAN on scikit-image's photographs."""
ARGUMENTS = "comparison.json"  # in a comparison's folder: what it was asked for
FINISHED = "table.md"  # there too, once all else is
OURS = "model.target=vqct_plugin.VQModel"
#: name -> what is changed in the stock YAML: codebooks of the same sizes, so of the same bits. ``stock`` is taming's
#: learned table, and ``EMA`` moving averages with restarts, one for each half of the channels; ``VQCT`` the default
MODELS: Mapping[str, Sequence[str]] = {
    "stock": (OURS, "model.params.transfer=table"),
    "EMA": (
        OURS,
        "model.params.transfer={target: averages, params: {arrange_steps: 0}}",
        "model.params.combine=concat",
    ),
    "VQCT": (OURS,),
}


class Comparison(NamedTuple):
    """What :func:`compare` has made.

    Attributes:
        folder: the folder of all runs, the picture and the table.
        evaluations: the figures of each model on the validation set.
        seconds: how long each was trained.
        table: all of it, in Markdown, with the differences between runs; also in ``table.md`` and ``table.tex``.
        picture: the PNG file with reconstructions and the use of the codebooks.
        report: the page of all, see :func:`vqct_plugin.report.page.make_report`.
    """

    folder: Path
    evaluations: Dict[str, RunFigures]
    seconds: Dict[str, float]
    table: str
    picture: Path
    report: Path


def compare(
    base: Sequence[Union[str, Path]] = (PHOTOGRAPHS,),
    overrides: Sequence[str] = (),
    *,
    output: Union[str, Path] = "vqct-demo",
    trainer: Optional[Mapping[str, Any]] = None,
    seed: int = 23,
    tiles_shown: int = 1,
    models: Mapping[str, Sequence[str]] = MODELS,
) -> Comparison:
    """Train one stock taming YAML with several codebooks, and show all.

    All see the same batches. The figures are of the validation set. An interrupted comparison resumes
    when called again with the same arguments.

    Args:
        base: YAML files of a stock VQGAN; by default the small one for scikit-image's photographs.
        overrides: ``key=value``, for all.
        output: the folder in which this comparison gets a folder of its own.
        trainer: arguments of Lightning's Trainer, for all.
        seed: of all.
        tiles_shown: the factor by which images on the report's page are wider than those of validation, whose data set
            then takes a ``size``.
        models: name -> its own ``key=value``; by default :data:`MODELS`, three codebooks of the same sizes.

    Raises:
        ConfigError, DataError, OSError: as :func:`vqct_plugin.training.launcher.run`.
    """
    size_shown = _compute_size(load_config(base, [*overrides]), tiles_shown)
    arguments = {
        "base": list(map(str, base)),
        "overrides": list(overrides),
        "trainer": dict(trainer or {}),
        "seed": seed,
        "models": {name: list(more) for name, more in models.items()},
    }
    folder = _find_interrupted(Path(output), arguments) or _begin(Path(output), arguments)
    seconds: Dict[str, float] = {}
    trained: List[Trained] = []
    for name, more in models.items():
        _log.info("\n%s: %s", name, " ".join(more) if more else "the config as it is")
        resume = _find_run(folder, name)
        if resume is None:
            done = run(base, [*overrides, *more], trainer=trainer, name=name, logdir=folder, seed=seed, test=False)
        else:
            done = run(trainer=trainer, resume=resume, test=False)
        if done.trainer.interrupted:
            raise KeyboardInterrupt  # which Lightning before 2.5 keeps to itself
        seconds[name] = done.seconds
        trained.append(load_first_stage(done.folder))
    _log.info("\nwriting the report")
    report = folder / "report"
    figures = evaluate_runs(trained, report / "evaluation", names=list(seconds), progress=False)
    picture = folder / "comparison.png"
    originals = choose_images(trained[0], 8).images
    reconstructions = {name: encode_images(its.model, originals).reconstructions for name, its in zip(seconds, trained)}
    evaluations = {its.name: its for its in figures}
    titles = {its.name: label_rate(its) for its in figures}
    shown = {titles[name]: found for name, found in reconstructions.items()}
    figure = draw_comparison(originals, shown, {titles[name]: its for name, its in evaluations.items()})
    figure.savefig(picture, dpi=130)
    # an interrupted comparison may have written its page; the table is the last of all, and says that it is finished
    page = make_report(trained, figures, choose_images(trained[0], size_shown=size_shown), report, force=True)
    text = _write_table(figures, seconds, folder)
    return Comparison(folder, evaluations, seconds, text, picture, page)


def _begin(output: Path, arguments: Mapping[str, Any]) -> Path:
    """A folder of its own for a comparison, with what it was asked for."""
    folder = output / datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    try:
        folder.mkdir(parents=True)
        (folder / ARGUMENTS).write_text(json.dumps(arguments), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error}; choose another output=FOLDER") from error
    return folder


def _find_interrupted(output: Path, arguments: Mapping[str, Any]) -> Optional[Path]:
    """The newest comparison of these arguments, if it was not finished and has a checkpoint."""
    for file in sorted(output.glob(f"*/{ARGUMENTS}"), reverse=True):
        try:
            same = json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(arguments))
        except (OSError, ValueError):
            continue
        if same:
            folder = file.parent
            if (folder / FINISHED).exists() or not list(folder.glob("*/checkpoints/*.ckpt")):
                return None
            _log.info("going on with %s, which was interrupted", folder)
            return folder
    return None


def _find_run(folder: Path, name: str) -> Optional[Path]:
    """The run of this name that has a checkpoint to resume."""
    return next((file.parent.parent for file in sorted(folder.glob(f"*_{name}/checkpoints/*.ckpt"))), None)


def _compute_size(config: Any, tiles: int) -> Optional[int]:
    """The side of the images on the page; checked before the training, not after it."""
    if tiles == 1:
        return None
    params = config.data.params.validation.get("params") or {}
    if "size" not in params or tiles < 1:
        raise ConfigError(f"tiles_shown is {tiles!r}; expected 1, or more where the validation set has a size")
    side = tiles * int(params["size"])
    shown = OmegaConf.merge(config, {"data": {"params": {"validation": {"params": {"size": side}}}}})
    try:
        build_validation_set(shown)
    except ValueError as error:
        raise ConfigError(
            f"the page cannot show images {tiles} times as wide as those of validation: {error}"
        ) from error
    return side


def _write_table(figures: Sequence[RunFigures], seconds: Mapping[str, float], folder: Path) -> str:
    """``table.tex``, then ``table.md``, whose text this returns: the runs, their differences, and unequal rates."""
    rows = [_make_row(its, seconds[its.name]) for its in figures]
    differences = make_difference_rows(figures)
    tables = [rows, differences] if differences else [rows]
    rates = warn_of_rates(figures)
    text = "\n\n".join([*map(format_table, tables), *([rates] if rates else [])])
    latex = [format_latex(rows, [rates] if rates else []), *map(format_latex, tables[1:])]
    write_file(folder / "table.tex", "\n\n".join([*latex, ""]).encode())
    write_file(folder / FINISHED, f"{text}\n".encode())
    return text


def _make_row(its: RunFigures, seconds: float) -> Dict[str, str]:
    return {
        "model": its.name,
        "PSNR": f"{its.mean['psnr']:.2f} dB",
        "SSIM": f"{its.mean['ssim']:.3f}" if "ssim" in its.mean else "-",
        "codes in use": join_parts(its, lambda u: f"{u.in_use:,} of {u.codes:,}"),
        "perplexity": join_parts(its, lambda u: f"{u.perplexity:.0f}"),
        "tokens per image": f"{its.tokens:,}",
        "bits per image": f"{its.bits:,.0f}",
        "bits by entropy": f"{its.entropy:,.0f}",
        "seconds": f"{seconds:.0f}",
    }
