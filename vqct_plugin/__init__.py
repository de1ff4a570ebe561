"""VQCT, codebook transfer with part of speech, for the VQGAN codebases people already have.

Importing this takes numpy and safetensors; whatever needs more (torch for the quantizer, taming-transformers for
``VQModel``, transformers and NLTK for ``build_prior``) is imported when it is asked for.

Source: Zhang et al., *Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling*, CVPR 2024.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any, List

from vqct_plugin import pretrained as _pretrained
from vqct_plugin._version import __version__
from vqct_plugin.prior import CodebookPrior, PriorError

if TYPE_CHECKING:
    from vqct_plugin.building.build import build_prior
    from vqct_plugin.compat.checkpoints import CheckpointError
    from vqct_plugin.hosts.taming import GumbelVQ, VQModel, VQSegmentationModel
    from vqct_plugin.quantizer import CodebookTransferQuantizer
    from vqct_plugin.quantizer import CodebookTransferQuantizer as Quantizer
    from vqct_plugin.runs.config import ConfigError, DataError
    from vqct_plugin.runs.load import load_run
    from vqct_plugin.stage_2.transformer import Net2NetTransformer
    from vqct_plugin.training.in_python import train
    from vqct_plugin.usage import CodebookUsage

_WHERE = {
    "CodebookTransferQuantizer": ("vqct_plugin.quantizer", "CodebookTransferQuantizer"),
    # the name to write in a patched host's quantizer_config.target, and in model.target of a taming YAML
    "Quantizer": ("vqct_plugin.quantizer", "CodebookTransferQuantizer"),
    "CodebookUsage": ("vqct_plugin.usage", "CodebookUsage"),
    # the names to write in model.target of a taming YAML
    "VQModel": ("vqct_plugin.hosts.taming", "VQModel"),
    "VQSegmentationModel": ("vqct_plugin.hosts.taming", "VQSegmentationModel"),
    "GumbelVQ": ("vqct_plugin.hosts.taming", "GumbelVQ"),
    "Net2NetTransformer": ("vqct_plugin.stage_2.transformer", "Net2NetTransformer"),
    "build_prior": ("vqct_plugin.building.build", "build_prior"),
    "train": ("vqct_plugin.training.in_python", "train"),
    "load_run": ("vqct_plugin.runs.load", "load_run"),
    "ConfigError": ("vqct_plugin.runs.config", "ConfigError"),
    "DataError": ("vqct_plugin.runs.config", "DataError"),
    "CheckpointError": ("vqct_plugin.compat.checkpoints", "CheckpointError"),
}

#: names that are looked for here and lie elsewhere
_ELSEWHERE = {
    "GumbelTransferQuantizer": "vqct_plugin.gumbel",
    "VQModelInterface": "vqct_plugin.hosts.latent_diffusion",
    "LlamaGenQuantizer": "vqct_plugin.hosts.llamagen",
    "CVQQuantizer": "vqct_plugin.hosts.cvq_vae",
    "VQGANLCQuantizer": "vqct_plugin.hosts.vqgan_lc",
    "SimVQQuantizer": "vqct_plugin.hosts.simvq",
    "for_installed_lightning": "vqct_plugin.compat.lightning",
    "build_quantizer": "vqct_plugin.hosts.quantizer_config",
    "PartsGPT": "vqct_plugin.stage_2.transformer",
    "DataModuleFromConfig": "vqct_plugin.runs.datasets",
    "ImageLogger": "vqct_plugin.training.callbacks",
}

__all__ = [
    "CodebookTransferQuantizer",
    "Quantizer",
    "CodebookPrior",
    "build_prior",
    "VQModel",
    "VQSegmentationModel",
    "GumbelVQ",
    "Net2NetTransformer",
    "train",
    "load_run",
    "CodebookUsage",
    "PriorError",
    "ConfigError",
    "DataError",
    "CheckpointError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module, attribute = _WHERE[name]
        return getattr(importlib.import_module(module), attribute)
    hint = ""
    if name in _ELSEWHERE:
        hint = f"; it is {_ELSEWHERE[name]}.{name}"
    elif not name.startswith("_"):
        close = difflib.get_close_matches(name, [*__all__, *_ELSEWHERE], n=2)
        hint = f"; close to it: {', '.join(f'{_ELSEWHERE.get(n, __name__)}.{n}' for n in close)}" if close else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def _build_model(params: Any) -> Any:
    """What the quantizer asks for where it is given a model's params."""
    return importlib.import_module("vqct_plugin.hosts.target").build_model(params)


def _open_pretrained() -> Any:
    """What a prior and a quantizer ask for folders and names on the hub."""
    return importlib.import_module("vqct_plugin.compat.pretrained")


_pretrained.open_wing = _open_pretrained  # the core imports no wing: it is handed this one


def __dir__() -> List[str]:
    return sorted(__all__)
