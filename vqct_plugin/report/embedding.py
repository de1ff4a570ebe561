"""Pictures as a page holds them: PNG files inside their own addresses, and charts for light and for dark."""

import base64
import io
import math
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
from torch import Tensor

from vqct_plugin.evaluation.images import to_bytes

DPI = 160
LEGIBLE = 11  # pixels of a page
_POINTS = 72  # in an inch


def embed_pixels(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 as a ``data:`` address."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(data, format="PNG", optimize=True)
    return _make_address(data)


def embed_image(image: Tensor) -> str:
    """(3, H, W) in [-1, 1] as a ``data:`` address."""
    return embed_pixels(to_bytes(image[None])[0])


def embed_chart(draw: Callable[[bool], Any], alt: str, file: Path) -> Dict[str, Any]:
    """A figure for a light and for a dark page; the light one is also written to ``file``.

    ``width`` and ``height`` are of the picture, and ``least`` is how wide it has to be shown for its smallest text to
    be legible, all in pixels of a page.

    Args:
        draw: from whether the page is dark to a matplotlib figure.
        alt: a description of what it shows.
        file: a PNG file.
    """
    found: Dict[str, Any] = {"alt": alt}
    for name, dark in (("light", False), ("dark", True)):
        figure = draw(dark)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=DPI)
        found[name] = _make_address(data)
        if not dark:
            figure.savefig(file, dpi=DPI, facecolor="white")
            width, height = figure.get_size_inches()
            found.update(width=round(width * DPI), height=round(height * DPI))
            found["least"] = math.ceil(LEGIBLE * width * _POINTS / measure_text(figure))
    return found


def measure_text(figure: Any) -> float:
    """The size of a figure's smallest text, in points."""
    from matplotlib.text import Text

    return min(float(text.get_fontsize()) for text in figure.findobj(Text) if text.get_visible() and text.get_text())


def _make_address(data: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
