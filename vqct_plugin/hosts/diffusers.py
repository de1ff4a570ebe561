"""diffusers' ``VQModel`` with a transferred codebook: ``from vqct_plugin.hosts.diffusers import VQModel``.

What diffusers does with a model is served: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, pipelines,
``EMAModel``, accelerate, gradient checkpointing. A folder stands alone: the quantizer comes back from its weights,
words included, where the prior file is gone.
"""

import inspect
import json
import logging
import os
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Union

import diffusers
import torch
from torch import Tensor

from vqct_plugin._files import write_whole
from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.trusted import refuse_foreign
from vqct_plugin.hosts.base import install, start_from
from vqct_plugin.hosts.quantizer_config import build_quantizer
from vqct_plugin.prior import CodebookPrior
from vqct_plugin.state import CHANGED, read_prior, read_settings
from vqct_plugin.terms import was_given

__all__ = ["VQModel"]

_log = logging.getLogger(__name__)
_HostVQModel: Any = diffusers.VQModel
ModelMixin = diffusers.ModelMixin  # by this name of the module a pipeline's loading knows how to load its classes
_OURS = "vqct_plugin.Quantizer"
_ARGUMENT = inspect.Parameter("quantizer_config", inspect.Parameter.KEYWORD_ONLY, default=None)
#: of a folder that diffusers.AutoModel is to open: what it imports there, for who trusts it to
_MODULE, _IMPORT = "vqct_vqmodel", "from vqct_plugin.hosts.diffusers import VQModel  # noqa: F401\n"
#: how the config of a living model describes a prior that has no name
_OBJECT = "given as an object: "
_AUTO_MAP = {"AutoModel": f"{_MODULE}.VQModel"}


class VQModel(_HostVQModel):
    """diffusers' VQModel with its quantizer replaced by :class:`vqct_plugin.CodebookTransferQuantizer`.

    Encoder and decoder are the host's, and under the same seed start from the same weights as the host's.

    Args:
        quantizer_config: options of the quantizer, as ``{"topk": 2}``; or ``{"target": "package.Class", "params":
            {...}}``. It is kept in ``config.json``: classes and functions are given by name. A prior is a file, or a
            :class:`vqct_plugin.CodebookPrior`; ``config.json`` has the name of an absolute path's file, and nothing of
            an object: the prior itself is in the weights.
        args, options: those of diffusers' VQModel. ``num_vq_embeddings`` is the total number of codes, and
            ``vq_embed_dim`` the total number of channels: with two parts of speech an even number.

    Raises:
        ValueError: ``quantizer_config`` is no mapping, has values that JSON cannot hold, or makes another number of
            codes than ``num_vq_embeddings``.
        TypeError: the quantizer takes no such option; the message suggests close matches.

    >>> model = VQModel(num_vq_embeddings=512, latent_channels=8, quantizer_config={"topk": 2})
    >>> sample, loss = model(torch.rand(1, 3, 16, 16), return_dict=False)
    >>> sample.shape, loss.shape
    (torch.Size([1, 3, 16, 16]), torch.Size([]))
    """

    quantize: Any
    # encoder and decoder can, and the host's class does not say so
    _supports_gradient_checkpointing = True
    # the quantizer reads its own part of the weights
    _keys_to_ignore_on_load_unexpected = (r"^quantize\.",)

    def __init__(self, *args: Any, quantizer_config: Optional[Mapping[str, Any]] = None, **options: Any) -> None:
        super().__init__(*args, **options)
        if isinstance(quantizer_config, _Later):
            self.quantize = quantizer_config
            return
        like = getattr(quantizer_config, "quantizer", None)
        if like is not None and like.n_e != self.config.num_vq_embeddings:
            like = None
        self.__dict__["_like"] = like  # not as a module of this one
        self._install(_spell_out(quantizer_config), getattr(like, "prior", None))

    # diffusers reads off it what config.json may hold
    __init__.__signature__ = inspect.signature(_HostVQModel.__init__).replace(  # type: ignore[attr-defined]
        parameters=[*inspect.signature(_HostVQModel.__init__).parameters.values(), _ARGUMENT]
    )

    def _install(self, config: Dict[str, Any], prior: Optional[CodebookPrior] = None) -> None:
        """Build the quantizer of ``{target, params}``, over this prior if given, and keep in the config how."""
        used = config if prior is None else {**config, "params": {**config["params"], "prior": prior}}
        n_e, e_dim = self.config.num_vq_embeddings, self.quant_conv.out_channels
        install(self, build_quantizer, used, n_e=n_e, e_dim=e_dim, beta=0.25, remap=None, sane_index_shape=False)
        if self.quantize.n_e != n_e:
            raise ValueError(
                f"num_vq_embeddings is {n_e}, and quantizer_config makes {self.quantize.n_e} codes; set "
                f"num_vq_embeddings to {self.quantize.n_e}, the number of all of them"
            )
        defaults = _changed_in(getattr(self.quantize, "settings", {}))
        self.register_to_config(quantizer_config=_plain({**config, "params": {**defaults, **config["params"]}}))

    def register_to_config(self, **values: Any) -> None:
        """As the host's. The config of a living model also knows its quantizer, see :class:`_Config`."""
        if isinstance(values.get("quantizer_config"), dict) and "quantize" in self._modules:
            values["quantizer_config"] = _Config(values["quantizer_config"], self.quantize)
        super().register_to_config(**values)
        like = self.__dict__.get("_like")
        if like is not None and "optimization_step" in values:
            # EMAModel makes the model that it saves from a config, and gives it averages of the parameters alone
            own = dict(self.quantize.named_buffers())
            for name, buffer in like.named_buffers():
                own[name].copy_(buffer)

    def save_config(self, save_directory: Union[str, "os.PathLike[str]"], *args: Any, **options: Any) -> None:
        """As the host's, and a line of Python for ``diffusers.AutoModel``, which would take the host's class."""
        super().register_to_config(auto_map=_AUTO_MAP)
        super().save_config(save_directory, *args, **options)
        write_whole(Path(save_directory) / f"{_MODULE}.py", _IMPORT.encode(), overwrite=True)

    def to_json_string(self) -> str:
        """As the host's, without what is of this machine: the folders of the prior's file, and the description of one
        that was given as an object, which is no name of it."""
        config = json.loads(super().to_json_string())
        params = (config.get("quantizer_config") or {}).get("params", {})
        named = params.get("prior")
        if named is not None:
            if named.startswith(_OBJECT):
                del params["prior"]
            elif Path(named).is_absolute() or named.startswith("~"):
                params["prior"] = Path(named).name
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """As the host's: a new model, or with ``return_unused_kwargs`` a pair of it and what was not used."""
        if isinstance(config, (str, os.PathLike)):  # as EMAModel.from_pretrained has it
            config = cls.from_pretrained(config).config
        later = options.get("quantizer_config")
        if isinstance(later, _Later) and later.config is None:
            later.config = config.get("quantizer_config")
        config = {name: value for name, value in config.items() if name != "auto_map"}
        return super().from_config(config, return_unused_kwargs, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Union[str, "os.PathLike[str]"],
        *,
        quantizer_config: Optional[Mapping[str, Any]] = None,
        trusted: Optional[Sequence[str]] = None,
        **options: Any,
    ) -> Any:
        """The model of a folder or of a repository, with the quantizer that its weights hold.

        Args:
            pretrained_model_name_or_path: what ``save_pretrained`` wrote. One of a stock VQModel is taken too: its
                codebook is left out, and a transferred one starts. So is one that was written after ``model.quantize =
                vqct_plugin.Quantizer(...)``.
            quantizer_config: in place of that of ``config.json``. A prior that it names has to be that of the weights.
            trusted: packages, beside ``vqct_plugin``, ``taming`` and ``ldm``, whose classes and functions may be named
                by ``config.json`` and by the weights: they are imported and run. By default none for a name on the hub,
                and any for a folder, which is taken for one of your own; ``()`` for none there too.
            options: those of the host. ``low_cpu_mem_usage`` has no effect, and ``device_map`` names one device. With
                ``torch_dtype`` the quantizer stays in float32.

        Raises:
            ValueError: ``device_map`` splits the model.
            HubError: a class or function is named that is not trusted; nothing of it has been imported.
            PriorError: the weights are of another quantizer or prior than ``quantizer_config``, or damaged; or there is
                no such prior.
        """
        device = _single_device(options.pop("device_map", None))
        if trusted is None and not os.path.isdir(pretrained_model_name_or_path):
            trusted = ()
        later = _Later(quantizer_config, trusted, str(pretrained_model_name_or_path))
        options["low_cpu_mem_usage"] = False  # the other way sets tensors one by one, without asking the modules
        loaded = super().from_pretrained(pretrained_model_name_or_path, quantizer_config=later, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        later.take_place(model)
        if device is not None:
            model.to(device)
        return loaded


class _Config(Dict[str, Any]):
    """``quantizer_config`` in the config of a living model, which knows the quantizer: so that another one made from it
    has its prior, also where the file is gone."""

    def __init__(self, config: Mapping[str, Any], quantizer: Any) -> None:
        super().__init__(config)
        self.quantizer = quantizer


class _Later(torch.nn.Module):
    """In the place of a quantizer whose weights are being loaded: it has to be built over the prior that they hold."""

    def __init__(self, config: Optional[Mapping[str, Any]], trusted: Optional[Sequence[str]], source: str) -> None:
        super().__init__()
        self.config, self.trusted, self.source = config, trusted, source
        self.of_caller = config is not None  # and not of config.json, which comes later
        self.state: Dict[str, Tensor] = {}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Once for each file of weights."""
        self.state.update({k[len(prefix) :]: value for k, value in state_dict.items() if k.startswith(prefix)})

    def take_place(self, model: Any) -> None:
        """Put the quantizer into the model, in evaluation mode as this."""
        prior, settings = read_prior(self.state), read_settings(self.state)
        config = self.config
        if config is None and prior is not None:  # after the plain line
            config = {name: value for name, value in settings.items() if name != "e_dim"}
        if not self.of_caller:
            self._check(config)
        config = _spell_out(config)
        used = prior
        if self.of_caller and config["params"].get("prior") is not None:  # compared with that of the weights below
            used = getattr(getattr(self.config, "quantizer", None), "prior", None)
        else:  # written under earlier defaults
            changed = {name: its for name, its in _changed_in(settings).items() if name not in config["params"]}
            self._check(changed)
            config["params"].update(changed)
        model.quantize = torch.nn.Identity()
        model._install(config, used)
        if prior is None and "embedding.weight" in self.state:
            _log.warning("The weights have a learned codebook, which is left out: the transferred one starts anew.")
            start_from(model.quantize, self.state["embedding.weight"])
        else:
            model.quantize.load_state_dict(self.state)
        model.quantize.train(model.training)

    def _check(self, config: Any) -> None:
        if self.trusted is not None:
            refuse_foreign({"quantizer_config": config}, self.trusted, self.source)


def _changed_in(settings: Mapping[str, Any]) -> Dict[str, Any]:
    """What a quantizer's settings say of the options whose defaults were others once, but for objects.

    config.json names them, so that a folder outlives the next change too.
    """
    return {name: settings[name] for name in CHANGED if name in settings and not was_given(settings[name])}


def _spell_out(config: Any) -> Dict[str, Any]:
    """``{target, params}`` of what a user writes."""
    config = {} if config is None else to_plain(config)
    if not isinstance(config, Mapping):
        raise ValueError(
            f"quantizer_config is {config!r}; expected a mapping: options of the quantizer, or {{target, params}}"
        )
    if "target" in config or "params" in config:
        return {"target": _OURS, **config, "params": dict(config.get("params") or {})}
    return {"target": _OURS, "params": dict(config)}


def _plain(config: Mapping[str, Any]) -> Dict[str, Any]:
    """``{target, params}`` as config.json gives it back."""
    params = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in config["params"].items()}
    if isinstance(params.get("prior"), CodebookPrior):
        params["prior"] = _OBJECT + params["prior"].describe()
    for name, value in params.items():
        try:
            params[name] = json.loads(json.dumps(value))
        except TypeError as error:
            raise ValueError(
                f"quantizer_config has {type(value).__name__} as {name}, which config.json cannot hold; give its name, "
                f"{{'{name}': 'package.module.name'}}"
            ) from error
    return {**config, "params": params}


def _single_device(device_map: Any) -> Any:
    if isinstance(device_map, Mapping) and list(device_map) == [""]:
        device_map = device_map[""]
    if isinstance(device_map, Mapping) or device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        raise ValueError(f"device_map is {device_map!r}, which splits the model; expected one device, such as 'cuda'")
    return device_map
