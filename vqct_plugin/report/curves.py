"""The figures that a run logged while it trained."""

import csv
from pathlib import Path
from typing import Dict, List, NamedTuple, Union


class Curve(NamedTuple):
    """Values over steps of training."""

    steps: List[float]
    values: List[float]


def read_log(run: Union[str, Path]) -> Dict[str, Curve]:
    """name -> curve, of the CSV logs of a run: ``csv/metrics.csv`` of vqct-train, or test-tube's of taming's launcher.

    Args:
        run: a run's folder, or a checkpoint in one. A run without such a log gives nothing.
    """
    folder = Path(run)
    if folder.is_file():
        # weights as the hub has them lie in the run's folder itself, and around that may be other runs
        folder = folder.parent if folder.suffix == ".safetensors" else folder.parent.parent
    curves: Dict[str, Curve] = {}
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open(newline="", encoding="utf-8") as stream:
            for i, row in enumerate(csv.DictReader(stream)):
                step = _read_number(row.get("step") or row.get("global_step")) if row else None
                for name, text in row.items():
                    value = _read_number(text)
                    if name and value is not None and name not in ("step", "epoch", "created_at"):
                        curve = curves.setdefault(name, Curve([], []))
                        curve.steps.append(float(i) if step is None else step)
                        curve.values.append(value)
    return curves


def _read_number(text: object) -> Union[float, None]:
    try:
        return float(str(text))
    except ValueError:
        return None


def find_first(curves: Dict[str, Curve], *names: str) -> Union[Curve, None]:
    """The first of these curves that is there; launchers name them differently."""
    return next((curves[name] for name in names if name in curves), None)
