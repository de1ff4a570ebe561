"""VQCT, codebook transfer with part of speech, for the VQGAN codebases people already have.

Importing this takes numpy and safetensors; whatever needs more (torch for the quantizer, taming-transformers for
``VQModel``, transformers and NLTK for ``build_prior``) is imported when it is asked for.

Source: Zhang et al., *Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling*, CVPR 2024.
"""

import importlib
from typing import TYPE_CHECKING, Any, List

from vqct_plugin._version import __version__
from vqct_plugin.prior import CodebookPrior, PriorError

if TYPE_CHECKING:
    from vqct_plugin.building.build import build_prior
    from vqct_plugin.hosts.taming import VQModel
    from vqct_plugin.quantizer import CodebookTransferQuantizer
    from vqct_plugin.quantizer import CodebookTransferQuantizer as Quantizer
    from vqct_plugin.usage import CodebookUsage

_WHERE = {
    "CodebookTransferQuantizer": ("vqct_plugin.quantizer", "CodebookTransferQuantizer"),
    # the name to write in a patched host's quantizer_config.target
    "Quantizer": ("vqct_plugin.quantizer", "CodebookTransferQuantizer"),
    "CodebookUsage": ("vqct_plugin.usage", "CodebookUsage"),
    "VQModel": ("vqct_plugin.hosts.taming", "VQModel"),
    "build_prior": ("vqct_plugin.building.build", "build_prior"),
}

__all__ = [
    "CodebookTransferQuantizer",
    "Quantizer",
    "CodebookPrior",
    "PriorError",
    "CodebookUsage",
    "VQModel",
    "build_prior",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module, attribute = _WHERE[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted(__all__)
