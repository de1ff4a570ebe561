"""How far apart colors are for those who see all of them, and for those who do not tell some from each other."""

import itertools

import numpy as np

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009:
# severity 1.0, of linear RGB
SIGHTS = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def parse(color):
    """``#rrggbb`` as RGB in [0, 1]."""
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def see(rgb, sight):
    """CIELAB (n, 3) of sRGB colors (n, 3) in [0, 1] as this sight has them."""
    rgb = np.asarray(rgb, dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (linear @ SIGHTS[sight].T).clip(0, 1)
    xyz = linear @ _TO_XYZ.T / _TO_XYZ.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def measure_least(colors, sight):
    """The distance in CIELAB of the two most alike; about 2 can just be seen."""
    seen = see(colors, sight)
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
