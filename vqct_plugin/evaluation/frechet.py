"""A Fréchet distance of a whole set of images over features of EfficientNet-Lite0, which a package carries.

It is no FID: the features are another network's, and its values are on another scale.
"""

from typing import Any, Dict, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin.evaluation.images import to_pixels
from vqct_plugin.evaluation.measure import Conditions, Figure, Measure
from vqct_plugin.evaluation.weights import load_efficientnet

__all__ = ["frechet_distance"]

SIDE = 224  # pixels, of the images that the network was trained on


class FrechetMeasures(Measure):
    """The Fréchet distance between originals and reconstructions over the pooled 1,280 features of EfficientNet-Lite0.

    Images under 112 pixels are enlarged to twice their side, all others brought to 224.
    """

    figures = {"frechet_efficientnet": Figure("Fréchet distance, EfficientNet-Lite0", 1, of_set=True)}  # noqa: RUF012

    def __init__(self, conditions: Conditions) -> None:
        super().__init__(conditions)
        self.network = None
        if conditions.device is not None:
            self.network, _ = load_efficientnet(conditions.device)

    def update(self, originals: Tensor, reconstructions: Tensor) -> None:
        if self.network is None:
            return
        for kind, images in (("original", originals), ("reconstruction", reconstructions)):
            pixels = to_pixels(images, self.conditions.protocol).to(self.conditions.device)
            self.keep(kind, pool_features(self.network, pixels.float() / 127.5 - 1).float())

    def compute(self) -> Dict[str, Union[float, np.ndarray]]:
        if "original" not in self.rows or len(self.gather("original")) < 2:
            return {}
        features = (torch.from_numpy(self.gather(kind)).double() for kind in ("original", "reconstruction"))
        return {"frechet_efficientnet": frechet_distance(*features)}

    def explain(self, name: str) -> str:
        return load_efficientnet("cpu")[1] or "a set of one image has no covariance"


@torch.no_grad()
def pool_features(network: Any, images: Tensor) -> Tensor:
    """(B, 1280) of images (B, 3, H, W) in [-1, 1], at the side that :class:`FrechetMeasures` says."""
    scale = min(2.0, SIDE / min(images.shape[-2:]))
    size = [round(scale * side) for side in images.shape[-2:]]
    pooled: Tensor = network.pool(
        F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)
    )
    return pooled


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between Gaussians of the mean and covariance of two sets of features (N, d) and (M, d), float64:
    ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))`` (Dowson and Landau 1982).

    The trace of the root is the sum of the singular values of ``A B^T``, A and B the centered features over the root of
    their number less one, so that it needs no root of a matrix that has not full rank. With more rows than features A
    and B are first made square by a QR decomposition, which leaves these values as they are.
    """
    means = a.mean(0), b.mean(0)
    a, b = ((x - m) / (len(x) - 1) ** 0.5 for x, m in zip((a, b), means))
    squares = (a**2).sum() + (b**2).sum()
    a, b = (torch.linalg.qr(x, mode="r")[1] if len(x) > x.shape[1] else x for x in (a, b))
    root = torch.linalg.svdvals(a @ b.t()).sum()
    return float(((means[0] - means[1]) ** 2).sum() + squares - 2 * root)
