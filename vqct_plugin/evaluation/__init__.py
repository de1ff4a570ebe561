"""Figures of trained models: ``evaluate``, ``evaluate_runs``, and the use of the codebook as a torchmetrics metric.

Each is imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from vqct_plugin.evaluation.figures import evaluate
    from vqct_plugin.evaluation.metrics import CodebookUsageMetric
    from vqct_plugin.evaluation.runs import evaluate_runs

_WHERE = {"CodebookUsageMetric": "metrics", "evaluate": "figures", "evaluate_runs": "runs"}

__all__ = ["CodebookUsageMetric", "evaluate", "evaluate_runs"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted(__all__)
