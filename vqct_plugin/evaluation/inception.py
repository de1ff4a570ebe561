"""Figures of a whole set of images by the InceptionV3 network: reconstruction FID and inception score."""

from typing import Dict, Union

import numpy as np
import torch
from torch import Tensor

from vqct_plugin.evaluation.images import to_pixels
from vqct_plugin.evaluation.measure import Conditions, Figure, Measure
from vqct_plugin.evaluation.weights import load_inception


class InceptionMeasures(Measure):
    """Reconstruction FID (Heusel et al. 2017) and inception score (Salimans et al. 2016) by torch-fidelity."""

    figures = {  # noqa: RUF012
        "rfid": Figure("rFID", 2, of_set=True),
        "inception_score": Figure("inception score", 2, of_set=True),
    }

    def __init__(self, conditions: Conditions) -> None:
        super().__init__(conditions)
        self.network = None
        if conditions.device is not None:
            self.network, _ = load_inception(conditions.device, conditions.weights)

    def update(self, originals: Tensor, reconstructions: Tensor) -> None:
        if self.network is None:
            return
        for kind, images in (("original", originals), ("reconstruction", reconstructions)):
            pixels = to_pixels(images, self.conditions.protocol).to(self.conditions.device)
            for name, rows in zip(("features", "logits"), self.network(pixels)):
                self.keep(f"{kind}_{name}", rows.float())

    def compute(self) -> Dict[str, Union[float, np.ndarray]]:
        if "original_features" not in self.rows:
            return {}
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_isc import isc_features_to_metric

        features = (torch.from_numpy(self.gather(f"{kind}_features")) for kind in ("original", "reconstruction"))
        statistics = [fid_features_to_statistics(of_kind) for of_kind in features]
        fid = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        score = isc_features_to_metric(torch.from_numpy(self.gather("reconstruction_logits")))["inception_score_mean"]
        return {"rfid": float(fid), "inception_score": float(score)}

    def explain(self, name: str) -> str:
        return load_inception("cpu", self.conditions.weights)[1]
