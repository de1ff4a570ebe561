"""Which checkpoint of a run counts: the one of the highest step, whatever it is called."""

import logging
import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Union

from vqct_plugin.compat.checkpoints import CheckpointError, read_step
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
    where ``last.ckpt`` is an older one.

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
    found = [Found(file, _read_step(file, files)) for file in files]
    best = max(found, key=lambda its: its.step)  # the first of equals
    if found[0].path.name == LAST and found[0].step < best.step:
        _log.warning(
            "the checkpoints in %s disagree: %s is of step %d, %s of step %d; the latter is taken",
            *(folder, LAST, found[0].step, best.path.name, best.step),
        )
    return _say(best)


def find_newest_run(logdir: Union[str, Path]) -> Path:
    """The folder of the run that was started, or resumed, last: by the times in the names of its configs.

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
    return max(started, key=lambda run: (started[run], run.name))


def _say(found: Found) -> Found:
    _log.info("checkpoint %s, of step %s", found.path, "unknown" if found.step < 0 else f"{found.step:,}")
    return found


def _read_step(file: Path, others: List[Path]) -> int:
    try:
        return read_step(file)
    except CheckpointError as error:
        rest = ", ".join(other.name for other in others if other != file)
        instead = f"; remove it, or name one of {rest}" if rest else ""
        raise ConfigError(f"{error}{instead}") from error
