"""taming-transformers' models with a transferred codebook: ``model.target: vqct_plugin.VQModel``, and nothing else.

Works on the untouched wheel ``taming-transformers-rom1504`` and on a checkout of CompVis/taming-transformers, on
today's Lightning and on the 1.0.8 that they were written for.
"""

from typing import TYPE_CHECKING, Any, Mapping, Sequence, Union

from vqct_plugin.gumbel import GumbelTransferQuantizer
from vqct_plugin.hosts._checkpoint import CheckpointError
from vqct_plugin.hosts._lightning import for_installed_lightning
from vqct_plugin.hosts._taming_imports import import_taming
from vqct_plugin.hosts._transferred import install, options_of, parameters_of, sorted_options, total
from vqct_plugin.hosts.quantizer_config import plain
from vqct_plugin.quantizer import CodebookTransferQuantizer

if TYPE_CHECKING:
    from vqct_plugin.hosts._stage_2 import Net2NetTransformer

__all__ = [
    "VQModel",
    "VQSegmentationModel",
    "GumbelVQ",
    "Net2NetTransformer",
    "for_installed_lightning",
    "CheckpointError",
]

_QUANTIZER_OPTIONS = options_of(CodebookTransferQuantizer, ("remap", "sane_index_shape"))
_GUMBEL_OPTIONS = options_of(GumbelTransferQuantizer, ("kl_weight", "temp_init"))
_HostVQModel: Any = for_installed_lightning(import_taming().VQModel)
_HostVQSegmentationModel: Any = for_installed_lightning(import_taming().VQSegmentationModel)
_HostGumbelVQ: Any = for_installed_lightning(import_taming().GumbelVQ)


class VQModel(_HostVQModel):
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
        quantizer_options, options = sorted_options(type(self), options, _QUANTIZER_OPTIONS, parameters_of(VQModel))
        n_embed = plain(n_embed)
        # The host builds its own codebook first, as large as it would have: the random numbers that this takes are
        # why the convolutions after it start from the host's weights.
        super().__init__(
            ddconfig=ddconfig,
            lossconfig=lossconfig,
            n_embed=total(n_embed),
            embed_dim=embed_dim,
            ckpt_path=None,
            image_key=image_key,
            colorize_nlabels=colorize_nlabels,
            monitor=monitor,
            **options,
        )
        quantizer_options = {"beta": 0.25, **quantizer_options, "remap": remap, "sane_index_shape": sane_index_shape}
        install(self, CodebookTransferQuantizer, n_embed, embed_dim, **quantizer_options)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys=ignore_keys)


class VQSegmentationModel(_HostVQSegmentationModel):
    """taming's VQSegmentationModel, the VQGAN of label maps for stage 2's conditioning, with a transferred codebook.

    Args:
        n_labels: how many labels a map has; the image channels of ``ddconfig``.
        All others are those of :class:`VQModel`. Stage 2 of taming wants ``sane_index_shape: true`` of it.
    """

    def __init__(
        self,
        n_labels: int,
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
        known = parameters_of(VQSegmentationModel)
        quantizer_options, options = sorted_options(type(self), options, _QUANTIZER_OPTIONS, known)
        n_embed = plain(n_embed)
        super().__init__(
            n_labels,
            ddconfig=ddconfig,
            lossconfig=lossconfig,
            n_embed=total(n_embed),
            embed_dim=embed_dim,
            ckpt_path=None,
            image_key=image_key,
            colorize_nlabels=colorize_nlabels,
            monitor=monitor,
            **options,
        )
        quantizer_options = {"beta": 0.25, **quantizer_options, "remap": remap, "sane_index_shape": sane_index_shape}
        install(self, CodebookTransferQuantizer, n_embed, embed_dim, **quantizer_options)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys=ignore_keys)


class GumbelVQ(_HostGumbelVQ):
    """taming's GumbelVQ with :class:`vqct_plugin.gumbel.GumbelTransferQuantizer`: a categorical head for each part.

    Args:
        temperature_scheduler_config: ``{target, params}`` of the temperature as a function of the step, as in taming
            (``taming.lr_scheduler.LambdaWarmUpCosineScheduler``).
        kl_weight: the weight of the KL divergence of each head to the uniform distribution.
        ddconfig, lossconfig, n_embed, embed_dim, ckpt_path, ignore_keys, image_key, colorize_nlabels, monitor: as of
            :class:`VQModel`.
        options: the other arguments of :class:`GumbelTransferQuantizer` and of :func:`for_installed_lightning`.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: Union[int, Mapping[str, int]],
        embed_dim: int,
        temperature_scheduler_config: Mapping[str, Any],
        ckpt_path: Any = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: Any = None,
        monitor: Any = None,
        kl_weight: float = 1e-8,
        **options: Any,
    ) -> None:
        quantizer_options, options = sorted_options(type(self), options, _GUMBEL_OPTIONS, parameters_of(GumbelVQ))
        n_embed = plain(n_embed)
        super().__init__(
            ddconfig=ddconfig,
            lossconfig=lossconfig,
            n_embed=total(n_embed),
            embed_dim=embed_dim,
            temperature_scheduler_config=temperature_scheduler_config,
            ckpt_path=None,
            image_key=image_key,
            colorize_nlabels=colorize_nlabels,
            monitor=monitor,
            kl_weight=kl_weight,
            **options,
        )
        install(self, GumbelTransferQuantizer, n_embed, embed_dim, kl_weight=kl_weight, **quantizer_options)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys=ignore_keys)

    def decode_code(self, code_b: Any) -> Any:
        """The image of a code, as :meth:`VQModel.decode_code` (the host's GumbelVQ has none)."""
        return self.decode(self.quantize.embed_code(code_b))


def __getattr__(name: str) -> Any:
    if name == "Net2NetTransformer":  # taming's stage 2 imports transformers: seconds that a first stage need not wait
        from vqct_plugin.hosts._stage_2 import Net2NetTransformer

        return Net2NetTransformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
