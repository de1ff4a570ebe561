"""``model.target: vqct_plugin.Quantizer``: the one word that a taming YAML changes, with the model's own params.

A host's launcher builds whatever ``target`` names with ``params``. Where these are a model's, and not a quantizer's,
the model is meant, with our quantizer in it; which model follows from them.
"""

import importlib
from typing import Any, Mapping, Tuple

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.quantizer import CodebookTransferQuantizer

_TAMING, _LDM = "vqct_plugin.hosts.taming", "vqct_plugin.hosts.latent_diffusion"
#: arguments that only one model has -> that model; the first that is there decides
_TELLING = {
    "temperature_scheduler_config": (_TAMING, "GumbelVQ"),
    "n_labels": (_TAMING, "VQSegmentationModel"),
    "batch_resize_range": (_LDM, "VQModel"),
    "scheduler_config": (_LDM, "VQModel"),
    "lr_g_factor": (_LDM, "VQModel"),
    "use_ema": (_LDM, "VQModel"),
}
#: arguments of latent-diffusion's Encoder and Decoder, which taming's take for nothing, and without a word
_OF_LDM_ENCODER = ("attn_type", "use_linear_attn")


def is_of_a_model(target: Any, params: Mapping[str, Any]) -> bool:
    """Whether ``{target, params}`` names our quantizer and means a model with it."""
    return target is CodebookTransferQuantizer and not CodebookTransferQuantizer.OF_A_MODEL.isdisjoint(params)


def choose_model(params: Mapping[str, Any]) -> Any:
    """The class of the model that has these params: taming's ``VQModel``, ``VQSegmentationModel`` or ``GumbelVQ``, or
    latent-diffusion's ``VQModel``, each with our quantizer.

    Raises:
        TypeError: they are a stage 2's, or not enough for a model.
    """
    if "transformer_config" in params or "first_stage_config" in params:
        raise TypeError(
            "vqct_plugin.Quantizer stands for a first stage, and transformer_config and first_stage_config are of a "
            "stage 2: write vqct_plugin.Net2NetTransformer, or the host's own, as model.target, and "
            "vqct_plugin.Quantizer as first_stage_config.target"
        )
    missing = [name for name in ("ddconfig", "lossconfig", "n_embed", "embed_dim") if name not in params]
    if missing:
        given = ", ".join(sorted(CodebookTransferQuantizer.OF_A_MODEL.intersection(params)))
        raise TypeError(
            f"vqct_plugin.Quantizer was given {given}, as a host's model is, but no {' and no '.join(missing)}; a "
            "model takes ddconfig, lossconfig, n_embed and embed_dim, and the quantizer by itself n_e and e_dim"
        )
    module, name = locate_model(params)
    return getattr(importlib.import_module(module), name)


def build_model(params: Mapping[str, Any]) -> Any:
    """The model with our quantizer that has these params, see :func:`choose_model`."""
    return choose_model(params)(**params)


def locate_model(params: Mapping[str, Any]) -> Tuple[str, str]:
    """The module and the name of the model that has these params, without importing it."""
    loss, encoder = to_plain(params["lossconfig"]), to_plain(params["ddconfig"])
    if isinstance(loss, Mapping) and str(loss.get("target")).startswith("ldm."):
        return _LDM, "VQModel"
    told = next((where for name, where in _TELLING.items() if name in params), None)
    if told is None and isinstance(encoder, Mapping) and any(name in encoder for name in _OF_LDM_ENCODER):
        return _LDM, "VQModel"
    return told or (_TAMING, "VQModel")
