"""What the codes of a run's quantizer are called, whichever host it is of, and the colors that they are shown in."""

from typing import Any, List, Tuple

import numpy as np

from vqct_plugin._drawing import color_places, format_colors
from vqct_plugin.runs.usage import count_codes


def has_words(quantizer: Any) -> bool:
    """Whether its words say something about its codes; those of a learned table are mere names."""
    return hasattr(quantizer, "words") and bool(getattr(getattr(quantizer, "transfer", None), "of_words", True))


def list_words(quantizer: Any) -> Tuple[List[str], List[str], np.ndarray]:
    """(words, names of the parts, part of each code); codes without words are called by their numbers."""
    if hasattr(quantizer, "words"):
        words = list(quantizer.words) if has_words(quantizer) else [f"code {i}" for i in range(len(quantizer.words))]
        return words, list(quantizer.parts), quantizer.part_of_speech.cpu().numpy()
    number = count_codes(quantizer)
    return [f"code {i}" for i in range(number)], ["code"], np.zeros(number, dtype=np.int64)


def color_codes(vectors: np.ndarray, part_of_speech: np.ndarray) -> List[str]:
    """A color for each code, like codes of one part alike: ``#rrggbb``.

    The first principal component goes from blue to orange and the second from dark to light, so that the colors can be
    told apart by those who do not tell red from green, see :func:`vqct_plugin._drawing.color_places`.
    """
    colors = ["#888888"] * len(vectors)
    for part in np.unique(part_of_speech):
        places = np.flatnonzero(part_of_speech == part)
        centered = vectors[places].astype(np.float64)
        centered = centered - centered.mean(axis=0)
        _, _, directions = np.linalg.svd(centered, full_matrices=False)
        points = centered @ directions[:2].T
        if points.shape[1] < 2:
            points = np.column_stack([points[:, 0], np.zeros(len(points))])
        for place, color in zip(places, format_colors(color_places(points))):
            colors[place] = color
    return colors
