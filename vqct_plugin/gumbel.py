"""Gumbel-softmax quantization with a transferred codebook, outside as taming's ``GumbelQuantize``.

Source: Jang et al., *Categorical Reparameterization with Gumbel-Softmax*, ICLR 2017; Zhang et al., CVPR 2024 (VQCT),
whose comparison with Gumbel-VQ has one categorical head for each part of speech.
"""

from typing import Any, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin._torch import at_least_float32, eager_before_2_4, without_autocast
from vqct_plugin.averages import AveragesTransfer
from vqct_plugin.codebook import PriorLike, TransferredCodebook
from vqct_plugin.transfer import TransferLike

__all__ = ["GumbelTransferQuantizer"]


class GumbelTransferQuantizer(TransferredCodebook):
    """Codes drawn by a categorical head for each part of speech, in place of taming's ``GumbelQuantize``.

    The channels are split into one equal slice for each part. A 1x1 convolution of the slice gives the logits of that
    part's codes; the code is drawn by the Gumbel-softmax trick at ``temperature``, as a one-hot vector with the soft
    one's gradient. The loss is the KL divergence of each head's distribution to the uniform one, summed over parts.

    Args:
        n_e, e_dim: as for :class:`vqct_plugin.CodebookTransferQuantizer`.
        straight_through: while training, draw one code; False: mix the codes by the soft one-hot vector, as in taming
            only while training.
        kl_weight: the weight of the KL divergence.
        temp_init: the temperature until somebody sets ``temperature`` (a host's ``temperature_scheduler_config``).
        prior, parts_of_speech, transfer, dropout, edge_weight: as for :class:`vqct_plugin.CodebookTransferQuantizer`.

    Attributes:
        temperature: of the Gumbel-softmax; hosts set it at each step.

    Shapes: z (B, e_dim, H, W); z_q as z; loss a 0-d tensor; indices int64, as in taming with the positions spelled
    out: (B, H, W) with one token per position, otherwise (B, T, H, W).

    >>> quantizer = GumbelTransferQuantizer(512, 64)
    >>> z_q, loss, (_, _, indices) = quantizer(torch.randn(2, 64, 4, 4))
    >>> z_q.shape, indices.shape
    (torch.Size([2, 64, 4, 4]), torch.Size([2, 2, 4, 4]))
    """

    def __init__(
        self,
        n_e: Union[int, Mapping[str, int]],
        e_dim: int,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temp_init: float = 1.0,
        *,
        prior: PriorLike = "default",
        parts_of_speech: Union[str, Sequence[str]] = ("adjective", "noun"),
        transfer: TransferLike = "graph",
        dropout: float = 0.5,
        edge_weight: str = "count",
    ) -> None:
        super().__init__(
            n_e,
            e_dim,
            sane_index_shape=True,
            prior=prior,
            parts_of_speech=parts_of_speech,
            topk=1,
            others={"straight_through": straight_through, "kl_weight": kl_weight, "temp_init": temp_init},
            transfer=transfer,
            dropout=dropout,
            edge_weight=edge_weight,
        )
        if isinstance(self.transfer, AveragesTransfer):
            raise ValueError(
                "a Gumbel quantizer draws codes by weights and needs their gradient, which averages do not have; take "
                "another transfer"
            )
        if isinstance(kl_weight, bool) or not isinstance(kl_weight, (int, float)) or not kl_weight >= 0:
            raise ValueError(f"kl_weight is {kl_weight!r}; expected a number of 0 or more")
        self.straight_through = straight_through
        self.kl_weight = kl_weight
        self.temperature = temp_init
        channels = e_dim // len(self.slices)
        self.heads = nn.ModuleList([nn.Conv2d(channels, s.last - s.first, 1) for s in self.slices])

    @eager_before_2_4
    def forward(
        self,
        z: Tensor,
        temp: Optional[float] = None,
        rescale_logits: bool = False,
        return_logits: bool = False,
    ) -> Tuple[Any, ...]:
        """Draw codes for z (B, e_dim, H, W): ``(z_q, loss, (None, None, indices))``, and with ``return_logits`` the
        logits (B, n_e, H, W) behind them. ``temp`` takes precedence over ``temperature``."""
        if rescale_logits:
            raise ValueError("rescale_logits is not implemented (nor is it in taming); leave it out")
        fingerprint = self._check_input(z)
        if z.dim() != 4:
            raise ValueError(f"z has shape {tuple(z.shape)}; expected (B, {self.e_dim}, H, W)")
        temperature = self.temperature if temp is None else temp
        if not temperature > 0:
            raise ValueError(f"the temperature is {temperature!r}; expected a positive number")
        hard = self.straight_through if self.training else True
        codes = self._codes_in_use(fingerprint=fingerprint)
        drawn, chosen, all_logits = [], [], []
        loss = torch.zeros((), dtype=codes.dtype, device=z.device)
        for s, head, channels in zip(self.slices, self.heads, z.chunk(len(self.slices), dim=1)):
            logits = at_least_float32(head(channels))
            with without_autocast(z.device):
                one_hot = F.gumbel_softmax(logits, tau=temperature, dim=1, hard=hard)
                drawn.append(torch.einsum("b n h w, n d -> b d h w", one_hot, codes[s.first : s.last]))
                probabilities = F.softmax(logits, dim=1)
                divergence = (probabilities * torch.log(probabilities * (s.last - s.first) + 1e-10)).sum(dim=1)
            loss = loss + self.kl_weight * divergence.mean()
            chosen.append(one_hot.argmax(dim=1) + s.first)
            all_logits.append(logits)
        z_q = torch.cat(drawn, dim=1).to(z.dtype).contiguous()
        indices = chosen[0] if len(chosen) == 1 else torch.stack(chosen, dim=1)
        result = (z_q, loss, (None, None, indices))
        return (*result, torch.cat(all_logits, dim=1)) if return_logits else result

    def extra_repr(self) -> str:
        return f"n_e={self.n_e}, e_dim={self.e_dim}, kl_weight={self.kl_weight}, temperature={self.temperature}"
