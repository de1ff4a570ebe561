"""VQCT, codebook transfer with part of speech, for the VQGAN codebases people already have.

Importing this takes torch, numpy, einops and safetensors. ``VQModel``, the taming-transformers host with our
quantizer, is imported when it is asked for.

Source: Zhang et al., *Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling*, CVPR 2024.
"""

from typing import TYPE_CHECKING, Any, List

from vqct_plugin._version import __version__
from vqct_plugin.prior import CodebookPrior, PriorError
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.usage import CodebookUsage

if TYPE_CHECKING:
    from vqct_plugin.hosts.taming import VQModel

#: the name to write in a patched host's ``quantizer_config.target``
Quantizer = CodebookTransferQuantizer

__all__ = [
    "CodebookTransferQuantizer",
    "Quantizer",
    "CodebookPrior",
    "PriorError",
    "CodebookUsage",
    "VQModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "VQModel":
        from vqct_plugin.hosts.taming import VQModel

        return VQModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted(__all__)
