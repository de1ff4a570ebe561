"""A run's checkpoint is the one of the highest step, whatever it is called and whenever it was copied."""

import datetime
import os

import pytest
import torch

pytest.importorskip("omegaconf")
from vqct_plugin.compat.checkpoints import CheckpointError, read_step
from vqct_plugin.runs.checkpoints import find_checkpoint, find_newest_run, locate_to_resume
from vqct_plugin.runs.config import ConfigError


@pytest.fixture
def run(tmp_path):
    """A function that makes a run of checkpoints, name=step, the later named the older file."""

    def make(**steps):
        folder = tmp_path / "run" / "checkpoints"
        folder.mkdir(parents=True)
        for age, (name, step) in enumerate(steps.items()):
            file = folder / f"{name.replace('_', '-')}.ckpt"
            torch.save({"global_step": step, "state_dict": {"w": torch.ones(3)}}, file)
            os.utime(file, (1000 - age, 1000 - age))
        return folder.parent

    return make


@pytest.mark.parametrize(
    ("steps", "name", "warned"),
    [
        ({"last": 20, "epoch1": 20, "interrupted": 7}, "last", False),
        ({"last": 10, "last_v1": 20}, "last-v1", True),  # as runs of earlier versions have it
        ({"last": 20, "last_v1": 10}, "last", False),
        ({"last": 10, "interrupted": 14}, "interrupted", True),
        ({"epoch1": 14, "interrupted": 14}, "interrupted", False),
        ({"epoch3": 30, "epoch4": 40}, "epoch4", False),
    ],
)
def test_the_highest_step_counts_and_a_disagreement_is_said(run, caplog, steps, name, warned):
    caplog.set_level("INFO", "vqct_plugin")
    found = find_checkpoint(run(**steps))
    highest = max(steps.values())
    assert (found.path.name, found.step) == (f"{name}.ckpt", highest)
    assert f"{name}.ckpt, of step {highest}" in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == warned
    if warned:
        assert f"last.ckpt is of step {steps['last']}, {name}.ckpt of step {highest}" in warnings[0]


def test_a_newer_checkpoint_of_fewer_steps_is_told_of_with_how_to_take_it(run, caplog):
    """A run resumed from ``epoch=1.ckpt``, of step 200, and stopped at 300, when its last one was of 500."""
    folder = run(interrupted=300, last=500, epoch1=200)
    assert find_checkpoint(folder) == (folder / "checkpoints" / "last.ckpt", 500)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    newer = folder / "checkpoints" / "interrupted.ckpt"
    times = [datetime.datetime.fromtimestamp(seconds).isoformat(" ") for seconds in (1000, 999)]
    assert f"interrupted.ckpt is of step 300, last.ckpt of step 500 (they were written on {times[0]}" in warning
    assert f"and on {times[1]}); the latter is taken. To take the other, give its path" in warning
    assert warning.endswith(f": {newer}")
    assert find_checkpoint(newer) == (newer, 300)
    assert locate_to_resume(newer) == newer
    assert locate_to_resume(folder / "checkpoints" / "last.ckpt") == folder


def test_when_a_checkpoint_was_written_is_kept_by_a_copy(run, caplog):
    folder = run(last=500, interrupted=300)
    for name, time in (("last", 7.0), ("interrupted", 6.0)):
        file = folder / "checkpoints" / f"{name}.ckpt"
        torch.save({**torch.load(file), "vqct_written": time}, file)
    os.utime(folder / "checkpoints" / "last.ckpt", (5, 5))
    find_checkpoint(folder)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    torch.save({**torch.load(file), "vqct_written": 8.0}, file)
    find_checkpoint(folder)
    assert "interrupted.ckpt is of step 300" in caplog.text


def test_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="neither a checkpoint nor a run's folder"):
        find_checkpoint(tmp_path / "nowhere")
    folder = run()
    with pytest.raises(ConfigError, match="it stopped before its first checkpoint"):
        find_checkpoint(folder)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"x")
    torch.save({"global_step": 3}, folder / "checkpoints" / "epoch=000000.ckpt")
    with pytest.raises(ConfigError, match=r"last\.ckpt is not a checkpoint .*or name one of epoch=000000\.ckpt"):
        find_checkpoint(folder)
    assert find_checkpoint(folder / "checkpoints" / "epoch=000000.ckpt").step == 3
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        find_checkpoint(folder / "checkpoints" / "last.ckpt")


def test_a_step_is_read_without_the_tensors(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    assert read_step(tmp_path / "a.ckpt") == -1
    torch.save({"global_step": 5, "state_dict": {"w": torch.zeros(4)}}, tmp_path / "b.ckpt")
    assert read_step(tmp_path / "b.ckpt") == 5
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_step(tmp_path / "c.ckpt")


def test_the_newest_run_is_the_one_started_or_resumed_last(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no run in .* to resume"):
        find_newest_run(tmp_path)
    for name, times in {
        "2026-01-01T00-00-00_a": ["2026-01-01T00-00-00", "2026-01-05T00-00-00"],
        "2026-01-03T00-00-00_b": ["2026-01-03T00-00-00"],
    }.items():
        (tmp_path / name / "configs").mkdir(parents=True)
        for time in times:
            (tmp_path / name / "configs" / f"{time}-project.yaml").touch()
    (tmp_path / "2026-09-09T00-00-00_no_run").mkdir()
    assert find_newest_run(tmp_path).name == "2026-01-01T00-00-00_a"


def test_a_newest_run_without_a_checkpoint_is_passed_over_and_named(tmp_path, caplog):
    for day in (1, 2, 3):
        for name in ("configs", "checkpoints"):
            (tmp_path / f"2026-01-0{day}" / name).mkdir(parents=True)
        (tmp_path / f"2026-01-0{day}" / "configs" / f"2026-01-0{day}T00-00-00-project.yaml").touch()
    assert find_newest_run(tmp_path).name == "2026-01-03"  # of which it is said then that it has none
    assert not caplog.records
    (tmp_path / "2026-01-01" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "2026-01-02" / "checkpoints" / "last.ckpt").touch()
    assert find_newest_run(tmp_path).name == "2026-01-02"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"passed over {tmp_path / '2026-01-03'}, which is newer but stopped before its first")
