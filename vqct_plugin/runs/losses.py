"""Losses that need no download: ``VQPixelWithDiscriminator``."""

from typing import Any

import torch.nn as nn

from vqct_plugin.compat.taming_imports import import_taming

__all__ = ["VQPixelWithDiscriminator"]

_vqperceptual: Any = import_taming("taming.modules.losses.vqperceptual")


class VQPixelWithDiscriminator(_vqperceptual.VQLPIPSWithDiscriminator):
    """taming's ``VQLPIPSWithDiscriminator`` without LPIPS: pixels and the discriminator.

    LPIPS needs two files of weights from the internet, also where its weight is 0. This loss needs none; with the same
    weights of the discriminator its values and gradients are taming's at ``perceptual_weight: 0``. Without LPIPS
    reconstructions are blurrier: use it to try things out, and where there is no way to the internet.

    Args:
        perceptual_weight: 0, or left out.
        All others are the host's: ``disc_start`` (in batches), ``codebook_weight``, ``pixelloss_weight`` (which the
        host does not use), ``disc_num_layers``, ``disc_in_channels``, ``disc_factor``, ``disc_weight``,
        ``use_actnorm``, ``disc_conditional``, ``disc_ndf``, ``disc_loss`` (``"hinge"`` or ``"vanilla"``).

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
                "leave it out, or take taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
            )
        kinds = {"hinge": _vqperceptual.hinge_d_loss, "vanilla": _vqperceptual.vanilla_d_loss}
        if disc_loss not in kinds:
            raise ValueError(f"disc_loss is {disc_loss!r}; expected 'hinge' or 'vanilla'")
        nn.Module.__init__(self)  # the host's own constructor would build LPIPS
        self.codebook_weight = codebook_weight
        self.pixel_weight = pixelloss_weight
        self.perceptual_weight = 0.0
        self.discriminator = _vqperceptual.NLayerDiscriminator(
            input_nc=disc_in_channels, n_layers=disc_num_layers, use_actnorm=use_actnorm, ndf=disc_ndf
        ).apply(_vqperceptual.weights_init)
        self.discriminator_iter_start = disc_start
        self.disc_loss = kinds[disc_loss]
        self.disc_factor = disc_factor
        self.discriminator_weight = disc_weight
        self.disc_conditional = disc_conditional
