"""What an exact restart needs: random numbers, and one owner of ``last.ckpt`` and ``interrupted.ckpt``."""

import logging
import random
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint

from vqct_plugin.compat.checkpoints import WRITTEN
from vqct_plugin.compat.lightning_progress import begin_epoch, get_validated, set_validated, settle
from vqct_plugin.runs.checkpoints import INTERRUPTED, LAST, locate_to_resume

_log = logging.getLogger(__name__)


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


class Checkpoints(Checkpoint):
    """The owner of ``last.ckpt`` and ``interrupted.ckpt``: nothing else writes them, and neither has versions.

    ``last.ckpt`` is written whenever ``keep`` writes a checkpoint, at the end of the epochs and at the steps at which
    it would, though its ``monitor`` be no better; when training ends between two of these, by ``max_steps`` say; and
    on request, ``kill -USR1``, at the end of the step.

    An exception or Ctrl-C writes ``interrupted.ckpt``. The first Ctrl-C waits until the step is complete, so that the
    run can go on as if nothing had been; a second one does not wait. None is written where several processes train,
    which would wait for each other, and none after an error in writing.

    The signal USR1 goes to every process of the run (``pkill -USR1 -f vqct-train``) or to one of them. With several
    processes it is looked at every ``every_n_steps`` steps, since they have to agree.

    A resumed run goes on where the checkpoint was written, also inside an epoch, and also in another folder than it
    was written in.

    Args:
        folder: where the checkpoints are written.
        keep: Lightning's ``ModelCheckpoint``, which writes the others. Its ``save_last`` says whether ``last.ckpt`` is
            written without being asked for; it is taken over from it.
        every_n_steps: how often several processes ask each other.
    """

    def __init__(self, folder: Path, keep: Any = None, every_n_steps: int = 50) -> None:
        self.folder, self.keep, self.every_n_steps = folder, keep, every_n_steps
        self.save_last = bool(getattr(keep, "save_last", False))
        if keep is not None:
            keep.save_last = False
            keep._enable_version_counter = False  # a resumed run writes its files again
        self.asked = self.stopping = False
        self._in_batch = self._writing = self._due = self._between_epochs = False
        self._written = 0  # the step of the last.ckpt that is there
        #: how long the run was trained before it was resumed
        self.seconds_before = 0.0
        self._began = time.perf_counter()
        self._validated: Dict[int, int] = {}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._began = time.perf_counter()
        try:
            if hasattr(signal, "SIGUSR1"):
                signal.signal(signal.SIGUSR1, self._ask)
            if trainer.world_size == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._stop)
        except ValueError:  # not in the main thread: whoever runs the trainer there keeps its signals
            return

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def _stop(self, *_: Any) -> None:
        if self.stopping or not self._in_batch:
            raise KeyboardInterrupt
        self.stopping = True

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Dict[str, Any]) -> None:
        checkpoint["vqct_seconds"] = self.seconds_before + time.perf_counter() - self._began
        checkpoint["vqct_validated"] = get_validated(trainer)
        checkpoint[WRITTEN] = time.time()
        if not self._writing and trainer.global_step > self._written:
            self._due = True

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Dict[str, Any]) -> None:
        self.seconds_before = checkpoint.get("vqct_seconds", 0.0)
        self._validated = checkpoint.get("vqct_validated", {})
        self._written = checkpoint["global_step"]
        if trainer.training and "loops" in checkpoint:
            self._between_epochs = settle(checkpoint, trainer.accumulate_grad_batches).batches == 0
        for state in (checkpoint.get("callbacks") or {}).values():
            if isinstance(state, dict) and "best_k_models" in state and self.keep is not None:
                _move(state, str(self.keep.dirpath))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._between_epochs:
            begin_epoch(trainer)
        set_validated(trainer, self._validated)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._stop_here()
        self._in_batch = True

    def _stop_here(self) -> None:
        if self.stopping and not self._in_batch:  # by now the figures of the last batch are logged
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # gradients are in no checkpoint
        every = getattr(self.keep, "_every_n_train_steps", 0)
        if self._due or (every and trainer.global_step % every == 0):
            self._save_last(trainer)
        asked = self.asked
        if trainer.world_size > 1:
            agree = trainer.global_step % self.every_n_steps == 0
            asked = agree and trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.asked = False
            self._save(trainer, LAST)
        self._in_batch = False

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._stop_here()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self._due and not trainer.sanity_checking:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        every = getattr(self.keep, "every_n_epochs", 0)
        if self._due or (every and (trainer.current_epoch + 1) % every == 0):
            self._save_last(trainer)
        self._stop_here()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._save_last(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        trained = trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.global_step
        if trainer.world_size == 1 and trained and not isinstance(exception, OSError):
            self._save(trainer, INTERRUPTED)

    def _save_last(self, trainer: Any) -> None:
        self._due = False
        if self.save_last and not trainer.fast_dev_run and trainer.global_step > self._written:
            self._save(trainer, LAST, told=False)

    def _save(self, trainer: Any, name: str, told: bool = True) -> None:
        self._writing = True
        try:
            trainer.save_checkpoint(self.folder / name)
        finally:
            self._writing = False
        if name == LAST:
            self._written = trainer.global_step
        if trainer.is_global_zero and told:
            file = self.folder / name
            more = f"; resume {locate_to_resume(file)} to go on" if name == INTERRUPTED else ""
            _log.info("wrote %s after %d steps%s", file, trainer.global_step, more)


def _move(state: Dict[str, Any], folder: str) -> None:
    """A ``ModelCheckpoint``'s state, of a run that was moved or copied: its paths are those of the folder it is in."""

    def here(path: str) -> str:
        return str(Path(folder) / Path(path).name) if path else path

    others = state["best_k_models"]
    if state.get("dirpath") not in (None, folder) and all(Path(here(path)).is_file() for path in others):
        state["dirpath"] = folder
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = here(state.get(name) or "")
        state["best_k_models"] = {here(path): score for path, score in others.items()}


@contextmanager
def keep_signals() -> Iterator[None]:
    """Afterwards Ctrl-C and USR1 do what they did before."""
    names = [name for name in ("SIGINT", "SIGUSR1") if hasattr(signal, name)]
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            try:
                signal.signal(number, handler)
            except (ValueError, TypeError):  # not in the main thread; a handler that Python did not set
                continue
