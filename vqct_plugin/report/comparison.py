"""The main job of the README: one taming YAML trained twice, stock and with our target, and the two side by side."""

import datetime
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Union

import torch
from omegaconf import OmegaConf

from vqct_plugin.evaluation.metrics import Evaluation, evaluate
from vqct_plugin.evaluation.tables import format_table
from vqct_plugin.report.page import make_report
from vqct_plugin.report.pictures import comparison
from vqct_plugin.runs.build import build_validation_set
from vqct_plugin.runs.config import ConfigError, load_config
from vqct_plugin.training.launcher import run

PHOTOGRAPHS = Path(__file__).parent.parent / "data" / "photographs_vqgan.yaml"
OURS = "model.target=vqct_plugin.VQModel"


class Comparison(NamedTuple):
    """What :func:`compare` has made.

    Attributes:
        folder: the folder of both runs, the picture and the table.
        evaluations: the figures of each model on the validation set.
        seconds: how long each was trained.
        table: all of it, in Markdown; also in ``table.md``.
        picture: the PNG file with reconstructions and the use of the codebooks.
        report: the page of both, see :func:`vqct_plugin.report.page.make_report`.
    """

    folder: Path
    evaluations: Dict[str, Evaluation]
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
) -> Comparison:
    """Train a stock taming YAML, then the same with ``model.target: vqct_plugin.VQModel``, and show both.

    Both see the same batches. The figures are of the validation set.

    Args:
        base: YAML files of a stock VQGAN; by default the small one for scikit-image's photographs.
        overrides: ``key=value``, for both.
        output: the folder in which this comparison gets a folder of its own.
        trainer: arguments of Lightning's Trainer, for both.
        seed: of both.
        tiles_shown: the images on the report's page are so many times as wide as those of validation, whose data set
            then takes a ``size``.

    Raises:
        ConfigError, DataError, OSError: as :func:`vqct_plugin.training.launcher.run`.
    """
    size_shown = _size_shown(load_config(base, [*overrides]), tiles_shown)
    folder = Path(output) / datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error}; choose another with --output") from error
    evaluations: Dict[str, Evaluation] = {}
    seconds: Dict[str, float] = {}
    reconstructions: Dict[str, torch.Tensor] = {}
    folders: List[Path] = []
    for name, more in (("stock", []), ("VQCT", [OURS])):
        print(f"\n{name}: {' '.join(more) if more else 'the config as it is'}", flush=True)
        begin = time.perf_counter()
        done = run(base, [*overrides, *more], trainer=trainer, name=name, logdir=folder, seed=seed, test=False)
        seconds[name] = time.perf_counter() - begin
        folders.append(done.folder)
        done.model.eval()
        evaluations[name] = evaluate(done.model, done.trainer.datamodule.val_dataloader())
        originals = _examples(done)
        with torch.no_grad():
            reconstructions[name] = done.model(originals)[0]
    rows = [_row(name, evaluations[name], seconds[name], originals.shape) for name in evaluations]
    text = format_table(rows)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    picture = folder / "comparison.png"
    comparison(originals, reconstructions, evaluations).savefig(picture, dpi=130)
    print("\nwriting the report", flush=True)
    report = make_report(
        folders, folder / "report", names=list(evaluations), size_shown=size_shown, workers=0, progress=False
    )
    return Comparison(folder, evaluations, seconds, text, picture, report)


def _size_shown(config: Any, tiles: int) -> Optional[int]:
    """The side of the images on the page; refused before the training, not after it."""
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


def _examples(done: Any, number: int = 8) -> torch.Tensor:
    """Images of the validation set, spread over it."""
    dataset = done.trainer.datamodule.datasets["validation"]
    number = min(number, len(dataset))
    places = [(2 * i + 1) * len(dataset) // (2 * number) for i in range(number)]
    batch = torch.utils.data.default_collate([dataset[i] for i in places])
    device = next(done.model.parameters()).device
    images: torch.Tensor = done.model.get_input(batch, done.model.image_key).to(device)
    return images


def _row(name: str, evaluation: Evaluation, seconds: float, shape: Sequence[int]) -> Dict[str, str]:
    parts: List[str] = list(evaluation.usage)
    tokens = sum(usage.tokens for usage in evaluation.usage.values()) // evaluation.images
    in_use = [f"{u.in_use:,} of {u.codes:,}{_of(part)}" for part, u in evaluation.usage.items()]
    return {
        "model": name,
        "PSNR": f"{evaluation.psnr:.2f} dB",
        "SSIM": f"{evaluation.ssim:.3f}",
        "codes in use": ", ".join(in_use),
        "perplexity": ", ".join(f"{evaluation.usage[part].perplexity:.0f}{_of(part)}" for part in parts),
        "tokens an image": f"{tokens:,}",
        "seconds": f"{seconds:.0f}",
    }


def _of(part: str) -> str:
    return "" if part == "codes" else f" {part}s"
