"""A trained codebook into the image tokenizers of transformers: Chameleon's, Emu3's, Janus's and GlmImage's.

These classes read a codebook as ``quantize.embedding``, one row for each position, and train nothing: a copy of the
table is all that they need. transformers itself is not imported here.
"""

from typing import Any

import torch
import torch.nn as nn

from vqct_plugin.quantizer import CodebookTransferQuantizer

__all__ = ["export_to_transformers"]

#: what scales a row to length 1 before it is decoded
_SCALED = ("JanusVQVAEVectorQuantizer", "GlmImageVQVAEVectorQuantizer")


@torch.no_grad()
def export_to_transformers(quantizer: CodebookTransferQuantizer, model: nn.Module) -> nn.Module:
    """Copy a quantizer's codebook into the VQ model of transformers inside ``model``.

    Indices then mean there what they mean here: a map is given the same ones, and they decode to the same vectors.
    Encoder and decoder remain as they are; they have to have been trained with this codebook, or be trained for it.

    Args:
        quantizer: with one token per position: ``parts_of_speech="joint"`` and ``topk=1``. For Janus and GlmImage with
            ``l2_normalize=True``, since these scale a row to length 1 when they decode it.
        model: ``ChameleonVQVAE``, ``Emu3VQVAE``, ``JanusVQVAE``, ``GlmImageVQVAE``, or a model that has one of them
            inside.

    Returns:
        The VQ model that was written into.

    Raises:
        ValueError: the quantizer is of another kind, a position has several tokens, the sizes differ, the model has
            none of these or several, or it scales rows and the quantizer does not. Nothing is changed then.

    >>> from transformers import Emu3VQVAE, Emu3VQVAEConfig
    >>> small = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "hidden_size": 32}
    >>> model = Emu3VQVAE(Emu3VQVAEConfig(codebook_size=512, embed_dim=4, **small))
    >>> quantizer = CodebookTransferQuantizer(512, 4, parts_of_speech="joint")
    >>> vq_model = export_to_transformers(quantizer, model)
    >>> torch.equal(vq_model.quantize.embedding.weight, quantizer.embedding.weight)
    True
    """
    if not isinstance(quantizer, CodebookTransferQuantizer):
        raise ValueError(
            f"quantizer is a {type(quantizer).__name__}; expected a CodebookTransferQuantizer, such as a model's "
            "quantize: what chooses the nearest code, as transformers' models do"
        )
    if quantizer.tokens_per_position != 1:
        raise ValueError(
            f"a position has {quantizer.tokens_per_position} tokens here, and one in transformers' models; train the "
            "codebook with parts_of_speech='joint' and topk=1"
        )
    if quantizer.remap is not None:
        raise ValueError("the quantizer's remap names codes by other indices than their rows; build it without remap")
    vq_model = _find(model)
    weight, table = vq_model.quantize.embedding.weight, quantizer.embedding.weight
    kind = type(vq_model).__name__
    if weight.shape != table.shape:
        sizes = "codebook_size" if hasattr(getattr(vq_model, "config", None), "codebook_size") else "num_embeddings"
        raise ValueError(
            f"the codebook has {table.shape[0]} codes of {table.shape[1]} channels, and {kind} of the model "
            f"{weight.shape[0]} of {weight.shape[1]}; build the model with {sizes}={table.shape[0]} and "
            f"embed_dim={table.shape[1]} in its config"
        )
    if type(vq_model.quantize).__name__ in _SCALED and not quantizer.l2_normalize:
        raise ValueError(
            f"{kind} scales codes to length 1 when it decodes them, and this quantizer does not; train it with "
            "l2_normalize=True"
        )
    weight.copy_(table)
    return vq_model


def _find(model: nn.Module) -> Any:
    """The one VQ model of transformers inside a model."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; expected one of transformers, built or loaded")
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(getattr(module, "quantize", None), "embedding", None), nn.Embedding)
    ]
    if len(found) != 1:
        those = ", ".join(name or "itself" for name, _ in found) or "none"
        raise ValueError(
            f"{type(model).__name__} has {those} with quantize.embedding; expected one of ChameleonVQVAE, Emu3VQVAE, "
            "JanusVQVAE and GlmImageVQVAE, or a model that has one of them inside"
        )
    return found[0][1]
