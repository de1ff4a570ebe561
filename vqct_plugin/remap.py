"""taming's ``remap``: indices into the list of the codes in use, instead of into the whole codebook."""

import logging
from typing import Union

import numpy as np
import torch
from torch import Tensor

from vqct_plugin._torch import is_fake, on_the_host
from vqct_plugin.table import check_range

_log = logging.getLogger(__name__)


class Remap:
    """Indices there and back between a codebook and the list of its codes that are in use.

    Args:
        path: a ``.npy`` file of the indices in use.
        n_e: the number of codes.
        unknown_index: what an index that is not in the list becomes: ``"random"``, a place drawn anew each time;
            ``"extra"``, one place more; or an integer.

    Attributes:
        used: (m,) the indices in use; re_embed: how many different indices come out.

    Raises:
        ValueError: the file holds something else, or ``unknown_index`` is none of these.
    """

    def __init__(self, path: str, n_e: int, unknown_index: Union[str, int]) -> None:
        used = np.load(path, allow_pickle=False)
        if used.ndim != 1 or used.dtype.kind not in "iu" or used.size == 0 or used.min() < 0 or used.max() >= n_e:
            raise ValueError(f"{path} holds {used.dtype} {used.shape}; expected indices in [0, {n_e}) in one row")
        self.used = torch.tensor(used.astype(np.int64), device="cpu")
        self.re_embed = len(used)
        self.unknown_index = unknown_index
        if unknown_index == "extra":
            self.unknown_index = self.re_embed
            self.re_embed += 1
        elif unknown_index != "random" and not (isinstance(unknown_index, int) and 0 <= unknown_index < self.re_embed):
            raise ValueError(
                f"unknown_index is {unknown_index!r}; expected 'random', 'extra', or an integer in [0, {self.re_embed})"
            )
        _log.info("Remapping %d indices to %d, unknown ones to %s.", n_e, self.re_embed, self.unknown_index)

    def places(self, indices: Tensor) -> Tensor:
        """Places in ``used`` of indices (B, L); ``unknown_index`` for those not in it."""
        used = self.used.to(indices.device)
        if not is_fake(used):
            self.used = used  # once: afterwards it is there
        matches = indices[:, :, None] == used
        places = matches.long().argmax(-1)
        unknown = ~matches.any(-1)
        if self.unknown_index == "random":  # drawn on the CPU, as taming draws
            random = torch.randint(0, self.re_embed, size=places[unknown].shape)
            places[unknown] = random.to(places.device)
        else:
            places[unknown] = int(self.unknown_index)
        return places

    def indices(self, places: Tensor) -> Tensor:
        """Indices of places in ``used``; the extra place becomes the first of them, as in taming."""
        most = len(self.used) - (self.unknown_index != len(self.used))  # the extra place comes after them
        if on_the_host(places):
            check_range(places, most)
        return self.used.to(places)[torch.where(places >= len(self.used), torch.zeros_like(places), places)]
