"""Which checkpoint of a run counts: the one of the highest step, whatever it is called."""

import datetime
import logging
import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple, Union

from vqct_plugin.compat.checkpoints import CheckpointError, read_step, read_step_and_time
from vqct_plugin.runs.config import ConfigError

_log = logging.getLogger(__name__)
LAST, INTERRUPTED = "last.ckpt", "interrupted.ckpt"


class Found(NamedTuple):
    """A checkpoint, and after how many steps it was written (-1 where it does not say)."""

    path: Path
    step: int


def find_checkpoint(run: Union[str, Path]) -> Found:
    """The checkpoint of a run: of those in its folder ``checkpoints`` the one of the highest step.

    Of several of that step it is ``last.ckpt``, then ``interrupted.ckpt``. The one taken is logged, with a warning
    where ``last.ckpt`` is of fewer steps, or ``interrupted.ckpt`` of fewer steps but written later: of a run that was
    resumed from one of its earlier checkpoints, say.

    Args:
        run: a run's folder; or a checkpoint, which is taken as it is.

    Raises:
        ConfigError: no such run, no checkpoint in it, or one that cannot be read.
        CheckpointError: the checkpoint named cannot be read.
    """
    run = Path(run)
    if run.is_file():
        return _say(Found(run, read_step(run)))
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise ConfigError(f"{run} is neither a checkpoint nor a run's folder, which has a folder checkpoints in it")
    files = sorted(folder.glob("*.ckpt"), key=lambda file: (file.name != LAST, file.name != INTERRUPTED, file.name))
    if not files:
        raise ConfigError(f"there is no checkpoint in {folder}; it stopped before its first checkpoint")
    found = [_Dated(file, *_read(file, files)) for file in files]
    best = max(found, key=lambda its: its.step)  # the first of equals
    for other in found:
        if other.step < best.step and (
            other.path.name == LAST or (other.path.name == INTERRUPTED and other.time > best.time)
        ):
            _log.warning(
                "the checkpoints in %s disagree: %s is of step %d, %s of step %d (they were written on %s and on %s); "
                "the latter is taken. To take the other, give its path instead of the run's: %s",
                *(folder, other.path.name, other.step, best.path.name, best.step),
                *(*map(_format_time, (other.time, best.time)), other.path),
            )
    return _say(Found(best.path, best.step))


def locate_to_resume(file: Path) -> Path:
    """What to name to go on from a run's checkpoint: its run, or itself where the run has one of more steps."""
    try:
        steps = {other: read_step(other) for other in file.parent.glob("*.ckpt")}
    except CheckpointError:
        return file
    return file.parent.parent if steps[file] == max(steps.values()) else file


def find_newest_run(logdir: Union[str, Path]) -> Path:
    """The folder of the run that was started, or resumed, last: by the times in the names of its configs.

    A run without a checkpoint is passed over, with a warning, if an older one has one.

    Raises:
        ConfigError: there is no run in this folder.
    """
    started: Dict[Path, str] = {}
    for file in Path(logdir).glob("*/configs/*-project.yaml"):
        time = re.match(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d", file.name)
        if time is not None:
            run = file.parent.parent
            started[run] = max(time.group(), started.get(run, ""))
    if not started:
        raise ConfigError(f"there is no run in {logdir} to resume; give its folder as resume, or another logdir")
    runs = sorted(started, key=lambda run: (started[run], run.name), reverse=True)
    resumable = [run for run in runs if any(run.glob("checkpoints/*.ckpt"))]
    if not resumable:
        return runs[0]
    for run in runs[: runs.index(resumable[0])]:
        _log.warning("passed over %s, which is newer but stopped before its first checkpoint", run)
    return resumable[0]


class _Dated(NamedTuple):
    path: Path
    step: int
    time: float


def _format_time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def _say(found: Found) -> Found:
    _log.info("checkpoint %s, of step %s", found.path, "unknown" if found.step < 0 else f"{found.step:,}")
    return found


def _read(file: Path, others: List[Path]) -> Tuple[int, float]:
    try:
        return read_step_and_time(file)
    except CheckpointError as error:
        rest = ", ".join(other.name for other in others if other != file)
        instead = f"; remove it, or name one of {rest}" if rest else ""
        raise ConfigError(f"{error}{instead}") from error
