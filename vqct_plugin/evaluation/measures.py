"""The measures of ``vqct-evaluate``: a new one is a class and an entry here."""

from typing import Dict, Type

from vqct_plugin.evaluation.frechet import FrechetMeasures
from vqct_plugin.evaluation.images import ImageMeasures
from vqct_plugin.evaluation.inception import InceptionMeasures
from vqct_plugin.evaluation.measure import Measure

__all__ = ["MEASURES"]

MEASURES: Dict[str, Type[Measure]] = {
    "images": ImageMeasures,
    "inception": InceptionMeasures,
    "frechet": FrechetMeasures,
}
"""Name to class, in the table's order. An entry of this file is measured by ``vqct-evaluate`` and ``vqct-report``; one
that a program adds is measured by ``evaluate_runs`` and ``report_runs`` in that process and its workers."""
