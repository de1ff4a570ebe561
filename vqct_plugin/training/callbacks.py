"""Callbacks: image grids and codebook usage."""

import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set

import torch
from pytorch_lightning.callbacks import Callback

from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.health import describe_collapse, judge_usage
from vqct_plugin.runs.usage import make_counter
from vqct_plugin.training.loggers import show_picture
from vqct_plugin.training.restart import random_state, restore_random_state
from vqct_plugin.usage import CodebookUsage, PartUsage

__all__ = ["ImageLogger", "CodebookUsageLogger", "CodebookWarning"]


class ImageLogger(Callback):
    """Grids of what the model's ``log_images`` gives, as PNG files in ``images/train`` and ``images/val``.

    Also sent to the loggers that take pictures: TensorBoard, Weights and Biases, trackio. Logging changes nothing of
    training: neither modes of modules nor random numbers.

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

    def state_dict(self) -> Dict[str, Any]:
        return {"log_steps": list(self.log_steps)}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.log_steps = [step for step in self.log_steps if step in state_dict["log_steps"]]

    def _log(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, split: str) -> None:
        if not trainer.is_global_zero or self.max_images < 1 or not hasattr(pl_module, "log_images"):
            return
        if batch_idx in self.log_steps and split == "train":
            self.log_steps.remove(batch_idx)
        elif batch_idx % self.batch_frequency:
            return
        with keep_state(pl_module), torch.no_grad():
            images = pl_module.log_images(batch, split=split, pl_module=pl_module)
        for name, picture in images.items():
            picture = picture[: self.max_images].detach().float().cpu()
            self._save(trainer, f"{split}/{name}", picture.clamp(-1, 1) if self.clamp else picture, batch_idx)

    def _save(self, trainer: Any, name: str, images: torch.Tensor, batch_idx: int) -> None:
        from torchvision.utils import make_grid

        grid = ((make_grid(images, nrow=4) + 1) / 2).clamp(0, 1)
        split, key = name.split("/")
        folder = (self.folder or Path(trainer.default_root_dir)) / "images" / split
        file = folder / f"{key}_gs-{trainer.global_step:06}_e-{trainer.current_epoch:06}_b-{batch_idx:06}.png"
        show_picture(trainer, name, (grid.permute(1, 2, 0) * 255).round().byte().numpy(), file)


@contextmanager
def keep_state(model: Any) -> Iterator[None]:
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
        self._loaded: Optional[Dict[str, Any]] = None

    def state_dict(self) -> Dict[str, Any]:
        """What was counted since the last figure, by all processes: a resumed run goes on with it."""
        return {
            "batches": self._batches,
            "counts": self._counters["train"].total_counts() if self._counters else None,
            "before": {part: tuple(usage) for part, usage in self._before.items()},
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None or not self._counters:
            return
        self._batches, self._warned = loaded["batches"], set(loaded["warned"])
        self._before = {part: PartUsage(*usage) for part, usage in loaded["before"].items()}
        counts = self._counters["train"].counts
        if trainer.is_global_zero and loaded["counts"] is not None and loaded["counts"].shape == counts.shape:
            counts.copy_(loaded["counts"])

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
