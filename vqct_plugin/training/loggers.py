"""The loggers that ``lightning.logger`` names in a word, TensorBoard, Weights and Biases and trackio, and pictures."""

import inspect
import io
import logging
import re
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from vqct_plugin._files import write_whole
from vqct_plugin.compat.containers import to_plain
from vqct_plugin.runs.config import ConfigError, check_params, find, instantiate, suggest

__all__ = ["TrackioLogger"]

_log = logging.getLogger(__name__)
PROJECT = "vqct"  # under which Weights and Biases and trackio keep runs, unless the YAML names another


class Known(NamedTuple):
    """A logger that a YAML names in a word.

    Attributes:
        target: its class.
        package: what has to be installed for it.
        further: what the class hands further params to.
        own: arguments of that which the class gives itself.
    """

    target: str
    package: str
    further: str
    own: Tuple[str, ...] = ()


LOGGERS: Mapping[str, Known] = {
    "tensorboard": Known(
        "pytorch_lightning.loggers.TensorBoardLogger",
        "tensorboard",
        "torch.utils.tensorboard.SummaryWriter",
        ("log_dir",),
    ),
    "wandb": Known("pytorch_lightning.loggers.WandbLogger", "wandb", "wandb.init"),
    "trackio": Known("vqct_plugin.training.loggers.TrackioLogger", "trackio", "trackio.init"),
}


class TrackioLogger(Logger):
    """Figures and pictures to trackio, which keeps them on this machine, or in a Space on the Hugging Face hub.

    A resumed run goes on where it was. ``trackio show`` shows all runs in a browser; they are in the folder that the
    environment variable ``TRACKIO_DIR`` names.

    Args:
        project: under which name runs are kept together.
        name: of the run.
        options: further arguments of ``trackio.init``, such as ``space_id``.

    Raises:
        ImportError: trackio is not installed.
    """

    def __init__(self, project: str = PROJECT, name: Optional[str] = None, **options: Any) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            raise ImportError("no package 'trackio'", name="trackio")
        self._project, self._name = project, name
        self._options = {"resume": "allow" if name else "never", "embed": False, **options}
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> Optional[str]:
        return self._name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """trackio's own run, which begins when it is first asked for."""
        if self._run is None:
            import trackio

            with _quietly():
                self._run = trackio.init(project=self._project, name=self._name, **self._options)
        return self._run

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Not sent: they are in the run's configs."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: Optional[int] = None) -> None:
        self.experiment.log({name: float(value) for name, value in metrics.items()}, step=step)

    @rank_zero_only
    def log_image(self, key: str, images: List[Any], step: Optional[int] = None) -> None:
        """Pictures under one name: arrays (H, W, 3) uint8 or PIL images."""
        import trackio

        for i, image in enumerate(images):
            self.experiment.log({f"{key}/{i}" if i else key: trackio.Image(image)}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            import trackio

            with _quietly(), suppress(RuntimeError):  # where somebody else has ended it
                trackio.finish()
            self._run = None


@contextmanager
def _quietly() -> Iterator[None]:
    """What a library prints becomes a message for those who debug."""
    said = io.StringIO()
    with redirect_stdout(said):
        yield
    _log.debug("%s", said.getvalue())


def build_logger(config: Any, folder: Path) -> Any:
    """One logger of a run.

    Args:
        config: a name of ``LOGGERS``, or ``{target, params}``, whose target may be such a name.
        folder: the run's; its name becomes the run's name where the logger has one.

    Raises:
        ConfigError: no such logger, it does not take its params, or it needs what is not installed.
    """
    target, config, cls = _read(config, folder)
    try:
        return instantiate(config, "lightning.logger", cls)
    except ImportError as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"lightning.logger is {target}, which needs what is not installed: {what}") from error


def check_logger(config: Any) -> None:
    """What :func:`build_logger` checks. A logger that is named by its class is not built: it may write.

    Raises:
        ConfigError: as there.
    """
    target, whole, cls = _read(config, Path())
    if "." in target:
        check_params(cls, whole["params"], target, "lightning.logger")
    else:
        build_logger(config, Path())  # which begins when the first figure comes


def _read(config: Any, folder: Path) -> Tuple[str, Dict[str, Any], Any]:
    """The target as the YAML has it, target and params with what the run sets, and the class."""
    config = to_plain(config)
    if config is not None and not isinstance(config, (str, Mapping)):
        raise ConfigError(
            f"lightning.logger is {config!r}; expected {', '.join(LOGGERS)}, a list of these, or a mapping with target"
        )
    config = {"target": config} if isinstance(config, str) else dict(config or {})
    other = next((str(key) for key in config if key not in ("target", "params")), None)
    if other is not None:
        raise ConfigError(f"lightning.logger has the key {other}; expected target and params")
    if not isinstance(config.get("params") or {}, Mapping):
        raise ConfigError(f"lightning.logger.params is {config['params']!r}; expected a mapping")
    target = str(config.get("target") or "tensorboard")
    if "." not in target and target not in LOGGERS:
        raise ConfigError(
            f"lightning.logger is {target!r}; expected {', '.join(LOGGERS)}, or a mapping with the target of a class"
        )
    known = LOGGERS.get(target)
    config["target"] = known.target if known is not None else target
    cls = find(config["target"], "lightning.logger")
    name = next((name for name, its in LOGGERS.items() if its.target.endswith(f".{cls.__name__}")), None)
    config["params"] = {**_list_defaults(name, folder), **(config.get("params") or {})}
    if name == "tensorboard":
        for gone in ("debug", "create_git_tag"):  # TestTubeLogger's
            config["params"].pop(gone, None)
    if name is not None and find_spec(LOGGERS[name].package) is None:
        package = LOGGERS[name].package
        raise ConfigError(
            f"lightning.logger is {target}, which needs what is not installed: pip install 'vqct-plugin[{name}]', or "
            f"pip install {package}"
        )
    if name is not None and cls is find(LOGGERS[name].target, "lightning.logger"):
        _check_further(cls, LOGGERS[name], config["params"], target)
    return target, config, cls


def _check_further(cls: Any, known: Known, params: Mapping[str, Any], target: str) -> None:
    """Whether a known logger, or what it hands further params to, takes these; where either takes any, it cannot be
    told."""
    try:
        signatures = [inspect.signature(its).parameters for its in (cls, find(known.further, "lightning.logger"))]
    except (ImportError, TypeError, ValueError):  # said when it is built; built in C
        return
    if any(p.kind is p.VAR_KEYWORD for p in signatures[1].values()):
        return
    names = [name for name, p in signatures[0].items() if p.kind is not p.VAR_KEYWORD]
    names += [name for name in signatures[1] if name not in known.own]
    wrong = next((name for name in params if name not in names), None)
    if wrong is not None:
        raise ConfigError(f"{target} takes no lightning.logger.params.{wrong}{suggest(wrong, set(names))}")


def _list_defaults(name: Optional[str], folder: Path) -> Dict[str, Any]:
    """The params of a known logger that the run sets; of any other the folder, as ever."""
    if name == "tensorboard":
        return {"save_dir": str(folder), "name": "", "version": "tensorboard"}
    if name == "wandb":  # with the run's own name as its id a resumed run goes on where it was
        run_id = re.sub(r"[/\\#?%:]", "-", folder.name)
        return {"save_dir": str(folder), "project": PROJECT, "name": folder.name, "id": run_id}
    if name == "trackio":
        return {"project": PROJECT, "name": folder.name}
    return {"save_dir": str(folder)}


@contextmanager
def end_tracked_run() -> Iterator[None]:
    """A run of Weights and Biases that begins in here ends here: the next one in this process would go on with it."""
    before = _get_tracked_run()
    try:
        yield
    finally:
        tracked = _get_tracked_run()
        if tracked is not None and tracked is not before:
            tracked.finish()


def _get_tracked_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)


def show_picture(trainer: Any, name: str, picture: np.ndarray, file: Path) -> None:
    """Write a picture (H, W, 3) uint8 to a PNG file, and send it to each of a trainer's loggers that takes pictures.

    TensorBoard's takes them by its experiment's ``add_image``, Weights and Biases' and trackio's by ``log_image``.

    Raises:
        OSError: the file cannot be written.
    """
    from PIL import Image

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "png")
        write_whole(file, data.getvalue(), overwrite=True)
    except OSError as error:
        raise OSError(f"the image {file} cannot be written: {error}") from error
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[picture], step=trainer.global_step)
        elif hasattr(getattr(logger, "experiment", None), "add_image"):
            logger.experiment.add_image(name, picture, global_step=trainer.global_step, dataformats="HWC")
