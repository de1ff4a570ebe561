"""Callbacks: image grids, codebook usage, and what an exact restart needs."""

import logging
import random
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback

from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.health import describe_collapse, judge_usage
from vqct_plugin.runs.usage import make_counter
from vqct_plugin.usage import CodebookUsage, PartUsage

__all__ = ["ImageLogger", "CodebookUsageLogger", "CodebookWarning"]

_log = logging.getLogger(__name__)


class ImageLogger(Callback):
    """Grids of what the model's ``log_images`` gives, as PNG files in ``images/train`` and ``images/val``.

    Also sent to TensorBoard. Logging changes nothing of training: neither modes of modules nor random numbers.

    Args:
        batch_frequency: every how many batches of an epoch.
        max_images: at most this many of a batch.
        clamp: cut values off at -1 and 1.
        increase_log_steps: also at the batches 1, 2, 4, 8, ... up to ``batch_frequency``, once each.
        folder: where ``images/`` goes; the run's own by default.
    """

    def __init__(
        self,
        batch_frequency: int,
        max_images: int,
        clamp: bool = True,
        increase_log_steps: bool = True,
        folder: Optional[Path] = None,
    ) -> None:
        if batch_frequency < 1:
            raise ConfigError(f"batch_frequency is {batch_frequency!r}; expected an integer of 1 or more")
        self.batch_frequency, self.max_images, self.clamp, self.folder = batch_frequency, max_images, clamp, folder
        powers = [2**n for n in range(batch_frequency.bit_length())]
        self.log_steps: List[int] = powers if increase_log_steps else []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._log(trainer, pl_module, batch, batch_idx, "train")

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, batch, batch_idx, "val")

    def _log(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, split: str) -> None:
        if not trainer.is_global_zero or self.max_images < 1 or not hasattr(pl_module, "log_images"):
            return
        if batch_idx in self.log_steps and split == "train":
            self.log_steps.remove(batch_idx)
        elif batch_idx % self.batch_frequency:
            return
        with _keep_state(pl_module), torch.no_grad():
            images = pl_module.log_images(batch, split=split, pl_module=pl_module)
        for name, picture in images.items():
            picture = picture[: self.max_images].detach().float().cpu()
            self._save(trainer, f"{split}/{name}", picture.clamp(-1, 1) if self.clamp else picture, batch_idx)

    def _save(self, trainer: Any, name: str, images: torch.Tensor, batch_idx: int) -> None:
        from PIL import Image
        from torchvision.utils import make_grid

        grid = ((make_grid(images, nrow=4) + 1) / 2).clamp(0, 1)
        split, key = name.split("/")
        folder = (self.folder or Path(trainer.default_root_dir)) / "images" / split
        file = folder / f"{key}_gs-{trainer.global_step:06}_e-{trainer.current_epoch:06}_b-{batch_idx:06}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((grid.permute(1, 2, 0) * 255).round().byte().numpy()).save(file)
        except OSError as error:
            raise OSError(f"the image {file} cannot be written: {error}") from error
        for logger in trainer.loggers:
            if hasattr(getattr(logger, "experiment", None), "add_image"):
                logger.experiment.add_image(name, grid, global_step=trainer.global_step)


@contextmanager
def _keep_state(model: Any) -> Iterator[None]:
    """The model in evaluation mode; afterwards each module in the mode it was in, and all random numbers too."""
    modes = [(module, module.training) for module in model.modules()]
    state = random_state()
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        restore_random_state(state)


class CodebookWarning(UserWarning):
    """A codebook collapses while it trains."""


class CodebookUsageLogger(Callback):
    """Logs the codes in use, their perplexity and the dead codes, for each part of speech, in training and validation.

    ``train/in_use/noun`` is the share of the nouns that were chosen in the last ``every_n_batches`` batches,
    ``train/perplexity/noun`` their perplexity and ``train/dead/noun`` how many were not chosen; ``val/...`` is over the
    whole validation set. The latest training figures are shown in the progress bar. Every batch counts, however many
    make a step; under DDP the counts of all processes are added first. A model without a codebook is ignored.

    A codebook that has collapsed, with fewer than a tenth of its codes in use twice in a row, causes a
    :class:`CodebookWarning`, once until it recovers.

    Args:
        every_n_batches: how many batches of training make one figure.
    """

    def __init__(self, every_n_batches: int = 50) -> None:
        if every_n_batches < 1:
            raise ConfigError(f"every_n_batches is {every_n_batches!r}; expected an integer of 1 or more")
        self.every_n_batches = every_n_batches
        self._counters: Dict[str, CodebookUsage] = {}
        self._hook: Any = None
        self._batches = 0
        self._before: Mapping[str, PartUsage] = {}
        self._warned: Set[str] = set()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        quantizer = getattr(pl_module, "quantize", None)
        if self._hook is not None or not isinstance(quantizer, torch.nn.Module):
            return
        self._counters = {split: make_counter(quantizer) for split in ("train", "val")}

        def count(module: Any, inputs: Any, outputs: Any) -> None:
            split = "train" if module.training else "val" if trainer.validating or trainer.sanity_checking else None
            if split is not None:
                self._counters[split].update(outputs[2][2])

        self._hook = quantizer.register_forward_hook(count)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._counters:
            return
        self._batches += 1
        if self._batches % self.every_n_batches == 0:
            usage = self._take("train")
            for logger in trainer.loggers:
                logger.log_metrics(_flatten_figures("train", usage), step=trainer.global_step)
            for part, figures in usage.items():
                for name, figure in _list_figures_of(figures).items():
                    pl_module.log(f"{name}/{part}", figure, prog_bar=True, logger=False)
            if trainer.is_global_zero:
                self._warn(usage, hasattr(pl_module.quantize, "words"))

    def _warn(self, usage: Mapping[str, PartUsage], transferred: bool) -> None:
        for part, figures in usage.items():
            text = describe_collapse(figures, self._before.get(part), part, transferred)
            if text is None:
                self._warned.discard(part)
            elif part not in self._warned and judge_usage(self._before[part], part).grade == "collapsed":
                self._warned.add(part)
                said = f"over the last {self.every_n_batches} batches, {text}"
                warnings.warn_explicit(said, CodebookWarning, "vqct_plugin", 0)  # no line of ours explains it
        self._before = usage

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._counters:
            self._counters["val"].reset()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._counters and not trainer.sanity_checking:
            for name, figure in _flatten_figures("val", self._take("val")).items():
                pl_module.log(name, figure)

    def _take(self, split: str) -> Mapping[str, PartUsage]:
        usage = self._counters[split].compute()
        self._counters[split].reset()
        return usage


def _flatten_figures(split: str, usage: Mapping[str, PartUsage]) -> Dict[str, float]:
    return {
        f"{split}/{name}/{part}": figure
        for part, of_part in usage.items()
        for name, figure in _list_figures_of(of_part).items()
    }


def _list_figures_of(usage: PartUsage) -> Dict[str, float]:
    return {"in_use": usage.share, "perplexity": usage.perplexity, "dead": float(len(usage.dead))}


class RandomState(Callback):
    """Saves the random state of every process in the checkpoint, so that a resumed run draws the same numbers."""

    def __init__(self) -> None:
        self._loaded: Optional[List[Any]] = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Dict[str, Any]) -> None:
        states: List[Any] = [random_state()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, random_state())
        checkpoint["vqct_random_state"] = states

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Dict[str, Any]) -> None:
        self._loaded = checkpoint.get("vqct_random_state")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._loaded is not None and len(self._loaded) == trainer.world_size:
            restore_random_state(self._loaded[trainer.global_rank])
        self._loaded = None


def random_state() -> Dict[str, Any]:
    """The state of Python's, numpy's and torch's generators, as tensors and numbers alone."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators where :func:`random_state` found them."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = state["numpy"]
    np.random.set_state((name, numbers.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class Rescue(Callback):
    """Extra checkpoints: on request, when training is interrupted, and at its end.

    ``kill -USR1`` requests one: ``last.ckpt`` is written at the end of the batch. An exception or Ctrl-C writes
    ``interrupted.ckpt``, which resumes with the batch that was interrupted; not where several processes train, which
    would wait for each other, and not after an error in writing. A run that ends, by ``--max_steps`` say, between two
    checkpoints leaves ``last.ckpt`` of its last step.

    The signal goes to every process of the run (``pkill -USR1 -f vqct-train``) or to one of them. With several
    processes it is looked at every ``every_n_batches`` batches, since they have to agree.

    Args:
        folder: where the checkpoints are written.
        every_n_batches: how often several processes ask each other.
    """

    def __init__(self, folder: Path, every_n_batches: int = 50) -> None:
        self.folder, self.every_n_batches, self.asked = folder, every_n_batches, False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if hasattr(signal, "SIGUSR1"):
            try:
                signal.signal(signal.SIGUSR1, self._ask)
            except ValueError:  # not in the main thread: whoever runs the trainer there keeps its signals
                return

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        asked = self.asked
        if trainer.world_size > 1:
            if batch_idx % self.every_n_batches:
                return
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.asked = False
            self._save(trainer, "last.ckpt")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        saved = [c._last_global_step_saved for c in trainer.checkpoint_callbacks if getattr(c, "save_last", None)]
        if saved and max(saved) < trainer.global_step:
            self._save(trainer, "last.ckpt")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if trainer.world_size == 1 and trainer.training and trainer.global_step and not isinstance(exception, OSError):
            self._save(trainer, "interrupted.ckpt")

    def _save(self, trainer: Any, name: str) -> None:
        trainer.save_checkpoint(self.folder / name)
        if trainer.is_global_zero:
            _log.info("\nwrote %s after %d steps", self.folder / name, trainer.global_step)
