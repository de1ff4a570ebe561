"""A trained run as a folder for the hub, and on it: config as JSON, weights as safetensors, and a model card."""

import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

from vqct_plugin._files import printable
from vqct_plugin.compat.cards import (
    describe_codebook,
    describe_data,
    describe_figures,
    describe_words,
    format_card,
    shorten,
)
from vqct_plugin.compat.checkpoints import read_state_dict, read_step
from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.hub import CONFIG, WEIGHTS, HubError
from vqct_plugin.compat.pretrained import format_config, push_written, to_safetensors, write_folder
from vqct_plugin.runs.config import load_config
from vqct_plugin.runs.load import Trained, find_configs, load_run
from vqct_plugin.runs.published import FORM, find_published

__all__ = ["save_run", "push_run"]

Run = Union[str, Path, Trained]
Figures = Union[None, str, Path, Mapping[str, Any]]


def save_run(
    run: Run, folder: Union[str, Path], figures: Figures = None, loss: bool = False, overwrite: bool = False
) -> None:
    """Write a trained run as the hub has it: ``config.json``, ``model.safetensors``, and ``README.md``, the card.

    :func:`vqct_plugin.load_run` loads it again, with the same reconstructions. The model is built once, without its
    loss, to see that it does. Of absolute paths in the config only the last part is kept.

    Args:
        run: a run's folder or a checkpoint; or what :func:`vqct_plugin.load_run` gave.
        folder: made where it is not there.
        figures: for the card: what ``vqct-evaluate`` wrote, its folder or its ``figures.json``; or the record of one
            run in it.
        loss: keep the loss's weights too, the discriminator's and LPIPS's, of a run given by its path.
        overwrite: replace the files that are there. A card is never replaced: it is yours to edit.

    Raises:
        ConfigError, CheckpointError: the run cannot be loaded.
        vqct_plugin.compat.hub.HubError: the figures are of other runs, or the folder cannot be written.
    """
    measured = None if figures is None else _choose_figures(figures, run)
    trained = run if isinstance(run, Trained) else load_run(run, loss=False)
    weights = dict(trained.model.state_dict())
    config = to_plain(trained.config)
    if not isinstance(run, Trained):
        published = find_published(run)
        original = load_config(find_configs(trained.checkpoint)) if published is None else published.config
        _take_loss(config, to_plain(original), weights, trained.checkpoint if loss else None)
    step = read_step(trained.checkpoint)
    has_loss = any(name.startswith("loss.") for name in weights)
    shown = _without_folders({"model": config["model"], "data": config.get("data") or {}})
    files = {
        WEIGHTS: to_safetensors(weights, **({"step": str(step)} if step >= 0 else {})),
        CONFIG: format_config(FORM, {"step": step, "loss": has_loss, "config": shown}),
    }
    write_folder(folder, files, _format_card(trained.model, shown, step, measured), overwrite)


def push_run(
    run: Run,
    repo_id: str,
    figures: Figures = None,
    loss: bool = False,
    private: Optional[bool] = None,
    token: Any = None,
    revision: Optional[str] = None,
    message: Optional[str] = None,
    card: Optional[str] = None,
) -> str:
    """Put a trained run on the hub, in one commit, whose address is returned.

    Args:
        run, figures, loss: as for :func:`save_run`.
        repo_id, private, token, revision, message, card: as for
            :meth:`vqct_plugin.CodebookPrior.push_to_hub`. A card that the repository has is left alone, unless ``card``
            is another.

    Raises:
        ConfigError, CheckpointError: the run cannot be loaded.
        vqct_plugin.compat.hub.HubError: it could not be put there.
    """
    where = {"private": private, "token": token, "revision": revision, "message": message}
    with tempfile.TemporaryDirectory() as folder:
        save_run(run, folder, figures, loss)
        return push_written(Path(folder), repo_id, card, where, "a run")


def _take_loss(
    config: Dict[str, Any], original: Mapping[str, Any], weights: Dict[str, Any], checkpoint: Optional[Path]
) -> None:
    """What loading without the loss left out: its config, which says how the run was trained, and its weights, where
    there is a checkpoint to have them from."""
    params = original["model"].get("params") or {}
    if "lossconfig" in params:
        config["model"]["params"]["lossconfig"] = params["lossconfig"]
    if checkpoint is not None:
        kept = read_state_dict(checkpoint).items()
        weights.update((name, value) for name, value in kept if name.startswith("loss."))


def _without_folders(value: Any) -> Any:
    """A config without the folders of absolute paths, which are of somebody's machine."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    is_path = isinstance(value, str) and (value.startswith(("/", "~", "\\")) or value[1:3] in (":\\", ":/"))
    return shorten(value) if is_path else value


def _choose_figures(figures: Any, run: Run) -> Mapping[str, Any]:
    if isinstance(figures, Mapping):
        return figures
    file = Path(figures)
    file = file / "figures.json" if file.is_dir() else file
    try:
        records: List[Any] = json.loads(file.read_text(encoding="utf-8"))
        by_name = {str(record["model"]): record for record in records}
        if not by_name:
            raise ValueError("it has no figures")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HubError(f"figures: {file} is none that vqct-evaluate wrote: {printable(error)}") from error
    if len(by_name) == 1:
        return next(iter(by_name.values()))
    path = Path(run.checkpoint if isinstance(run, Trained) else run).absolute()
    name = next((parent.name for parent in (path, *path.parents[:2]) if parent.name in by_name), None)
    if name is None:
        raise HubError(
            f"figures: {file} has the runs {', '.join(by_name)}, none of them {path.name}; pass the record of one, "
            "json.load(file)[i]"
        )
    return by_name[name]


def _format_card(model: Any, config: Mapping[str, Any], step: int, figures: Optional[Mapping[str, Any]]) -> str:
    use = (
        'import vqct_plugin\n\nmodel = vqct_plugin.load_run("user/name").model  # of '
        f"{printable(config['model']['target'])}"
    )
    quantizer: Any = getattr(model, "quantize", None)
    if quantizer is None:
        quantizer = getattr(getattr(model, "first_stage_model", None), "quantize", None)
    sections, over = [describe_figures(figures)] if figures is not None else [], ""
    if getattr(quantizer, "prior", None) is not None and hasattr(quantizer, "settings"):
        sections += [describe_codebook(quantizer), describe_words(quantizer.prior)]
        over = " of words"
    title = f"A VQGAN with a codebook{over}" if hasattr(model, "quantize") else f"A transformer over a codebook{over}"
    return format_card(title, "image-tokenizer", use, [*sections, describe_data(config, step)])
