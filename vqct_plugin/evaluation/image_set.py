"""The images that models are evaluated on."""

from typing import Any, Optional

import torch

from vqct_plugin.runs.build import build_validation_set
from vqct_plugin.runs.config import ConfigError, DataError
from vqct_plugin.runs.datasets import Images
from vqct_plugin.runs.load import Trained


def build_image_set(
    trained: Trained,
    images: Any = None,
    size: Optional[int] = None,
    limit: Optional[int] = None,
    shown: Optional[int] = None,
) -> Any:
    """The images to evaluate: of a folder or list file, or the config's validation set.

    Args:
        trained: a loaded first stage.
        images: a folder or list file of images; None for the validation set.
        size: the side of the squares that they are cropped to; None for the model's resolution.
        limit: only the first ``limit`` images.
        shown: a side other than the evaluation's, to look at them.

    Raises:
        ConfigError, DataError: these cannot be evaluated.
    """
    encoder = trained.model.encoder
    factor = get_factor(trained.model)
    if getattr(encoder, "in_channels", 3) != 3:
        raise ConfigError(
            f"the model of {trained.checkpoint} encodes {encoder.in_channels} channels; expected 3, of images"
        )
    side = shown or size or encoder.resolution
    if side % factor:
        raise ConfigError(f"size is {side}; expected a multiple of {factor}, the model's downsampling factor")
    if images is not None:
        items: Any = Images(images, side)
    elif size is not None:
        raise ConfigError("size goes with images; the config's validation set has its own")
    else:
        config = trained.config
        if shown is not None:
            from omegaconf import OmegaConf

            config = OmegaConf.merge(config, {"data": {"params": {"validation": {"params": {"size": shown}}}}})
        items = build_validation_set(config)
    if len(items) == 0:
        raise DataError("the validation set has no image")
    return torch.utils.data.Subset(items, range(min(len(items), limit or len(items))))


def get_factor(model: Any) -> int:
    """How many pixels of a side make one position."""
    factor: int = 2 ** (model.encoder.num_resolutions - 1)
    return factor
