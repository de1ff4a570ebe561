"""CompVis/latent-diffusion's first stages with a transferred codebook, on the untouched checkout.

``model.target: vqct_plugin.hosts.latent_diffusion.VQModel`` trains a first stage; for a diffusion model on top of it,
``first_stage_config.target: vqct_plugin.hosts.latent_diffusion.VQModelInterface``.

The host at its published commit cannot train a ``VQModel`` with its own loss: ``ldm/models/autoencoder.py`` and
``ldm/modules/losses/vqperceptual.py`` use names that they do not import. Those are given to these two modules here,
each only where it is missing. The loss is the host's (``ldm.modules.losses.vqperceptual``, with ``n_classes`` as many
as the codes) or, as the host's own configs name it, taming's, which is called without the indices that it does not
take.
"""

import importlib
from contextlib import suppress
from typing import Any, Mapping, Optional, Union

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.lightning import for_installed_lightning
from vqct_plugin.compat.taming_imports import lend_removed_names
from vqct_plugin.hosts.base import add_up, install, list_options, list_parameters, sort_options
from vqct_plugin.hosts.quantizer_config import accept_indices
from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["VQModel", "VQModelInterface"]

_INSTALL = (
    "vqct_plugin.hosts.latent_diffusion is for a checkout of CompVis/latent-diffusion: put its root on PYTHONPATH, "
    "beside taming-transformers, pytorch-lightning, omegaconf and einops"
)


def _import_ldm() -> Any:
    try:
        with lend_removed_names():
            autoencoder = importlib.import_module("ldm.models.autoencoder")
            ema = importlib.import_module("ldm.modules.ema")
    except ImportError as error:
        raise ImportError(f"{_INSTALL} ({error})", name=error.name) from error
    import numpy
    from torch.optim.lr_scheduler import LambdaLR

    missing = {"np": numpy, "LambdaLR": LambdaLR, "LitEma": ema.LitEma}
    with suppress(ImportError):  # needed in validation; the host's environment has it
        missing["version"] = importlib.import_module("packaging.version")
    for name, value in missing.items():
        if not hasattr(autoencoder, name):
            setattr(autoencoder, name, value)
    loss: Any
    try:
        loss = importlib.import_module("ldm.modules.losses.vqperceptual")
    except ImportError:
        return autoencoder
    if not hasattr(loss, "exists"):
        loss.exists = _exists
    return autoencoder


def _exists(value: Any) -> bool:
    return value is not None


_ldm: Any = _import_ldm()
_QUANTIZER_OPTIONS = list_options(CodebookTransferQuantizer, ("remap", "sane_index_shape"))
_HostVQModel: Any = for_installed_lightning(_ldm.VQModel)
_HostVQModelInterface: Any = for_installed_lightning(_ldm.VQModelInterface)


class VQModel(_HostVQModel):
    """latent-diffusion's VQModel with its quantizer replaced by :class:`vqct_plugin.CodebookTransferQuantizer`.

    Args:
        ddconfig, lossconfig, n_embed, embed_dim: as the host has them; ``embed_dim`` is the total number of channels,
            and so the latent channels of a diffusion model (``channels``, ``unet_config``'s ``in_channels`` and
            ``out_channels``): a multiple of the number of parts.
        ckpt_path, ignore_keys, use_ema, remap, sane_index_shape: as the host has them.
        options: the host's other arguments (``image_key``, ``monitor``, ``batch_resize_range``, ``scheduler_config``,
            ``lr_g_factor``, ...), the quantizer's, and those of :func:`for_installed_lightning`.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: Union[int, Mapping[str, int]],
        embed_dim: int,
        ckpt_path: Any = None,
        ignore_keys: Any = (),
        use_ema: bool = False,
        remap: Optional[str] = None,
        sane_index_shape: bool = False,
        **options: Any,
    ) -> None:
        _init(_HostVQModel, self, locals())


class VQModelInterface(_HostVQModelInterface):
    """latent-diffusion's VQModelInterface, the first stage as its diffusion models see it, with a transferred codebook.

    ``encode`` gives the map before quantization, ``decode`` quantizes. Arguments as for :class:`VQModel`.
    """

    def __init__(
        self,
        embed_dim: int,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: Union[int, Mapping[str, int]],
        ckpt_path: Any = None,
        ignore_keys: Any = (),
        use_ema: bool = False,
        remap: Optional[str] = None,
        sane_index_shape: bool = False,
        **options: Any,
    ) -> None:
        _init(_HostVQModelInterface, self, locals())


def _init(host: Any, model: Any, given: Mapping[str, Any]) -> None:
    options = dict(given["options"])
    of_host = [name for name in list_parameters(_ldm.VQModel) if name in options]
    host_options = {name: options.pop(name) for name in of_host}
    known = list_parameters(VQModel, _ldm.VQModel)
    quantizer_options, adapter_options = sort_options(type(model), options, _QUANTIZER_OPTIONS, known)
    n_embed = to_plain(given["n_embed"])
    host.__init__(
        model,
        ddconfig=given["ddconfig"],
        lossconfig=given["lossconfig"],
        n_embed=add_up(n_embed),
        embed_dim=given["embed_dim"],
        **host_options,
        **adapter_options,
    )
    accept_indices(model.loss)
    named = {name: given[name] for name in ("remap", "sane_index_shape")}
    quantizer_options = {"beta": 0.25, **quantizer_options, **named}
    install(model, CodebookTransferQuantizer, n_embed, given["embed_dim"], **quantizer_options)
    if given["use_ema"]:  # only now, so that it averages the transfer's weights
        model.use_ema = True
        model.model_ema = _ldm.LitEma(model)
    if given["ckpt_path"] is not None:
        model.init_from_ckpt(given["ckpt_path"], ignore_keys=given["ignore_keys"])
