"""Wherever a checkpoint was written, the loops' counts become those of one of two places, by hand for epochs of 4."""

import pytest

from vqct_plugin.compat.lightning_progress import settle


def checkpoint(epoch, batch, total, last=False, step=None):
    """Counts (ready, started, processed, completed) of the epochs, and of the batches of this epoch and of all."""

    def counts(numbers):
        return dict(zip(("ready", "started", "processed", "completed"), numbers))

    loops = {
        "epoch_progress": {"total": counts(epoch), "current": counts(epoch)},
        "epoch_loop.batch_progress": {"total": counts(total), "current": counts(batch), "is_last_batch": last},
        "epoch_loop.val_loop.batch_progress": {"total": counts([2] * 4), "current": counts([2] * 4)},
        "epoch_loop.state_dict": {"_batches_that_stepped": -7},
    }
    return {"loops": {"fit_loop": loops}, "global_step": total[2] if step is None else step}


MOMENTS = {
    "after a batch": (checkpoint([2, 2, 1, 1], [3, 3, 3, 2], [7, 7, 7, 6]), (1, 3)),
    "inside a batch": (checkpoint([2, 2, 1, 1], [4, 4, 3, 3], [8, 8, 7, 7]), (1, 3)),
    "inside the first batch of an epoch": (checkpoint([2, 2, 1, 1], [1, 1, 0, 0], [5, 5, 4, 4]), (1, 0)),
    "after the last batch": (checkpoint([2, 2, 1, 1], [4, 4, 4, 3], [8, 8, 8, 7], True), (2, 0)),
    "at the end of an epoch": (checkpoint([2, 2, 2, 1], [4] * 4, [8] * 4, True), (2, 0)),
    "after the last epoch": (checkpoint([2] * 4, [4] * 4, [8] * 4, True), (2, 0)),
    "before the first batch of an epoch": (checkpoint([3, 2, 2, 2], [4] * 4, [8] * 4, True), (2, 0)),
    "at the end of an epoch cut short": (checkpoint([2, 2, 2, 1], [3] * 4, [7] * 4), (1, 3)),
    "after an epoch cut short": (checkpoint([2] * 4, [3] * 4, [7] * 4), (1, 3)),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_loops_are_told_where_to_go_on(moment):
    saved, position = MOMENTS[moment]
    total = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    assert settle(saved) == position
    loops = saved["loops"]["fit_loop"]
    epochs, batches = position
    begun = 1 if batches else 0
    now = {"ready": epochs + begun, "started": epochs + begun, "processed": epochs, "completed": epochs}
    assert loops["epoch_progress"] == {"total": now, "current": now}
    batch = loops["epoch_loop.batch_progress"]
    assert batch["current"] == {
        "ready": batches, "started": batches, "processed": batches, "completed": batches - begun
    }  # fmt: skip
    assert batch["total"] == {"ready": total, "started": total, "processed": total, "completed": total - begun}
    assert not batch["is_last_batch"]
    assert loops["epoch_loop.state_dict"]["_batches_that_stepped"] == total - begun


def test_while_gradients_are_gathered_no_step_is_counted():
    for batches, steps, counted in ((3, 1, 1), (2, 1, 0)):
        saved = checkpoint([1, 1, 0, 0], [batches] * 4, [batches] * 4, step=steps)
        settle(saved, accumulate_grad_batches=2)
        assert saved["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] == counted
