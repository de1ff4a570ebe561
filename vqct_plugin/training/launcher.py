"""``vqct-train``: a taming YAML, stock or VQCT, on today's Lightning."""

import datetime
import inspect
import io
import logging
import os
import pickle
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import pytorch_lightning as pl
from omegaconf import OmegaConf

from vqct_plugin.compat.checkpoints import CheckpointError, read_step
from vqct_plugin.compat.containers import to_plain
from vqct_plugin.prior import PriorError
from vqct_plugin.runs.build import build_data, build_model, check_ddconfig
from vqct_plugin.runs.checkpoints import LAST, find_checkpoint, find_newest_run
from vqct_plugin.runs.config import ConfigError, DataError, find, load_config, locate_config
from vqct_plugin.runs.datasets import DataModuleFromConfig
from vqct_plugin.runs.load import build_over_checkpoint
from vqct_plugin.training.loggers import end_tracked_run
from vqct_plugin.training.progress import quiet_lightning
from vqct_plugin.training.restart import keep_signals
from vqct_plugin.training.table import MetricsTable
from vqct_plugin.training.trainer import (
    build_callbacks,
    build_loggers,
    check_loggers,
    check_trainer_options,
    make_trainer,
    merge_trainer_options,
)

__all__ = ["run", "check", "Run"]

_log = logging.getLogger(__name__)
DEFAULT_SEED = 23  # taming's


class Run(NamedTuple):
    """A run that has ended.

    Attributes:
        folder: its log folder: ``configs/``, ``checkpoints/``, ``images/`` and the loggers' files.
        model: the model, with the weights of the last step.
        trainer: Lightning's trainer.
        seconds: how long it took, with what it took before it was resumed.
    """

    folder: Path
    model: Any
    trainer: Any
    seconds: float


def run(
    base: Sequence[Union[str, Path, Mapping[str, Any]]] = (),
    overrides: Sequence[str] = (),
    *,
    trainer: Optional[Mapping[str, Any]] = None,
    gpus: Optional[str] = None,
    name: str = "",
    postfix: str = "",
    resume: Union[str, Path, bool, None] = None,
    logdir: Union[str, Path] = "logs",
    seed: Optional[int] = None,
    train: bool = True,
    test: bool = True,
    given: Optional[Mapping[str, Any]] = None,
) -> Run:
    """Train, then test, what a taming YAML describes.

    Args:
        base: YAML files, merged from left to right; ``vqct:NAME`` is one of the package's; or what they would hold, as
            mappings.
        overrides: ``key=value`` with dots, on top of them.
        trainer: arguments of Lightning's ``Trainer``, on top of ``lightning.trainer``.
        gpus: as taming's flag: the numbers of GPUs, ``"0,1"``.
        name: of the run; the first file's by default.
        postfix: goes after the name.
        resume: a run's folder, whose checkpoint of the highest step is taken, or a checkpoint in one, to resume; True
            for the run of ``logdir`` that was started or resumed last, of those with a checkpoint.
        logdir: where runs have their folders.
        seed: of weights, batches and all other random numbers; by default 23, and a resumed run's own.
        train: False tests only.
        test: whether to test afterwards; only a model with a ``test_step``, and data with a test set, can be.
        given: data sets that the config only describes, see :func:`vqct_plugin.train`.

    Raises:
        ConfigError: something in the config or the arguments cannot be used; nothing has been written then.
        DataError: a data set is empty, or an item cannot be read.
        OSError: a checkpoint or another file of the run could not be written. What is there of the run stays.
    """
    begin = time.perf_counter()
    summary = (trainer or {}).get("enable_model_summary", False)
    with quiet_lightning(summary), warnings.catch_warnings(), end_tracked_run():
        _silence()
        plan = _prepare(base, overrides, trainer, gpus, name, postfix, resume, logdir, seed, train, given)
        model = _build_quietly(plan)
        bar = plan.options.get("enable_progress_bar", True)
        callbacks = build_callbacks(plan.lightning, model, plan.folder, bar)
        loggers = build_loggers(plan.lightning, plan.folder)
        own = {"callbacks": callbacks, "logger": loggers, "default_root_dir": plan.folder}
        lightning_trainer = make_trainer({"enable_model_summary": False, **plan.options, **own})
        if lightning_trainer.is_global_zero:
            _log.info("%s", _describe(model))
        model.learning_rate = _compute_learning_rate(plan.config, lightning_trainer, plan.accumulate)
        if train:
            if lightning_trainer.is_global_zero:
                _make_folder(plan, resumed=resume is not None)
                if resume is not None:
                    _resume_table(loggers, plan.checkpoint)
            _fit(lightning_trainer, model, plan)
        if test and not lightning_trainer.interrupted:
            _test(lightning_trainer, model, plan.data, None if train else plan.checkpoint)
    seconds = callbacks[-1].seconds_before + time.perf_counter() - begin
    return Run(plan.folder, model, lightning_trainer, seconds)


def check(
    base: Sequence[Union[str, Path]] = (),
    overrides: Sequence[str] = (),
    *,
    trainer: Optional[Mapping[str, Any]] = None,
    gpus: Optional[str] = None,
    name: str = "",
    postfix: str = "",
    resume: Union[str, Path, bool, None] = None,
    logdir: Union[str, Path] = "logs",
    seed: Optional[int] = None,
    train: bool = True,
) -> str:
    """All that :func:`run` checks before it trains: configs, devices, data, loggers, and the model without its loss.

    Nothing is trained, written or downloaded, except what the model itself names (a prior, say).

    Returns:
        What there is, in a line or two.

    Arguments and errors as of :func:`run`.
    """
    with quiet_lightning(), warnings.catch_warnings():
        _silence()
        plan = _prepare(base, overrides, trainer, gpus, name, postfix, resume, logdir, seed, train)
        params = plan.config.model.get("params") or {}
        if "lossconfig" in params:
            params["lossconfig"] = {"target": "torch.nn.Identity"}
        model = _build_quietly(plan)
        build_callbacks(plan.lightning, model, plan.folder)
        sets = getattr(plan.data, "datasets", None) or {}
    counts = ", ".join(f"{len(dataset):,} items in data.params.{which}" for which, dataset in sets.items())
    return f"{_describe(model)}\n{counts or 'the data is there'}\nnothing was trained, and nothing written"


class _Plan(NamedTuple):
    """A run that can begin, as far as that can be told without its model."""

    folder: Path
    checkpoint: Optional[Path]
    now: str
    config: Any  # model and data
    lightning: Any  # the section of that name
    options: Dict[str, Any]  # of the Trainer
    accumulate: int
    data: Any


def _prepare(
    base: Sequence[Union[str, Path, Mapping[str, Any]]],
    overrides: Sequence[str],
    trainer: Optional[Mapping[str, Any]],
    gpus: Optional[str],
    name: str,
    postfix: str,
    resume: Union[str, Path, bool, None],
    logdir: Union[str, Path],
    seed: Optional[int],
    train: bool,
    given: Optional[Mapping[str, Any]] = None,
) -> _Plan:
    """Everything that can be checked before the model is built, which may download and takes its time."""
    folder, checkpoint, now, files = _locate_run(base, resume, name, postfix, Path(logdir))
    config = load_config(files, overrides)
    seed = _choose_seed(config, seed)
    lightning = config.pop("lightning", None) or OmegaConf.create()
    options = merge_trainer_options(to_plain(lightning.get("trainer")) or {}, trainer or {}, gpus)
    checkpoint = _resume_from(options, checkpoint)
    accumulate = options.get("accumulate_grad_batches") or 1
    lightning.trainer = dict(options)  # what a resumed run reads again
    check_trainer_options(options)
    check_loggers(lightning)
    check_ddconfig(config.model)
    pl.seed_everything(seed, workers=True, verbose=False)
    data = build_data(config, given)
    if train and getattr(data, "datasets", None) is not None and "train" not in data.datasets:
        raise DataError("there is nothing to train on; expected data.params.train")
    if isinstance(data, DataModuleFromConfig):
        data.check()
    pl.seed_everything(seed, workers=True, verbose=False)  # whatever the data has drawn, the model begins alike
    return _Plan(folder, checkpoint, now, config, lightning, options, accumulate, data)


def _build_quietly(plan: _Plan) -> Any:
    """The model, without what its host prints while it is built; a resumed one needs no prior file."""
    said = io.StringIO()
    with redirect_stdout(said):
        if plan.checkpoint is None:
            model = build_model(plan.config, plan.options)
        else:
            try:
                model = build_over_checkpoint(plan.config, plan.checkpoint, plan.options)
            except (CheckpointError, PriorError) as error:
                raise ConfigError(f"the checkpoint {plan.checkpoint} cannot be resumed: {error}") from error
    _log.debug("%s", said.getvalue())
    return model


def _describe(model: Any) -> str:
    numbers = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(number for number, grad in numbers if grad)
    return f"{type(model).__name__}: {sum(n for n, _ in numbers):,} parameters, {trained:,} of them trained"


def _resume_table(loggers: Sequence[Any], checkpoint: Optional[Path]) -> None:
    """``csv/metrics.csv`` goes on after the checkpoint's step; without one that can be read, it begins anew."""
    for logger in loggers:
        if isinstance(logger, MetricsTable) and checkpoint is not None:
            try:
                logger.resume(read_step(checkpoint))
            except CheckpointError as error:
                raise ConfigError(f"the checkpoint {checkpoint} cannot be resumed: {error}") from error


def _locate_run(
    base: Sequence[Union[str, Path, Mapping[str, Any]]], resume: Any, name: str, postfix: str, logdir: Path
) -> Tuple[Path, Optional[Path], str, List[Any]]:
    """The run's folder, the checkpoint to resume, the time, and the configs."""
    # Lightning runs the command again for each further device; those processes have to come to the same folder.
    now = os.environ.get("VQCT_TRAIN_STARTED")
    if now is None or os.environ.get("LOCAL_RANK", "0") == "0":
        now = os.environ["VQCT_TRAIN_STARTED"] = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    files = [file if isinstance(file, Mapping) else locate_config(file) for file in base]
    if not resume:
        if not files:
            raise ConfigError("there is no config; give base=YAML, or resume=RUN to continue a run")
        first = "run" if isinstance(files[0], Mapping) else files[0].stem
        return logdir / f"{now}_{name or first}{postfix}", None, now, files
    if name:
        raise ConfigError(
            f"name={name!r} and resume={str(resume)!r} exclude each other: a resumed run keeps its folder. "
            "To start a new run from a checkpoint's weights, give model.params.ckpt_path"
        )
    folder, checkpoint, configs = locate_resumed(resume, logdir)
    return folder, checkpoint, now, [*configs, *files]


def locate_resumed(resume: Any, logdir: Path) -> Tuple[Path, Path, List[Path]]:
    """The folder of a run to resume, its checkpoint, and its configs, each of which is whole: the last ones.

    Raises:
        ConfigError: there is no such run, or no checkpoint or no config in it.
    """
    path = find_newest_run(logdir) if resume is True else Path(resume)
    if path.is_file():
        folder, checkpoint = path.parent.parent, path
    elif path.is_dir():
        folder, checkpoint = path, find_checkpoint(path).path
    else:
        raise ConfigError(f"there is nothing to resume at {path}; expected a run's folder or a checkpoint in one")
    configs = sorted((folder / "configs").glob("*.yaml"))
    if not configs:
        raise ConfigError(f"there are no configs in {folder / 'configs'}; expected a run's folder")
    kinds = ((file, file.stem.rpartition("-")[2]) for file in configs)
    last = {kind if kind in ("project", "lightning") else file.stem: file for file, kind in kinds}
    return folder, checkpoint, sorted(last.values())


def _resume_from(options: Dict[str, Any], checkpoint: Optional[Path]) -> Optional[Path]:
    """The argument that Lightning 1 took on the Trainer: a new run that begins where a checkpoint ended."""
    given = options.pop("resume_from_checkpoint", None)
    if given is None or checkpoint is not None:
        return checkpoint
    if not Path(given).is_file():
        raise ConfigError(f"resume_from_checkpoint names {given}, which does not exist")
    return Path(given)


def _choose_seed(config: Any, given: Optional[int]) -> int:
    """The run's seed, which our data module keeps, and with it the configs that a resumed run reads."""
    cls = find(config.data.target, "data")
    recorded = (config.data.get("params") or {}).get("seed") if cls is DataModuleFromConfig else None
    seed: Any = given if given is not None else recorded if recorded is not None else DEFAULT_SEED
    if cls is DataModuleFromConfig:
        OmegaConf.update(config, "data.params.seed", seed)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed!r}; expected an integer from 0 to 4,294,967,295")
    return seed


def _compute_learning_rate(config: Any, trainer: Any, accumulate: int) -> float:
    """taming's rule: the rate goes with the number of images in a step."""
    base, batch = config.model.base_learning_rate, int((config.data.get("params") or {}).get("batch_size") or 1)
    rate = accumulate * trainer.world_size * batch * base
    if trainer.is_global_zero:
        _log.info(
            f"learning rate {rate:.2e} = {accumulate} (accumulate_grad_batches) * {trainer.world_size} (processes) * "
            f"{batch} (batch_size) * {base:.2e} (base_learning_rate)"
        )
    return rate


def _make_folder(plan: _Plan, resumed: bool) -> None:
    """The run's folder with its configs, as taming has it; the last thing before training."""
    folder = plan.folder
    parts = {"project": plan.config, "lightning": OmegaConf.create({"lightning": plan.lightning})}
    try:
        folder.mkdir(parents=True, exist_ok=resumed)
        for name in ("checkpoints", "configs"):
            (folder / name).mkdir(exist_ok=True)
        for name, part in parts.items():
            file = folder / "configs" / f"{plan.now}-{name}.yaml"
            file.with_suffix(".tmp").write_text(OmegaConf.to_yaml(part), encoding="utf-8")
            file.with_suffix(".tmp").replace(file)
    except FileExistsError as error:
        raise ConfigError(f"there is a run in {folder} already; resume it, or give another name") from error
    except OSError as error:
        raise ConfigError(
            f"the log folder {folder} cannot be written: {error}; choose another logdir=FOLDER"
        ) from error


def _fit(trainer: Any, model: Any, plan: _Plan) -> None:
    folder, checkpoint = plan.folder, plan.checkpoint
    if trainer.is_global_zero:
        _log.info("log folder %s%s", folder, f", resuming from {checkpoint}" if checkpoint else "")
    try:
        with keep_signals():
            trainer.fit(model, plan.data, **_checkpoint_arguments(trainer.fit, checkpoint))
    except (ConfigError, DataError):
        raise
    except OSError as error:
        last = folder / "checkpoints" / LAST
        kept = "no checkpoint was written yet"
        if last.is_file():
            kept = f"{last} is the last good checkpoint; resume {folder}"
        raise OSError(f"{error}. Training has stopped after {trainer.global_step} steps; {kept}") from error
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        if checkpoint is not None and not trainer.global_step:
            raise ConfigError(f"the checkpoint {checkpoint} cannot be resumed: {error}") from error
        raise
    if trainer.is_global_zero and not trainer.interrupted:
        _log.info("trained %s steps in all; resume %s to train more", f"{trainer.global_step:,}", folder)


def _test(trainer: Any, model: Any, data: Any, checkpoint: Optional[Path]) -> None:
    has_step = type(model).test_step is not pl.LightningModule.test_step
    has_data = "test" in getattr(data, "dataset_configs", {"test": None})
    if has_step and has_data:
        trainer.test(model, data, **_checkpoint_arguments(trainer.test, checkpoint))
    elif has_data and trainer.is_global_zero:
        _log.warning("testing is skipped: %s has no test_step", type(model).__name__)


def _checkpoint_arguments(function: Any, checkpoint: Optional[Path]) -> Dict[str, Any]:
    """Arguments that resume from a checkpoint, without running code in it where Lightning can do so (from 2.6 on)."""
    if checkpoint is None:
        return {}
    safely = {"weights_only": True} if "weights_only" in inspect.signature(function).parameters else {}
    return {"ckpt_path": str(checkpoint), **safely}


def _silence() -> None:
    """Ignore Lightning's warnings that are wrong or useless here."""
    for message in (
        ".*no pre-optimization state was saved.*",  # at the end of a batch every optimizer has made its step
        ".*could not find the monitored key in the returned metrics.*",  # before a validation; after one it is an error
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",  # a resumed run's checkpoints
        ".*infer the `batch_size` from an ambiguous collection.*",  # the images' number, beside the file names
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message)
