"""The Trainer of a run: its arguments, callbacks and loggers, from a YAML and from what is given beside it."""

import inspect
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.runs.config import ConfigError, find, instantiate, suggest
from vqct_plugin.training.callbacks import ImageLogger
from vqct_plugin.training.progress import OneLine
from vqct_plugin.training.restart import Checkpoints, RandomState
from vqct_plugin.training.table import MetricsTable

#: arguments of the Trainer that this launcher gives itself, and where to set them instead
OURS = {
    "callbacks": "lightning.callbacks",
    "logger": "lightning.logger",
    "default_root_dir": "logdir",
}
#: what taming's launcher defined of callbacks
STAND_INS = {"ImageLogger": "vqct_plugin.training.callbacks.ImageLogger"}
TRAINER_ARGUMENTS = tuple(inspect.signature(pl.Trainer.__init__).parameters)[1:]


def merge_trainer_options(of_yaml: Mapping[str, Any], given: Mapping[str, Any], gpus: Optional[str]) -> Dict[str, Any]:
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


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Whether Lightning's Trainer takes them, and the machine has what they ask for.

    Raises:
        ConfigError: not so.
    """
    mps = getattr(torch.backends, "mps", None)
    if options.get("accelerator") in ("gpu", "cuda") and not (
        torch.cuda.is_available() or (mps is not None and mps.is_available())
    ):
        raise ConfigError(
            f"the run asks for a GPU (gpus, or accelerator), but torch {torch.__version__} sees none on this machine; "
            "leave both out to train on what there is, or set accelerator to cpu"
        )
    nothing = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    make_trainer({**options, **dict.fromkeys(nothing, False)})


def make_trainer(options: Mapping[str, Any]) -> Any:
    """Lightning's Trainer; what it refuses is a ConfigError."""
    try:
        return pl.Trainer(**options)
    except (TypeError, ValueError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise ConfigError(f"Lightning's Trainer refuses its arguments: {error}") from error


def build_callbacks(lightning: Any, model: Any, folder: Path, bar: bool = True) -> List[Any]:
    """The callbacks of a run, the owner of ``last.ckpt`` last; ``bar``: whether progress is shown."""
    checkpoints = folder / "checkpoints"
    saving: Dict[str, Any] = {"dirpath": str(checkpoints), "filename": "{epoch:06}", "verbose": True, "save_last": True}
    if getattr(model, "monitor", None) is not None:
        saving.update(monitor=model.monitor, save_top_k=3)
    if ((lightning.get("modelcheckpoint") or {}).get("params") or {}).get("every_n_train_steps"):
        saving["filename"] = "{epoch:06}-{step:06}"  # there may be several in an epoch
    configs: Dict[str, Any] = {
        "image_logger": {
            "target": "main.ImageLogger",
            "params": {"batch_frequency": 750, "max_images": 4, "clamp": True},
        },
        "learning_rate_logger": {"target": "main.LearningRateMonitor", "params": {"logging_interval": "step"}},
        "codebook_usage_logger": {"target": "vqct_plugin.training.callbacks.CodebookUsageLogger"},
        "progress_bar": {"target": "vqct_plugin.training.progress.OneLine"},
    }
    configs = to_plain(OmegaConf.merge(configs, lightning.get("callbacks") or {}))
    if not bar:
        configs["progress_bar"] = None
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
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    if len(bars) > 1:  # one of the YAML's own
        callbacks = [callback for callback in callbacks if not isinstance(callback, OneLine)]
    keep = instantiate(saving_config, "lightning.modelcheckpoint")
    return [*callbacks, RandomState(), keep, Checkpoints(checkpoints, keep)]


def build_loggers(lightning: Any, folder: Path) -> List[Any]:
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
    return [logger, MetricsTable(folder / "csv" / "metrics.csv")]
