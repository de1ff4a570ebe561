"""What a training shows: one line that is drawn anew on a terminal, or a line every so many steps elsewhere."""

import logging
import shutil
import sys
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

from pytorch_lightning.callbacks import ProgressBar

from vqct_plugin.runs.config import ConfigError

__all__ = ["OneLine"]

WIDTH = 80  # columns, at most
SECONDS = 0.2  # between two drawings
_OURS = logging.getLogger("vqct_plugin")


class OneLine(ProgressBar):
    """One line of at most 80 columns: epoch, batches, time left, and as many of the figures as there is room for.

    Figures are those that the model and the callbacks log for the progress bar. Messages of the library that come in
    between are put above the line.

    Args:
        every_n_steps: where the output is not a terminal, one line every so many steps, and at the last one.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        super().__init__()
        if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ConfigError(f"every_n_steps is {every_n_steps!r}; expected an integer of 1 or more")
        self.every_n_steps = every_n_steps
        self._enabled = True
        self._shown = 0  # columns of the line that stands there
        self._drawn = self._began = 0.0
        self._done = self._told = self._epoch = 0  # batches since then; the step of the last line; from 0
        self._clearing: Optional[logging.Handler] = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._began, self._done = time.monotonic(), 0
        self._told, self._epoch = trainer.global_step, trainer.current_epoch
        if self._clearing is None and self._on_terminal:
            self._clearing = _Clearing(self)
            _OURS.handlers.insert(0, self._clearing)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._done += 1
        self._epoch = trainer.current_epoch
        if not self._enabled:
            return
        if not self._on_terminal:
            if trainer.global_step - self._told >= self.every_n_steps:
                self._tell(trainer)
        elif time.monotonic() - self._drawn >= SECONDS:
            self._draw(self.compose(trainer))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._enabled and self._on_terminal and not trainer.sanity_checking:
            self._draw(f"{self.compose(trainer, figures=False)}  validating")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._enabled and self._on_terminal:
            self._draw(self.compose(trainer))
        elif self._enabled and trainer.global_step > self._told:
            self._tell(trainer)
        self._end()

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._enabled and self._on_terminal and time.monotonic() - self._drawn >= SECONDS:
            self._draw(f"testing  batch {batch_idx + 1:,}")

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._end()

    def compose(self, trainer: Any, figures: bool = True) -> str:
        """The line, of at most 79 columns: the last one is the cursor's."""
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) - 1
        epochs = trainer.max_epochs
        progress = trainer.fit_loop.epoch_loop.batch_progress.current.processed
        total = trainer.num_training_batches
        words = [f"epoch {self._epoch + 1}{f'/{epochs}' if epochs and epochs > 0 else ''}"]
        if trainer.max_steps > 0:
            words.append(f"step {trainer.global_step:,}/{trainer.max_steps:,}")
        else:
            words.append(f"batch {progress:,}{f'/{total:,}' if total != float('inf') else ''}")
        seconds = time.monotonic() - self._began
        if self._done and seconds > 0:
            words.append(f"{self._done / seconds:.3g}/s")
            left = self._count_left(trainer, progress)
            if left is not None:
                words.append(f"{_format_time(left * seconds / self._done)} left")
        line = "  ".join(words)[:width]
        for word in _list_figures(trainer.progress_bar_metrics) if figures else ():
            if len(line) + 2 + len(word) > width:
                break
            line += f"  {word}"
        return line

    def _count_left(self, trainer: Any, batches_done: int) -> Optional[int]:
        """Batches until the end of the training."""
        left = []
        total = trainer.num_training_batches
        if trainer.max_epochs and trainer.max_epochs > 0 and total != float("inf"):
            left.append(int(total) * (trainer.max_epochs - self._epoch) - batches_done)
        if trainer.max_steps > 0:
            left.append((trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
        return max(min(left), 0) if left else None

    @property
    def _on_terminal(self) -> bool:
        return sys.stdout.isatty()

    def _draw(self, line: str) -> None:
        self._drawn = time.monotonic()
        sys.stdout.write("\r" + line.ljust(self._shown))
        sys.stdout.flush()
        self._shown = len(line)

    def clear(self) -> None:
        """Take the line away, for what is printed next; it is drawn again with the next batch."""
        if self._shown:
            sys.stdout.write("\r" + " " * self._shown + "\r")
            sys.stdout.flush()
            self._shown = 0

    def _tell(self, trainer: Any) -> None:
        self._told = trainer.global_step
        _OURS.getChild("training.progress").info("%s", self.compose(trainer))

    def _end(self) -> None:
        if self._shown:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._shown = 0
        if self._clearing is not None:
            _OURS.removeHandler(self._clearing)
            self._clearing = None


class _Clearing(logging.Handler):
    """The first to see a message: it makes room for it."""

    def __init__(self, bar: OneLine) -> None:
        super().__init__()
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        self._bar.clear()


def _list_figures(metrics: Dict[str, Any]) -> List[str]:
    """``name value``, the names as short as they are told apart by: codes in use first, then the model's own."""
    found: Dict[str, str] = {}
    in_use = []
    for name, value in metrics.items():
        if name.endswith("_epoch") or name == "v_num":
            continue
        short = name[: -len("_step")] if name.endswith("_step") else name
        short = short[len("train/") :] if short.startswith("train/") else short
        if short.startswith("in_use/"):
            in_use.append(f"{float(value):.0%} {short[len('in_use/') :].rstrip('s')}s")
        else:
            found.setdefault(short, f"{float(value):.3g}")
    wanted = sorted(found, key=lambda name: "rec_loss" not in name)
    return ([f"in use {' '.join(in_use)}"] if in_use else []) + [f"{name} {found[name]}" for name in wanted]


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def quiet_lightning(summary: bool = False) -> Iterator[None]:
    """Lightning's own notices, its advertisements among them, are not shown; its warnings are.

    Args:
        summary: whether its table of the model's layers is wanted.
    """
    changed = {name: logging.WARNING for name in ("pytorch_lightning", "lightning_fabric", "lightning")}
    if summary:
        changed["pytorch_lightning.callbacks.model_summary"] = logging.INFO
    before = {name: logging.getLogger(name).level for name in changed}
    for name, level in changed.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
