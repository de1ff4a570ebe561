"""taming-transformers' models with a transferred codebook: ``model.target: vqct_plugin.VQModel``, and nothing else.

Works on the untouched wheel ``taming-transformers-rom1504`` and on a checkout of CompVis/taming-transformers, on
today's Lightning and on the 1.0.8 that they were written for.
"""

from typing import Any, Mapping, Sequence, Tuple, Union

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.lightning import for_installed_lightning
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.gumbel import GumbelTransferQuantizer
from vqct_plugin.hosts.base import add_up, install, list_options, list_parameters, sort_options
from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["VQModel", "VQSegmentationModel", "GumbelVQ"]

_HostVQModel: Any = for_installed_lightning(import_taming().VQModel)
_HostVQSegmentationModel: Any = for_installed_lightning(import_taming().VQSegmentationModel)
_HostGumbelVQ: Any = for_installed_lightning(import_taming().GumbelVQ)


class _Transferred:
    """The constructor of the three: the host's, and then our quantizer in the place of its own."""

    _quantizer: type = CodebookTransferQuantizer
    _host_arguments: Tuple[str, ...] = ()  # that only this host's model has
    _shared_arguments: Tuple[str, ...] = ()  # those of them that the quantizer takes too

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
        if remap is not None:
            options["remap"] = remap
        if sane_index_shape:
            options["sane_index_shape"] = sane_index_shape
        own = {name: options.pop(name) for name in self._host_arguments}
        known = list_parameters(*(cls for cls in type(self).__mro__ if issubclass(cls, _Transferred)))
        of_quantizer = list_options(self._quantizer, ("temp_init", *self._shared_arguments))
        quantizer_options, options = sort_options(type(self), options, of_quantizer, known)
        quantizer_options.update({name: own[name] for name in self._shared_arguments})
        n_embed = to_plain(n_embed)
        # The host builds its own codebook first, as large as it would have: the random numbers that this takes are
        # why the convolutions after it start from the host's weights.
        super().__init__(
            ddconfig=ddconfig,
            lossconfig=lossconfig,
            n_embed=add_up(n_embed),
            embed_dim=embed_dim,
            ckpt_path=None,
            image_key=image_key,
            colorize_nlabels=colorize_nlabels,
            monitor=monitor,
            **own,
            **options,
        )  # type: ignore[call-arg]
        install(self, self._quantizer, n_embed, embed_dim, **quantizer_options)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys=ignore_keys)  # type: ignore[attr-defined]


class VQModel(_Transferred, _HostVQModel):
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


class VQSegmentationModel(_Transferred, _HostVQSegmentationModel):
    """taming's VQSegmentationModel, the VQGAN of label maps for stage 2's conditioning, with a transferred codebook.

    Args:
        n_labels: how many labels a map has; the image channels of ``ddconfig``.
        All others are those of :class:`VQModel`.
    """

    _host_arguments = ("n_labels",)

    def __init__(self, n_labels: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, n_labels=n_labels, **options)


class GumbelVQ(_Transferred, _HostGumbelVQ):
    """taming's GumbelVQ with :class:`vqct_plugin.gumbel.GumbelTransferQuantizer`: a categorical head for each part.

    Args:
        temperature_scheduler_config: ``{target, params}`` of the temperature as a function of the step, as in taming
            (``taming.lr_scheduler.LambdaWarmUpCosineScheduler``).
        kl_weight: the weight of the KL divergence of each head to the uniform distribution.
        ddconfig, lossconfig, n_embed, embed_dim, ckpt_path, ignore_keys, image_key, colorize_nlabels, monitor: as for
            :class:`VQModel`.
        options: the other arguments of :class:`GumbelTransferQuantizer` and of :func:`for_installed_lightning`.
    """

    _quantizer = GumbelTransferQuantizer
    _host_arguments = ("temperature_scheduler_config", "kl_weight")
    _shared_arguments = ("kl_weight",)

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: Union[int, Mapping[str, int]],
        embed_dim: int,
        temperature_scheduler_config: Mapping[str, Any],
        *args: Any,
        kl_weight: float = 1e-8,
        **options: Any,
    ) -> None:
        options.update(temperature_scheduler_config=temperature_scheduler_config, kl_weight=kl_weight)
        super().__init__(ddconfig, lossconfig, n_embed, embed_dim, *args, **options)

    def decode_code(self, code_b: Any) -> Any:
        """The image of a code, as :meth:`VQModel.decode_code` (the host's GumbelVQ has none)."""
        return self.decode(self.quantize.embed_code(code_b))
