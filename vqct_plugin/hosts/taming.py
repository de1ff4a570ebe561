"""taming-transformers' VQModel with a transferred codebook: ``model.target: vqct_plugin.VQModel``, and nothing else.

Works on the untouched wheel ``taming-transformers-rom1504`` and on a checkout of CompVis/taming-transformers, on
today's Lightning and on the 1.0.8 that they were written for.
"""

import difflib
import inspect
from typing import Any, Mapping, Sequence, Union

from vqct_plugin.hosts._checkpoint import CheckpointError
from vqct_plugin.hosts._lightning import ADAPTER_OPTIONS, for_installed_lightning
from vqct_plugin.hosts._taming_imports import import_taming
from vqct_plugin.hosts.quantizer_config import plain
from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["VQModel", "for_installed_lightning", "CheckpointError"]

_QUANTIZER_OPTIONS = [
    name
    for name in inspect.signature(CodebookTransferQuantizer.__init__).parameters
    if name not in ("self", "n_e", "e_dim", "remap", "sane_index_shape")  # those the host's own arguments give
]
_Host: Any = for_installed_lightning(import_taming().VQModel)


class VQModel(_Host):
    """taming's VQModel with its quantizer replaced by :class:`vqct_plugin.CodebookTransferQuantizer`.

    Encoder, decoder and loss are the host's, and under the same seed start from the same weights as the host's.

    Args:
        ddconfig, lossconfig, n_embed, embed_dim, ckpt_path, ignore_keys, image_key, colorize_nlabels, monitor, remap,
            sane_index_shape: as the host has them. ``embed_dim`` is the total number of channels, ``n_embed`` the
            total number of codes (or a mapping from part of speech to number). ``ckpt_path`` takes stock VQGANs,
            whose codebook is left out, and checkpoints of this class.
        options: every other argument of :class:`CodebookTransferQuantizer`, such as ``prior``, ``topk`` or
            ``transfer``, and those of :func:`for_installed_lightning`: ``accumulate_grad_batches``,
            ``gradient_clip_val``, ``gradient_clip_algorithm``, ``reuse_forward``.

    Raises:
        TypeError: a keyword that is none of these; it names those that are close.
        CheckpointError: ``ckpt_path`` cannot be read, or does not fit.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: Union[int, Mapping[str, int]],
        embed_dim: int,
        ckpt_path: Any = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: Any = None,
        monitor: Any = None,
        remap: Any = None,
        sane_index_shape: bool = False,
        **options: Any,
    ) -> None:
        options = {name: plain(value) for name, value in options.items()}
        quantizer_options = {name: options.pop(name) for name in _QUANTIZER_OPTIONS if name in options}
        unknown = sorted(set(options) - set(ADAPTER_OPTIONS))
        if unknown:
            raise TypeError(_unknown_keyword(unknown[0]))
        n_embed = plain(n_embed)
        # The host builds its own codebook first, as large as it would have: the random numbers that this takes are
        # why the convolutions after it start from the host's weights.
        super().__init__(
            ddconfig=ddconfig,
            lossconfig=lossconfig,
            n_embed=sum(n_embed.values()) if isinstance(n_embed, Mapping) else n_embed,
            embed_dim=embed_dim,
            ckpt_path=None,
            image_key=image_key,
            colorize_nlabels=colorize_nlabels,
            monitor=monitor,
            **options,
        )
        self.quantize = CodebookTransferQuantizer(
            n_embed, embed_dim, remap=remap, sane_index_shape=sane_index_shape, **{"beta": 0.25, **quantizer_options}
        )
        # DDP would send these from the first process to all others at every step
        self._ddp_params_and_buffers_to_ignore = [f"quantize.{name}" for name in self.quantize.constant_buffers()]
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys=ignore_keys)


def _unknown_keyword(name: str) -> str:
    known = [p for p in inspect.signature(VQModel.__init__).parameters if p not in ("self", "options")]
    known += [*_QUANTIZER_OPTIONS, *ADAPTER_OPTIONS]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; close to it: {', '.join(close)}" if close else f"; it takes {', '.join(known)}"
    return f"vqct_plugin.VQModel takes no argument {name!r}{hint}"
