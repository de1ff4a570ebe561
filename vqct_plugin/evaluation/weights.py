"""The networks behind LPIPS, FID and inception score, where their weights are there.

They are looked for in the folder that ``weights`` or the environment variable ``VQCT_WEIGHTS`` names, and where the
libraries keep what they download (``torch.hub.get_dir()``); where there is no internet, copy them there.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Callable, Optional, Tuple, Union

import torch
from torch import Tensor

VGG = "vgg16-397923af.pth"  # torchvision's
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's
VARIABLE = "VQCT_WEIGHTS"


def find_weights(name: str, weights: Union[str, Path, None] = None) -> Optional[Path]:
    """The file of this name, or None."""
    given = weights or os.environ.get(VARIABLE)
    folders = ([Path(given)] if given else []) + [Path(torch.hub.get_dir()) / "checkpoints"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def explain_absence(name: str) -> str:
    """Why a figure is missing, for the table's notes."""
    return f"no {name} in the folder of weights, in {VARIABLE} or in torch's hub folder"


def load_lpips(device: Any, weights: Union[str, Path, None] = None) -> Tuple[Optional[Callable[..., Tensor]], str]:
    """LPIPS of VGG16 (Zhang et al. 2018) by torchmetrics, on batches in [-1, 1]; or None, and why."""
    file = find_weights(VGG, weights)
    if file is None:
        return None, explain_absence(VGG)
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _from_hub(file, lambda: _LPIPS(pretrained=True, net="vgg", eval_mode=True)).to(device)
    return lambda a, b: network(a, b, normalize=False), ""


def load_inception(device: Any, weights: Union[str, Path, None] = None) -> Tuple[Optional[Any], str]:
    """torch-fidelity's InceptionV3, from uint8 images (B, 3, H, W) to (features (B, 2048), logits (B, 1008)); or None,
    and why."""
    file = find_weights(INCEPTION, weights)
    if file is None:
        return None, explain_absence(INCEPTION)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        return None, "torch-fidelity is not installed"
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(file))
    return network.to(device).eval(), ""


def _from_hub(file: Path, build: Callable[[], Any]) -> Any:
    """Build what takes its weights from torch's hub folder, with the folder of this file in its place."""
    hub: Any = torch.hub
    before = getattr(hub, "_hub_dir", None)  # None: as TORCH_HOME says
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").symlink_to(file.resolve().parent)
        hub.set_dir(folder)
        try:
            return build()
        finally:
            hub._hub_dir = before
