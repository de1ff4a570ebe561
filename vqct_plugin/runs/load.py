"""A trained model back from its run's folder, or from a config and a checkpoint."""

import io
import tempfile
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Union

from omegaconf import OmegaConf

from vqct_plugin.compat.checkpoints import CheckpointError, load_into, read_state_dict
from vqct_plugin.runs.build import build_model
from vqct_plugin.runs.checkpoints import find_checkpoint
from vqct_plugin.runs.config import ConfigError, load_config, locate_config
from vqct_plugin.state import read_prior

__all__ = ["load_run", "load_first_stage", "Trained"]


class Trained(NamedTuple):
    """A model in evaluation mode, its config, and the checkpoint that its weights come from."""

    model: Any
    config: Any
    checkpoint: Path


def load_run(
    path: Union[str, Path],
    base: Sequence[Union[str, Path]] = (),
    overrides: Sequence[str] = (),
    loss: bool = True,
) -> Trained:
    """The model of a run.

    Args:
        path: a run's folder, whose checkpoint of the highest step is taken, or a checkpoint.
        base: YAML files, or ``vqct:NAME``; by default those that the run keeps in ``configs/``.
        overrides: ``key=value`` on top of them.
        loss: False leaves a first stage's loss out, and so what it would download.

    Raises:
        ConfigError: no such run, or its config cannot be used.
        CheckpointError: the checkpoint cannot be read, or is not this config's: with the names and shapes that differ.
    """
    checkpoint = find_checkpoint(path).path
    files = [locate_config(file) for file in base] or _find_configs(checkpoint)
    config = load_config(files, overrides)
    config.pop("lightning", None)
    _drop_paths(config.model)
    if not loss and "lossconfig" in (config.model.get("params") or {}):
        config.model.params.lossconfig = {"target": "torch.nn.Identity"}
    return load_trained(config, checkpoint, ", ".join(map(str, files)))


def load_first_stage(
    path: Union[str, Path], base: Sequence[Union[str, Path]] = (), overrides: Sequence[str] = ()
) -> Trained:
    """The first stage of a run, without its loss, and without what its host prints while it is built.

    Arguments and errors as for :func:`load_run`, and ConfigError where the run is not a first stage.
    """
    checkpoint = find_checkpoint(path).path  # said before, since what is printed from here on is not shown
    with redirect_stdout(io.StringIO()):
        trained = load_run(checkpoint, base, overrides, loss=False)
    if not hasattr(trained.model, "quantize"):
        raise ConfigError(f"{path} is of a {type(trained.model).__name__}; expected a first stage, a VQGAN")
    return trained


def load_trained(config: Any, checkpoint: Path, source: str = "its config") -> Trained:
    """The model of a config with a checkpoint's weights; ``source`` is what errors call the config."""
    weights = read_state_dict(checkpoint)
    with _priors_of(config, weights):
        model = build_model(config)
    missing = sorted(set(_list_parameters(model)) - set(weights))
    if missing:
        raise CheckpointError(
            f"{checkpoint} and {source} disagree: the checkpoint has no {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; give the config that it was trained with"
        )
    load_into(model, checkpoint, weights=weights)
    return Trained(model.eval(), config, checkpoint)


def build_over_checkpoint(config: Any, checkpoint: Path, options: Dict[str, Any]) -> Any:
    """The model of a config that resumes from a checkpoint: without its weights, but over the priors that
    it holds where their files are gone.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        PriorError: it holds a damaged prior.
    """
    if not any(_is_gone(_find_prior(params)) for params in _list_stages(config).values()):
        return build_model(config, options)  # a checkpoint is large, and is read again for its weights
    with _priors_of(config, read_state_dict(checkpoint), only_missing=True):
        return build_model(config, options)


def _list_stages(config: Any) -> Dict[str, Any]:
    """The params of a config's model and of its inner models, by the prefix that each has in the model's state."""
    params = config.model.get("params") or OmegaConf.create()
    stages = {"": params}
    for name in ("first_stage", "cond_stage"):
        stage = params.get(f"{name}_config")
        if OmegaConf.is_dict(stage):
            stages[f"{name}_model."] = stage.get("params") or OmegaConf.create()
    return stages


def _find_prior(params: Any) -> Any:
    """The prior that a model's params name; None where they name none."""
    inner = params.get("quantizer_config")  # where a patched host has it
    return ((inner.get("params") or {}) if OmegaConf.is_dict(inner) else params).get("prior")


def _is_gone(named: Any) -> bool:
    return named is not None and named != "default" and not Path(str(named)).exists()


@contextmanager
def _priors_of(config: Any, weights: Mapping[str, Any], only_missing: bool = False) -> Iterator[None]:
    """Within: the config names the priors that the checkpoint holds, not the files they once came from, which may be
    gone, or others, by now. With ``only_missing`` files that are still there stay named, and a state that was made from
    another prior is refused when it is loaded."""
    before = []
    with tempfile.TemporaryDirectory() as folder:
        for prefix, own in _list_stages(config).items():
            prior = read_prior(weights, f"{prefix}quantize.")
            if prior is None:
                continue
            place, inner = own, own.get("quantizer_config")  # where a patched host has them
            if OmegaConf.is_dict(inner):
                inner.setdefault("params", {})
                place = inner.params
            named = place.get("prior")
            if only_missing and not _is_gone(named):
                continue
            file = Path(folder) / f"{prefix}safetensors"
            prior.save(file)
            before.append((place, named))
            place.prior = str(file)
        try:
            yield
        finally:
            for place, named in before:
                place.prior = named
                if named is None:
                    del place["prior"]


def _find_configs(checkpoint: Path) -> List[Path]:
    folder = checkpoint.parent.parent / "configs"
    files = sorted(folder.glob("*-project.yaml"))
    if not files:
        raise ConfigError(f"there is no config beside {checkpoint}, in {folder}; give base=YAML")
    return files


def _drop_paths(model: Any) -> None:
    """The checkpoint holds all weights, those of a stage 2's first stage too; the files they once came from may be
    elsewhere by now."""
    params = model.get("params") or OmegaConf.create()
    params.pop("ckpt_path", None)
    for name in ("first_stage_config", "cond_stage_config"):
        stage = params.get(name)
        if OmegaConf.is_dict(stage) and OmegaConf.is_dict(stage.get("params")):
            stage.params.pop("ckpt_path", None)


def _list_parameters(model: Any) -> List[str]:
    return [name for name, _ in model.named_parameters() if not name.startswith("loss.")]
