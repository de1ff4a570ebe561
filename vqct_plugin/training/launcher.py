"""``vqct-train``: a taming YAML, stock or VQCT, on today's Lightning."""

import datetime
import inspect
import logging
import os
import pickle
import warnings
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.runs.build import build_data, build_model
from vqct_plugin.runs.config import ConfigError, DataError, find, instantiate, load_config, locate_config, suggest
from vqct_plugin.runs.datasets import DataModuleFromConfig
from vqct_plugin.training.callbacks import ImageLogger, RandomState, Rescue

__all__ = ["run", "Run"]

#: arguments of the Trainer that this launcher gives itself, and where to set them instead
OURS = {
    "callbacks": "lightning.callbacks",
    "logger": "lightning.logger",
    "default_root_dir": "logdir",
}
_log = logging.getLogger(__name__)
#: what taming's launcher defined of callbacks
STAND_INS = {"ImageLogger": "vqct_plugin.training.callbacks.ImageLogger"}
DEFAULT_SEED = 23  # taming's
TRAINER_ARGUMENTS = tuple(inspect.signature(pl.Trainer.__init__).parameters)[1:]


class Run(NamedTuple):
    """A run that has ended.

    Attributes:
        folder: its log folder: ``configs/``, ``checkpoints/``, ``images/`` and the loggers' files.
        model: the model, with the weights of the last step.
        trainer: Lightning's trainer.
    """

    folder: Path
    model: Any
    trainer: Any


def run(
    base: Sequence[Union[str, Path]] = (),
    overrides: Sequence[str] = (),
    *,
    trainer: Optional[Mapping[str, Any]] = None,
    gpus: Optional[str] = None,
    name: str = "",
    postfix: str = "",
    resume: Union[str, Path, None] = None,
    logdir: Union[str, Path] = "logs",
    seed: Optional[int] = None,
    train: bool = True,
    test: bool = True,
) -> Run:
    """Train, then test, what a taming YAML describes.

    Args:
        base: YAML files, merged from left to right; ``vqct:NAME`` is one of the package's.
        overrides: ``key=value`` with dots, on top of them.
        trainer: arguments of Lightning's ``Trainer``, on top of ``lightning.trainer``.
        gpus: as taming's flag: the numbers of GPUs, ``"0,1"``.
        name: of the run; the first file's by default.
        postfix: goes after the name.
        resume: a run's folder, or a checkpoint in one, to resume.
        logdir: where runs have their folders.
        seed: of weights, batches and all other random numbers; by default 23, and a resumed run's own.
        train: False tests only.
        test: whether to test afterwards; only a model with a ``test_step``, and data with a test set, can be.

    Raises:
        ConfigError: something in the config or the arguments cannot be used; nothing has been written then.
        DataError: a data set is empty, or an item cannot be read.
        OSError: a checkpoint or another file of the run could not be written. What is there of the run stays.
    """
    folder, checkpoint, now, base = _locate_run(base, resume, name, postfix, Path(logdir))
    config = load_config(base, overrides)
    seed = _choose_seed(config, seed)
    pl.seed_everything(seed, workers=True, verbose=False)
    lightning = config.pop("lightning", None) or OmegaConf.create()
    options = _merge_trainer_options(to_plain(lightning.get("trainer")) or {}, trainer or {}, gpus)
    checkpoint = _resume_from(options, checkpoint)
    accumulate = options.get("accumulate_grad_batches") or 1
    lightning.trainer = dict(options)  # what a resumed run reads again

    model = build_model(config, options)
    data = build_data(config)
    if train and getattr(data, "datasets", None) is not None and "train" not in data.datasets:
        raise DataError("there is nothing to train on; expected data.params.train")
    callbacks = _build_callbacks(lightning, model, folder)
    loggers = _build_loggers(lightning, folder)
    try:
        lightning_trainer = pl.Trainer(**options, callbacks=callbacks, logger=loggers, default_root_dir=folder)
    except (TypeError, ValueError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise ConfigError(f"Lightning's Trainer refuses its arguments: {error}") from error
    model.learning_rate = _compute_learning_rate(config, lightning_trainer, accumulate)
    with warnings.catch_warnings():
        _silence()
        if train:
            if lightning_trainer.is_global_zero:
                _make_folder(folder, now, config, lightning, resumed=resume is not None)
            _fit(lightning_trainer, model, data, checkpoint, folder)
        if test and not lightning_trainer.interrupted:
            _test(lightning_trainer, model, data, None if train else checkpoint)
    return Run(folder, model, lightning_trainer)


def _locate_run(
    base: Sequence[Union[str, Path]], resume: Any, name: str, postfix: str, logdir: Path
) -> Tuple[Path, Optional[Path], str, List[Path]]:
    """The run's folder, the checkpoint to resume, the time, and the configs."""
    # Lightning runs the command again for each further device; those processes have to come to the same folder.
    now = os.environ.get("VQCT_TRAIN_STARTED")
    if now is None or os.environ.get("LOCAL_RANK", "0") == "0":
        now = os.environ["VQCT_TRAIN_STARTED"] = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    files = [locate_config(file) for file in base]
    if not resume:
        if not files:
            raise ConfigError("there is no config; give base=YAML, or resume=RUN to continue a run")
        return logdir / f"{now}_{name or files[0].stem}{postfix}", None, now, files
    if name:
        raise ConfigError(
            f"name={name!r} and resume={str(resume)!r} exclude each other: a resumed run keeps its folder. "
            "To start a new run from a checkpoint's weights, give model.params.ckpt_path"
        )
    path = Path(resume)
    if path.is_file():
        folder, checkpoint = path.parent.parent, path
    elif path.is_dir():
        folder, checkpoint = path, path / "checkpoints" / "last.ckpt"
    else:
        raise ConfigError(f"there is nothing to resume at {path}; expected a run's folder or a checkpoint in one")
    if not checkpoint.is_file():
        there = sorted(p.name for p in (folder / "checkpoints").glob("*.ckpt"))
        found = f"it has {', '.join(there)}: name one of them" if there else "it stopped before its first checkpoint"
        raise ConfigError(f"there is no {checkpoint}; {found}")
    configs = sorted((folder / "configs").glob("*.yaml"))
    if not configs:
        raise ConfigError(f"there are no configs in {folder / 'configs'}; expected the folder of a run of vqct-train")
    return folder, checkpoint, now, [*configs, *files]


def _merge_trainer_options(of_yaml: Mapping[str, Any], given: Mapping[str, Any], gpus: Optional[str]) -> Dict[str, Any]:
    """``lightning.trainer`` and, on top of it, what was given beside the YAML, as today's Trainer takes them."""
    given = dict(given) if gpus is None else {**given, "gpus": gpus}
    options = {**of_yaml, **given}
    for key, instead in OURS.items():
        if key in options:
            raise ConfigError(f"lightning.trainer.{key} is not supported; use {instead} instead")
    if "gpus" in given and "devices" not in given:  # other devices than the YAML's
        options.pop("devices", None)
        options.pop("accelerator", None)
    elif "devices" in given and "gpus" not in given:
        options.pop("gpus", None)
    if "gpus" in options:
        options.update(_read_gpus(options.pop("gpus"), options))
    old = options.pop("distributed_backend", None)
    if old is not None:
        options.setdefault("strategy", old)
    unknown = [key for key in options if key not in (*TRAINER_ARGUMENTS, "resume_from_checkpoint")]
    if unknown:
        raise ConfigError(
            f"the Trainer of Lightning {pl.__version__} has no argument {unknown[0]!r}"
            f"{suggest(unknown[0], [*TRAINER_ARGUMENTS, 'gpus'])}"
        )
    # One device by default, as with taming: the learning rate goes with their number.
    return {"devices": 1, **{key: value for key, value in options.items() if value is not None}}


def _read_gpus(gpus: Any, options: Mapping[str, Any]) -> Dict[str, Any]:
    """taming's ``--gpus 0,1``: a list of numbers as text; in a YAML also how many, as a number."""
    if "devices" in options:
        raise ConfigError("gpus and devices mean the same; give only one of them")
    if isinstance(gpus, int) and not isinstance(gpus, bool):
        return {"accelerator": "gpu", "devices": gpus} if gpus else {"accelerator": "cpu"}
    try:
        numbers = [int(n) for n in (gpus.split(",") if isinstance(gpus, str) else gpus) if str(n).strip()]
    except (TypeError, ValueError):
        numbers = []
    if not numbers:
        raise ConfigError(f"gpus is {gpus!r}; expected the numbers of GPUs, such as 0, or 0,1")
    return {"accelerator": "gpu", "devices": -1 if numbers == [-1] else numbers}


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
    seed = given if given is not None else recorded if recorded is not None else DEFAULT_SEED
    if cls is DataModuleFromConfig:
        OmegaConf.update(config, "data.params.seed", seed)
    return int(seed)


def _build_callbacks(lightning: Any, model: Any, folder: Path) -> List[Any]:
    checkpoints = folder / "checkpoints"
    saving: Dict[str, Any] = {"dirpath": str(checkpoints), "filename": "{epoch:06}", "verbose": True, "save_last": True}
    if getattr(model, "monitor", None) is not None:
        saving.update(monitor=model.monitor, save_top_k=3)
    configs: Dict[str, Any] = {
        "image_logger": {
            "target": "main.ImageLogger",
            "params": {"batch_frequency": 750, "max_images": 4, "clamp": True},
        },
        "learning_rate_logger": {"target": "main.LearningRateMonitor", "params": {"logging_interval": "step"}},
        "codebook_usage_logger": {"target": "vqct_plugin.training.callbacks.CodebookUsageLogger"},
    }
    configs = to_plain(OmegaConf.merge(configs, lightning.get("callbacks") or {}))
    saving_config = {"target": "main.ModelCheckpoint", "params": saving}
    saving_config = to_plain(OmegaConf.merge(saving_config, lightning.get("modelcheckpoint") or {}))
    callbacks = []
    for name, config in configs.items():
        if config is not None:
            where = f"lightning.callbacks.{name}"
            target = config.get("target") if isinstance(config, dict) else None
            found = None if target is None else find(target, where, STAND_INS)
            callbacks.append(instantiate(config, where, found))
    for callback in callbacks:
        if isinstance(callback, ImageLogger) and callback.folder is None:
            callback.folder = folder
    return [
        *callbacks,
        Rescue(checkpoints),
        RandomState(),
        instantiate(saving_config, "lightning.modelcheckpoint"),
    ]


def _build_loggers(lightning: Any, folder: Path) -> List[Any]:
    """A table of all figures, ``csv/metrics.csv``, and TensorBoard's file, or the logger that the YAML names."""
    default = {"target": "pytorch_lightning.loggers.TensorBoardLogger", "params": {"save_dir": str(folder)}}
    config = to_plain(OmegaConf.merge(default, lightning.get("logger") or {}))
    if find(config["target"], "lightning.logger") is TensorBoardLogger:
        config["params"] = {"name": "", "version": "tensorboard", **config["params"]}
        for gone in ("debug", "create_git_tag"):  # TestTubeLogger's
            config["params"].pop(gone, None)
    try:
        logger = instantiate(config, "lightning.logger")
    except ImportError as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"lightning.logger is {config['target']}, which needs what is not installed: {what}"
        ) from error
    return [logger, CSVLogger(str(folder), name="", version="csv")]


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


def _make_folder(folder: Path, now: str, config: Any, lightning: Any, resumed: bool) -> None:
    """The run's folder with its configs, as taming has it; the last thing before training."""
    try:
        folder.mkdir(parents=True, exist_ok=resumed)
        for name in ("checkpoints", "configs"):
            (folder / name).mkdir(exist_ok=True)
        for name, part in (("project", config), ("lightning", OmegaConf.create({"lightning": lightning}))):
            file = folder / "configs" / f"{now}-{name}.yaml"
            file.with_suffix(".tmp").write_text(OmegaConf.to_yaml(part), encoding="utf-8")
            file.with_suffix(".tmp").replace(file)
    except FileExistsError as error:
        raise ConfigError(f"there is a run in {folder} already; resume it, or give another name") from error
    except OSError as error:
        raise ConfigError(
            f"the log folder {folder} cannot be written: {error}; choose another logdir=FOLDER"
        ) from error


def _fit(trainer: Any, model: Any, data: Any, checkpoint: Optional[Path], folder: Path) -> None:
    if trainer.is_global_zero:
        _log.info("log folder %s%s", folder, f", resuming from {checkpoint}" if checkpoint else "")
    try:
        trainer.fit(model, data, **_checkpoint_arguments(trainer.fit, checkpoint))
    except (ConfigError, DataError):
        raise
    except OSError as error:
        last = folder / "checkpoints" / "last.ckpt"
        kept = "no checkpoint was written yet"
        if last.is_file():
            kept = f"{last} is the last good checkpoint; resume {folder}"
        raise OSError(f"{error}. Training has stopped after {trainer.global_step} steps; {kept}") from error
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        if checkpoint is not None and not trainer.global_step:
            raise ConfigError(f"the checkpoint {checkpoint} cannot be resumed: {error}") from error
        raise


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
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",  # a resumed run's checkpoints
        ".*infer the `batch_size` from an ambiguous collection.*",  # the images' number, beside the file names
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message)
