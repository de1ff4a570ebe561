"""What a measure is: a class with ``update`` and ``compute``, and an entry in ``vqct_plugin.evaluation.measures``."""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Union

import numpy as np
from torch import Tensor

__all__ = ["Measure", "Figure", "Conditions"]


class Figure(NamedTuple):
    """How tables show a figure.

    Attributes:
        title: its row.
        digits: after the point.
        of_set: whether it is one number for the whole set, not the mean of one for each image.
    """

    title: str
    digits: int
    of_set: bool = False


class Conditions(NamedTuple):
    """The conditions under which a measure works.

    Attributes:
        protocol: ``"plain"`` or ``"vqct"``, see :func:`vqct_plugin.evaluation.images.measure`.
        weights: a folder with the networks' weights, see :mod:`vqct_plugin.evaluation.weights`.
        device: where to compute; None where nothing is measured any more, only computed from what was kept.
    """

    protocol: str = "plain"
    weights: Optional[str] = None
    device: Any = None


class Measure:
    """Figures of reconstructions against their originals.

    ``update`` sees each batch once, and keeps what ``compute`` needs, with a row for each image. Rows are what is
    written between two parts of an evaluation, and what several processes bring together: a measure holds nothing else.

    A custom measure, the share of pixels that are off by more than a tenth:

    >>> class Misses(Measure):
    ...     figures = {"misses": Figure("misses", 4)}
    ...
    ...     def update(self, originals, reconstructions):
    ...         off = (originals - reconstructions).abs() > 0.1
    ...         self.keep("misses", off.float().mean(dim=(1, 2, 3)))
    ...
    ...     def compute(self):
    ...         return {"misses": self.gather("misses")}
    >>> from vqct_plugin.evaluation.measures import MEASURES
    >>> MEASURES["misses"] = Misses  # evaluate_runs and report_runs have it in this process and its workers

    >>> misses = MEASURES.pop("misses")(Conditions())
    >>> misses.update(torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.2))
    >>> misses.compute()["misses"].tolist()
    [1.0, 1.0]

    Args:
        conditions: see :class:`Conditions`.
    """

    #: name -> how it is shown, in the table's order
    figures: Mapping[str, Figure] = {}

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self.rows: Dict[str, List[np.ndarray]] = {}

    def update(self, originals: Tensor, reconstructions: Tensor) -> None:
        """Measure a batch: (B, 3, H, W) in [-1, 1], reconstructions also beyond."""
        raise NotImplementedError

    def compute(self) -> Dict[str, Union[float, np.ndarray]]:
        """name -> a number for the whole set, or one for each image, (N,). A figure that cannot be had is left out."""
        raise NotImplementedError

    def explain(self, name: str) -> str:
        """Why a figure is left out, for the table's notes."""
        return "cannot be computed here"

    def keep(self, name: str, rows: Any) -> None:
        """Keep the rows of a batch, an array or a tensor whose first dimension is the batch's."""
        array = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
        self.rows.setdefault(name, []).append(array)

    def gather(self, name: str) -> np.ndarray:
        """The rows of all batches, one for each image."""
        return np.concatenate(self.rows[name])
