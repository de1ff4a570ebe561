"""The networks behind LPIPS, FID and inception score, where their weights are there.

They are looked for in the folder that ``weights`` or the environment variable ``VQCT_WEIGHTS`` names, and where the
libraries keep what they download (``torch.hub.get_dir()``); where there is no internet, copy them there.
"""

import hashlib
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Optional, Tuple, Union

import torch
from torch import Tensor

from vqct_plugin.runs.backbones import EfficientNetLite0
from vqct_plugin.runs.config import ConfigError, DataError

VGG = "vgg16-397923af.pth"  # torchvision's
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's
VARIABLE = "VQCT_WEIGHTS"


def find_weights(name: str, weights: Union[str, Path, None] = None) -> Optional[Path]:
    """The file of this name, or None."""
    given = weights or os.environ.get(VARIABLE)
    folders = ([Path(given)] if given else []) + [Path(torch.hub.get_dir()) / "checkpoints"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def check_weights(weights: Union[str, Path, None] = None) -> None:
    """Refuse a folder that is not there, or has neither file.

    Raises:
        ConfigError: ``weights``, or the folder that ``VQCT_WEIGHTS`` names, is not such a folder.
    """
    given = weights or os.environ.get(VARIABLE)
    if not given:
        return
    name = "weights" if weights else VARIABLE
    if not Path(given).is_dir():
        raise ConfigError(f"{name} is {given}, which is not a folder; expected one with {VGG} or {INCEPTION}, or both")
    if not any((Path(given) / file).is_file() for file in (VGG, INCEPTION)):
        raise ConfigError(f"{name} is {given}, which has neither {VGG} nor {INCEPTION}; expected one of them, or both")


def identify_weights(name: str, weights: Union[str, Path, None] = None) -> str:
    """The SHA-256 of the file of this name; empty where there is none."""
    file = find_weights(name, weights)
    if file is None:
        return ""
    status = file.stat()
    return _hash(str(file.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=None)
def _hash(path: str, size: int, changed: int) -> str:
    """Of a file; once for all runs of an evaluation."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def explain_absence(name: str) -> str:
    """Why a figure is missing, for the table's notes."""
    return f"no {name} in the folder of weights, in {VARIABLE} or in torch's hub folder"


def load_lpips(device: Any, weights: Union[str, Path, None] = None) -> Tuple[Optional[Callable[..., Tensor]], str]:
    """LPIPS of VGG16 (Zhang et al. 2018) by torchmetrics, on batches in [-1, 1]; or None, and why."""
    file = find_weights(VGG, weights)
    if file is None:
        return None, explain_absence(VGG)
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _build(file, lambda: _from_hub(file, lambda: _LPIPS(pretrained=True, net="vgg", eval_mode=True)))
    network = network.to(device)
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
    features = ["2048", "logits_unbiased"]
    network = _build(file, lambda: FeatureExtractorInceptionV3("inception-v3-compat", features, str(file)))
    return network.to(device).eval(), ""


@lru_cache(maxsize=2)
def load_efficientnet(device: Any) -> Tuple[Optional[Any], str]:
    """EfficientNet-Lite0, from images (B, 3, H, W) in [-1, 1] to features by its ``pool``, (B, 1280); or None, and why.

    Its weights are in a package.
    """
    try:
        return EfficientNetLite0().to(device), ""
    except ConfigError as error:
        return None, str(error)


def _build(file: Path, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except ImportError:
        raise
    except Exception as error:  # whatever a damaged file makes torch raise
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{file} cannot be loaded, it may be damaged or of another network: {what}") from error


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
