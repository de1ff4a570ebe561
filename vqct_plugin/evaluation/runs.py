"""``evaluate_runs``: one or several trained models evaluated on the same images."""

import logging
from pathlib import Path
from typing import Any, List, Sequence, Union

from vqct_plugin.evaluation.figures import RunFigures
from vqct_plugin.evaluation.rates import warn_of_rates
from vqct_plugin.evaluation.shards import evaluate_run, make_settings
from vqct_plugin.evaluation.tables import write_tables
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.load import Trained, load_first_stage
from vqct_plugin.runs.published import name_published

__all__ = ["evaluate_runs"]

_log = logging.getLogger(__name__)


def evaluate_runs(
    runs: Sequence[Union[str, Path, Trained]],
    output: Union[str, Path, None] = None,
    processes: int = 1,
    names: Sequence[str] = (),
    base: Sequence[Union[str, Path]] = (),
    overrides: Sequence[str] = (),
    **settings: Any,
) -> List[RunFigures]:
    """Evaluate trained models, stock or VQCT, on the same images.

    Shards that an earlier call has written are taken as they are, if config, weights, images, settings and the
    versions of the libraries are the same. Images that could not be read then are tried again. A warning appears if
    runs differ in bits per image.

    Args:
        runs: run folders or checkpoints, or names on the hub; or what
            :func:`vqct_plugin.runs.load.load_first_stage` has loaded of them.
        output: a folder for the tables, see :func:`~vqct_plugin.evaluation.tables.write_tables`, and the shards; None
            keeps the shards in ``evaluation/`` and writes nothing else.
        names: what to call the runs; by default their folders' names.
        processes: how many share the shards of each run: one to a GPU where there are several, else on the CPU.
        base, overrides: the runs' configs, see :func:`vqct_plugin.load_run`.
        settings: the fields of :class:`vqct_plugin.evaluation.shards.Settings`.

    Raises:
        ConfigError, DataError, CheckpointError: a run, its config or an image cannot be used, or a file cannot be
            written.
    """
    if not runs:
        raise ConfigError("there is nothing to evaluate; give a run's folder or a checkpoint")
    if processes < 1:
        raise ConfigError(f"processes is {processes!r}; expected 1 or more")
    folder = Path(output) if output is not None else Path("evaluation")
    its_settings = make_settings(folder, settings)
    names = name_runs(runs, names)
    found = []
    for name, run in zip(names, runs):
        trained = run if isinstance(run, Trained) else load_first_stage(run, base, overrides)
        found.append(evaluate_run(trained, its_settings, processes, name))
    rates = warn_of_rates(found)
    if rates:
        _log.warning(rates)
    if output is not None:
        write_tables(found, folder)
    return found


def name_runs(runs: Sequence[Union[str, Path, Trained]], given: Sequence[str] = ()) -> List[str]:
    """What to call each run in tables: its folder, told apart by number where two have one name."""
    if given:
        if len(given) != len(runs) or len(set(given)) < len(given) or not all(given):
            raise ConfigError(f"names are {list(given)}; expected {len(runs)}, one for each run, all different")
        return list(given)
    names: List[str] = []
    for run in runs:
        path = Path(run.checkpoint if isinstance(run, Trained) else run)
        if path.suffix == ".safetensors":  # as on the hub
            name = name_published(path)
        else:
            path = path.resolve()
            name = path.parent.parent.name if path.is_file() else path.name
        number = next(i for i in range(1, len(names) + 2) if (f"{name} ({i})" if i > 1 else name) not in names)
        names.append(f"{name} ({number})" if number > 1 else name)
    return names
