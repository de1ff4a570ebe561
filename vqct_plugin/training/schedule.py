"""The learning rate over a run: up at the start, and along a cosine to nothing at the end."""

import math
from typing import Any, Optional

from pytorch_lightning.callbacks import Callback

from vqct_plugin.runs.config import ConfigError

__all__ = ["AnnealRate"]


class AnnealRate(Callback):
    """Every optimizer's rate rises to its own value, and falls from there to ``last`` of it at the end of training.

    At step s of S the rate is the optimizer's own times ``last + (1 - last) * (1 + cos(pi * p)) / 2``, p being the
    share of the steps after the warmup that are done (Loshchilov and Hutter, ICLR 2017, without restarts). Weights
    that still move at full rate when training stops are those of one late batch as much as of the data; the same run
    with another seed then ends elsewhere. A run that is resumed goes on along the same curve; resumed for more steps,
    it goes on along the longer one.

    Args:
        warmup_steps: over so many steps the rate rises to its value.
        last: the share of the rate that is left at the end.
        steps: S, where it should not be what the Trainer's ``max_steps`` or ``max_epochs`` say.

    In a YAML::

        lightning:
          callbacks:
            anneal_rate:
              target: vqct_plugin.training.schedule.AnnealRate
              params: {warmup_steps: 100}
    """

    def __init__(self, warmup_steps: int = 0, last: float = 0.0, steps: Optional[int] = None) -> None:
        for name, value, least in (("warmup_steps", warmup_steps, 0), ("steps", 1 if steps is None else steps, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r}; expected an integer of {least} or more")
        if isinstance(last, bool) or not isinstance(last, (int, float)) or not 0 <= last <= 1:
            raise ConfigError(f"last is {last!r}; expected a share of the rate, 0 to 1")
        self.warmup_steps, self.last, self.steps = warmup_steps, float(last), steps
        self._total = 0

    def share(self, step: int, steps: int) -> float:
        """The factor of the rate at ``step`` of ``steps``.

        >>> [round(AnnealRate(warmup_steps=10).share(step, 110), 3) for step in (0, 4, 10, 60, 110)]
        [0.1, 0.5, 1.0, 0.5, 0.0]
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        return self.last + (1 - self.last) * (1 + math.cos(math.pi * done)) / 2

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.lr_scheduler_configs:
            raise ConfigError(
                "the model has a schedule of its own for the learning rate; leave AnnealRate out of lightning.callbacks"
            )
        self._total = self.steps or _count_steps(trainer)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # kept in the optimizer's state, and so when resumed
        self._set_rates(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._set_rates(trainer)  # of the next step, so that a monitor sees it as it begins

    def _set_rates(self, trainer: Any) -> None:
        share = self.share(trainer.global_step, self._total)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share


def _count_steps(trainer: Any) -> int:
    if trainer.max_steps > 0:
        return int(trainer.max_steps)
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 1 or not math.isfinite(batches):
        raise ConfigError("AnnealRate has to know where training ends; set max_steps or max_epochs, or its steps")
    return int(epochs) * -(-int(batches) // int(trainer.accumulate_grad_batches))
