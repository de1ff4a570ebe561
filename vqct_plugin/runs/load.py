"""A trained model back from its run's folder, or from a config and a checkpoint."""

import inspect
import io
import logging
import tempfile
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Union

from omegaconf import OmegaConf

from vqct_plugin.codebook import choose_combine, takes_whole_codes
from vqct_plugin.compat.checkpoints import CheckpointError, load_into, read_state_dict
from vqct_plugin.compat.containers import to_plain
from vqct_plugin.hosts.target import choose_model, is_of_a_model
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.runs.build import build_model
from vqct_plugin.runs.checkpoints import find_checkpoint
from vqct_plugin.runs.config import ConfigError, find, load_config, locate_config, read_config
from vqct_plugin.runs.published import Published, find_published
from vqct_plugin.state import CHANGED, read_prior, read_settings

__all__ = ["load_run", "load_first_stage", "Trained"]

_log = logging.getLogger(__name__)
_NONE = inspect.Parameter.empty


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
    trusted: Sequence[str] = (),
    **where: Any,
) -> Trained:
    """The model of a run.

    Args:
        path: a run's folder, whose checkpoint of the highest step is taken, or a checkpoint; or a folder that
            :func:`~vqct_plugin.runs.publish.save_run` wrote, or its name on the hub, ``user/name`` or
            ``user/name@revision``.
        base: YAML files, or ``vqct:NAME``; by default those that the run keeps in ``configs/``.
        overrides: ``key=value`` on top of them.
        loss: False leaves a first stage's loss out, and so what it would download. It is left out of a run from the
            hub that was put there without it.
        trusted: packages, beside ``vqct_plugin``, ``taming`` and ``ldm``, whose classes the config of a run from the
            hub may name: they are imported and run.
        where: of a name on the hub ``revision``, ``cache_dir``, ``token`` and ``local_files_only``, as for
            :meth:`vqct_plugin.CodebookPrior.from_pretrained`.

    Raises:
        ConfigError: no such run, or its config cannot be used.
        CheckpointError: the checkpoint cannot be read, or is not this config's: with the names and shapes that differ.
    """
    published = find_published(path, trusted, **where)
    return _load(path, published, base, overrides, loss)


def load_first_stage(
    path: Union[str, Path], base: Sequence[Union[str, Path]] = (), overrides: Sequence[str] = ()
) -> Trained:
    """The first stage of a run, without its loss, and without what its host prints while it is built.

    Arguments and errors as for :func:`load_run`, and ConfigError where the run is not a first stage.
    """
    published = find_published(path)
    # said before, since what is printed from here on is not shown
    checkpoint = find_checkpoint(path).path if published is None else published.checkpoint
    with redirect_stdout(io.StringIO()):
        trained = _load(checkpoint, published, base, overrides, loss=False)
    if not hasattr(trained.model, "quantize"):
        raise ConfigError(f"{path} is of a {type(trained.model).__name__}; expected a first stage, a VQGAN")
    return trained


def _load(
    path: Union[str, Path],
    published: Optional[Published],
    base: Sequence[Union[str, Path]],
    overrides: Sequence[str],
    loss: bool,
) -> Trained:
    files = [locate_config(file) for file in base]
    if published is None:
        checkpoint = find_checkpoint(path).path
        files = files or find_configs(checkpoint)
    else:
        checkpoint, loss = published.checkpoint, loss and published.loss
    config = load_config(files if files or published is None else [published.config], overrides)
    config.pop("lightning", None)
    drop_paths(config.model)
    if not loss and "lossconfig" in (config.model.get("params") or {}):
        config.model.params.lossconfig = {"target": "torch.nn.Identity"}
    return load_trained(config, checkpoint, ", ".join(map(str, files)) or "its config")


def load_trained(config: Any, checkpoint: Path, source: str = "its config") -> Trained:
    """The model of a config with a checkpoint's weights; ``source`` is what errors call the config.

    Options that the config leaves out, and whose defaults have changed since, are put into it.
    """
    weights = read_state_dict(checkpoint)
    stages = _list_stages(config)
    _fill_in(stages, weights)
    with _priors_of(stages, weights):
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
    it holds where their files are gone, and with what it says of options that the config leaves out and whose defaults
    have changed since. These are put into the config.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        PriorError: it holds a damaged prior.
    """
    stages = _list_stages(config)
    # a checkpoint is large, and is read again for its weights
    weights = read_state_dict(checkpoint, tuple(stage.prefix for stage in stages))
    _fill_in(stages, weights)
    with _priors_of(stages, weights, only_missing=True):
        return build_model(config, options)


class _Stage(NamedTuple):
    """A model of a config, or one inside it, that may have a quantizer of ours.

    Attributes:
        where: its place in the YAML.
        prefix: of its quantizer in the whole model's state.
        target: its class.
        params: of the class.
    """

    where: str
    prefix: str
    target: Any
    params: Any

    @property
    def options(self) -> Any:
        """Where the quantizer's options are: among the params, or in those of a patched host's quantizer."""
        inner = self.params.get("quantizer_config")
        if not OmegaConf.is_dict(inner):
            return self.params
        inner.setdefault("params", {})
        return inner.params


def _list_stages(config: Any) -> List[_Stage]:
    params = config.model.get("params") or OmegaConf.create()
    stages = [_Stage("model", "quantize.", config.model.get("target"), params)]
    for name in ("first_stage", "cond_stage"):
        stage = params.get(f"{name}_config")
        if OmegaConf.is_dict(stage):
            where, prefix = f"model.params.{name}_config", f"{name}_model.quantize."
            stages.append(_Stage(where, prefix, stage.get("target"), stage.get("params") or OmegaConf.create()))
    return stages


def _fill_in(stages: Sequence[_Stage], weights: Mapping[str, Any]) -> None:
    """Put into a config the options that it leaves out and that today's defaults would make others than they are in
    the checkpoint."""
    for stage in stages:
        settings = read_settings(weights, stage.prefix)
        if not settings and f"{stage.prefix}prior_identity" in weights:
            settings = dict(CHANGED)  # whose state says nothing; what the config leaves out was by default
        changed = _list_changed(stage, settings)
        if changed:
            stage.options.update(changed)
            _log.info(
                "%s does not name %s, whose default has changed since: it is loaded with %s, as it was trained",
                *(stage.where, " and ".join(changed), " and ".join(f"{name}={its!r}" for name, its in changed.items())),
            )


def _list_changed(stage: _Stage, settings: Mapping[str, Any]) -> Dict[str, Any]:
    """The options whose defaults were others once, where the config leaves them out and the settings of a checkpoint
    have that default. Nothing else of the settings is taken: those of a run from the hub may name what is not to be
    run."""
    defaults = _read_defaults(stage) if settings else {}
    changed: Dict[str, Any] = {}
    for name, earlier in CHANGED.items():
        default = defaults.get(name, _NONE)
        if name == "combine" and default is None:
            transfer = changed.get("transfer", stage.options.get("transfer") or defaults.get("transfer"))
            whole = takes_whole_codes((settings.get("topk") or {}).values(), bool(settings.get("l2_normalize")))
            default = choose_combine(to_plain(transfer), whole)
        left_out = default is not _NONE and stage.options.get(name) is None
        if left_out and settings.get(name) == earlier and default != earlier:
            changed[name] = earlier
    return changed


def _read_defaults(stage: _Stage) -> Dict[str, Any]:
    """The defaults of those options of a stage's quantizer; nothing where it, or its model, does not take them."""
    inner = stage.params.get("quantizer_config")
    try:
        if inner is not None:
            return _read_defaults_of(find(inner["target"], f"{stage.where}.params.quantizer_config"))
        params = to_plain(stage.params)
        cls = find(stage.target, stage.where)
        cls = choose_model(params) if is_of_a_model(cls, params) else cls
        of_model = inspect.signature(cls).parameters
    except (ImportError, TypeError, ValueError, KeyError):
        return {}  # said when the model is built
    takes_any = any(p.kind is p.VAR_KEYWORD for p in of_model.values())
    of_quantizer = _read_defaults_of(getattr(cls, "_quantizer", CodebookTransferQuantizer))
    return {name: default for name, default in of_quantizer.items() if takes_any or name in of_model}


def _read_defaults_of(quantizer: Any) -> Dict[str, Any]:
    defaults: Dict[str, Any] = {}
    for base in getattr(quantizer, "__mro__", ()):  # while ``**options`` are handed on
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            defaults = {**{name: parameters[name].default for name in CHANGED if name in parameters}, **defaults}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return defaults


def _is_gone(named: Any) -> bool:
    return named is not None and named != "default" and not Path(str(named)).exists()


@contextmanager
def _priors_of(stages: Sequence[_Stage], weights: Mapping[str, Any], only_missing: bool = False) -> Iterator[None]:
    """Within: the config names the priors that the checkpoint holds, not the files they once came from, which may be
    gone, or others, by now. With ``only_missing`` files that are still there stay named, and a state that was made from
    another prior is refused when it is loaded."""
    before = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            named = stage.options.get("prior")
            if only_missing and not _is_gone(named):
                continue
            prior = read_prior(weights, stage.prefix)
            if prior is None:
                continue
            file = Path(folder) / f"{stage.prefix}safetensors"
            prior.save(file)
            before.append((stage.options, named))
            stage.options.prior = str(file)
        try:
            yield
        finally:
            for place, named in before:
                place.prior = named
                if named is None:
                    del place["prior"]


def find_configs(checkpoint: Path) -> List[Path]:
    """The configs that a run keeps beside its checkpoints, to be merged.

    Each start of a run, also in taming's own launcher, writes the whole config that it merged; so it is the last one,
    with what is not whole after it.
    """
    folder = checkpoint.parent.parent / "configs"
    files = sorted(folder.glob("*-project.yaml"))
    if not files:
        raise ConfigError(f"there is no config beside {checkpoint}, in {folder}; give base=YAML")
    for i in reversed(range(len(files))):
        config = read_config(files[i])
        if all(OmegaConf.is_dict(config.get(name)) and config[name].get("target") for name in ("model", "data")):
            return files[i:]
    return files


def drop_paths(model: Any) -> None:
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
