"""The quantizer for lyndonzheng/CVQ-VAE, whose own returns one-hot encodings.

All its arguments are those of :class:`vqct_plugin.CodebookTransferQuantizer`; only what it returns is as its host
reads it. In the host's ``quantizer_config`` it is the ``target``.
"""

import logging
from typing import Any, Mapping

import torch
from torch import Tensor

from vqct_plugin.hosts.quantizer_config import Config, with_host_options
from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["CVQQuantizer"]

_log = logging.getLogger(__name__)


def obey_options(
    config: Config, distance: str, anchor: str, first_batch: bool, contras_loss: bool
) -> Mapping[str, Any]:
    """The host's ``quantizer_config``, where the options of its own quantizer leave it what ours does.

    Args:
        config: as of :func:`vqct_plugin.hosts.quantizer_config.build_quantizer`.
        distance: ``l2``, which is ours; or ``cos``, the default of the host's commands, of which a warning says that it
            is not had, unless ``l2_normalize`` is among the ``params``.
        anchor, first_batch, contras_loss: as the host's commands have them by default: ``closest``, false, false.

    Raises:
        ValueError: another value of one of these.
    """
    known = None if distance == "l2" else (distance, "cos")
    refused = {
        "distance": known,
        "anchor": (anchor, "closest"),
        "first_batch": first_batch,
        "contras_loss": contras_loss,
    }
    obeyed = with_host_options(config, refused)
    if distance == "cos" and "l2_normalize" not in obeyed["params"]:
        _log.warning(
            "distance is 'cos', which is of CVQ-VAE's own quantizer: %s looks for the nearest code by l2. Codes and z "
            "of length 1, where the nearest has the highest cosine, are `l2_normalize: true` in the params of "
            "quantizer_config",
            obeyed["target"],
        )
    return obeyed


class CVQQuantizer(CodebookTransferQuantizer):
    """For lyndonzheng/CVQ-VAE: ``(z_q, loss, (perplexity, encodings, indices))``.

    ``perplexity`` is that of the batch's tokens, a 0-d tensor; ``encodings`` are one-hot, (B*T*H*W, n_e) float32, a row
    for each index: large for a large codebook, since CVQ-VAE asks for them at every step. ``legacy`` is False where it
    is not given, so that ``beta``, the host's ``commitment_cost``, weighs the commitment as with its own quantizer.
    """

    def __init__(self, n_e: Any, e_dim: int, beta: float = 0.25, *, legacy: bool = False, **options: Any) -> None:
        super().__init__(n_e, e_dim, beta, legacy=legacy, **options)

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        z_q, loss, (_, _, indices) = super().forward(z, *args, **kwargs)
        encodings = torch.nn.functional.one_hot(indices.reshape(-1), self.n_e).float()
        frequency = encodings.mean(dim=0)  # no step waits for a device: neither bincount nor a mask
        perplexity = torch.exp(-(frequency * frequency.clamp(min=1e-30).log()).sum())
        return z_q, loss, (perplexity, encodings, indices)
