"""The Trainer of a run: its arguments, callbacks and loggers, from a YAML and from what is given beside it."""

import inspect
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ProgressBar

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.runs.config import ConfigError, find, instantiate, suggest
from vqct_plugin.training.callbacks import ImageLogger
from vqct_plugin.training.loggers import build_logger, check_logger
from vqct_plugin.training.progress import OneLine
from vqct_plugin.training.restart import Checkpoints, RandomState
from vqct_plugin.training.table import MetricsTable
from vqct_plugin.training.word_maps import WordMapLogger

#: arguments of the Trainer that this launcher gives itself, and where to set them instead
OURS = {
    "callbacks": "lightning.callbacks",
    "logger": "lightning.logger",
    "default_root_dir": "logdir",
}
#: what taming's launcher defined of callbacks
STAND_INS = {"ImageLogger": "vqct_plugin.training.callbacks.ImageLogger"}
#: callbacks that a run has where its YAML names them, and what they are
BY_NAME = {"word_maps": "vqct_plugin.training.word_maps.WordMapLogger"}
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
    for name in BY_NAME:  # ``word_maps: {}`` is enough
        if isinstance(configs.get(name), dict):
            configs[name].setdefault("target", BY_NAME[name])
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
        if isinstance(callback, (ImageLogger, WordMapLogger)) and callback.folder is None:
            callback.folder = folder
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    if len(bars) > 1:  # one of the YAML's own
        callbacks = [callback for callback in callbacks if not isinstance(callback, OneLine)]
    keep = instantiate(saving_config, "lightning.modelcheckpoint")
    return [*callbacks, RandomState(), keep, Checkpoints(checkpoints, keep)]


def build_loggers(lightning: Any, folder: Path) -> List[Any]:
    """The loggers that the YAML names, TensorBoard's by default, and a table of all figures, ``csv/metrics.csv``."""
    configs = _list_loggers(lightning)
    return [*(build_logger(config, folder) for config in configs), MetricsTable(folder / "csv" / "metrics.csv")]


def check_loggers(lightning: Any) -> None:
    """Whether there are the loggers that the YAML names. Those of a class of its own are not built: it may write.

    Raises:
        ConfigError: no such logger, one does not take its params, or one needs what is not installed.
    """
    for config in _list_loggers(lightning):
        check_logger(config)


def _list_loggers(lightning: Any) -> List[Any]:
    configs = to_plain(lightning.get("logger")) or "tensorboard"
    return list(configs) if isinstance(configs, (list, tuple)) else [configs]
