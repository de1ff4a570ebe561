"""Where a checkpoint stopped, in the words of Lightning's loops: ``settle``, then ``begin_epoch``.

Lightning's loops keep their counts in a checkpoint as they stand at the moment: inside a batch, after the last one,
in a validation, at the end of an epoch that ``max_steps`` has cut short. From some of these moments Lightning goes on
elsewhere: it takes an epoch cut short for a whole one, and with ``max_steps`` it takes a whole one for one cut short.
Here each becomes one of two that it goes on from rightly: between two batches of an epoch, or between two epochs.
"""

from typing import Any, Dict, Mapping, NamedTuple


class Position(NamedTuple):
    """How many epochs were finished, and how many batches of the next one."""

    epochs: int
    batches: int


def settle(checkpoint: Mapping[str, Any], accumulate_grad_batches: int = 1) -> Position:
    """Set a checkpoint's counts of epochs and batches to what was finished; where it was in a batch, to before it.

    Args:
        checkpoint: of Lightning 2; its ``loops`` are changed.
        accumulate_grad_batches: batches in a step.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    own: Dict[str, Any] = loops.get("epoch_loop.state_dict") or {}
    started, done, total = (epoch["current"]["started"], batch["current"]["processed"], batch["total"]["processed"])
    if batch["is_last_batch"]:
        position = Position(started, 0)
    elif done == 0:
        position = Position(epoch["current"]["completed"], 0)
    else:
        position = Position(started - 1, done)
    _set(epoch, position.epochs)
    _set(batch, position.batches, total)
    if position.batches:  # as after a batch, before its validation and before it is counted as completed
        for each in epoch.values():
            each.update(ready=position.epochs + 1, started=position.epochs + 1)
        for name in ("total", "current"):
            batch[name]["completed"] -= 1
    # Lightning adds one where it goes on after a batch that made a step
    stepped = bool(position.batches) and done % accumulate_grad_batches == 0
    if "_batches_that_stepped" in own and "global_step" in checkpoint:
        own["_batches_that_stepped"] = checkpoint["global_step"] - stepped
    batch["is_last_batch"] = False
    validation = loops.get("epoch_loop.val_loop.batch_progress")
    if validation is not None:
        _set(validation, 0)
    return position


def begin_epoch(trainer: Any) -> None:
    """Between two epochs: the loops begin the next one, also with ``max_steps``, where Lightning restarts them."""
    fit = trainer.fit_loop
    for loop in (fit, fit.epoch_loop, fit.epoch_loop.val_loop):
        loop._restarting = False


def get_validated(trainer: Any) -> Dict[int, int]:
    """Batches validated so far, of each loader: the numbers by which Lightning logs what is logged in each of them."""
    return dict(getattr(trainer.fit_loop.epoch_loop.val_loop, "_seen_batches_per_dataloader", {}))


def set_validated(trainer: Any, batches: Mapping[int, int]) -> None:
    """The other way round: a resumed run goes on counting."""
    getattr(trainer.fit_loop.epoch_loop.val_loop, "_seen_batches_per_dataloader", {}).update(batches)


def _set(progress: Dict[str, Any], current: int, total: Any = None) -> None:
    for name, value in (("current", current), ("total", current if total is None else total)):
        progress[name].update({key: value for key in progress[name]})
