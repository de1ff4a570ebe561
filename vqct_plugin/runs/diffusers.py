"""A run as a model of diffusers, and a model of diffusers as a run: the same VQGAN under other names.

taming's encoder and decoder have the same layers as diffusers' ``VQModel`` with ``norm_type="group"``; sizes that only
one of them can have are refused. Images are as they were trained: taming's in [-1, 1], those of diffusers' script in
[0, 1].
"""

import datetime
import io
import json
import logging
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import diffusers
import torch
import yaml
from torch import Tensor

from vqct_plugin._files import write_whole
from vqct_plugin.compat.checkpoints import read_weights
from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.hosts.diffusers import VQModel
from vqct_plugin.hosts.taming import VQModel as TamingVQModel
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.runs.config import ConfigError, check_target, find
from vqct_plugin.runs.load import load_first_stage
from vqct_plugin.terms import was_given

__all__ = ["to_diffusers", "to_run"]

_log = logging.getLogger(__name__)
_SIZES = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "in_channels", "out_ch", "z_channels")
#: what diffusers' encoder and decoder always have, under taming's and latent-diffusion's names
_FIXED: Mapping[str, Any] = {
    "double_z": False, "resamp_with_conv": True, "give_pre_end": False, "tanh_out": False, "attn_type": "vanilla",
    "use_linear_attn": False,
}  # fmt: skip
#: and what taming's always have, under diffusers' names
_THEIR_FIXED: Mapping[str, Any] = {
    "norm_type": "group", "act_fn": "silu", "norm_num_groups": 32, "mid_block_add_attention": True,
}  # fmt: skip
_CONFIG = "config.json"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
_LAYERS = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_MID = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
_LOSS = {"target": "vqct_plugin.runs.losses.VQPixelWithDiscriminator", "params": {"disc_start": 10_000}}

#: of a config without images; to train on, give a YAML that names them
_DATA = {"target": "main.DataModuleFromConfig", "params": {"batch_size": 8}}


def to_diffusers(run: Union[str, Path]) -> Any:
    """The first stage of a run as a model of diffusers, in evaluation mode; ``.save_pretrained(folder)`` writes it.

    Args:
        run: a run's folder, or a checkpoint in it.

    Returns:
        A :class:`vqct_plugin.hosts.diffusers.VQModel`, or for a run of taming's own quantizer ``diffusers.VQModel``.
        The dropout of ``ddconfig`` has no place there.

    Raises:
        ConfigError: no such run, no first stage, or one whose layers or quantizer diffusers' model cannot have.
    """
    trained = load_first_stage(run)
    ours = trained.model
    params = to_plain(trained.config.model.params)
    missing = [name for name in ("ddconfig", "embed_dim") if name not in params]
    if missing:
        raise ConfigError(f"{run} has no model.params.{missing[0]}; expected a VQGAN of taming's")
    sizes = {
        **_sizes_of(params["ddconfig"]),
        "vq_embed_dim": params["embed_dim"],
        "num_vq_embeddings": ours.quantize.n_e,
    }
    if type(ours.quantize) is CodebookTransferQuantizer:
        options = _options_of(ours.quantize)
        model = VQModel(**sizes, quantizer_config={**options, "prior": ours.quantize.prior})
        named = ((params.get("quantizer_config") or params).get("params") or params).get("prior")
        config = model.config.quantizer_config
        config = {**config, "params": {**options, **({} if named is None else {"prior": named})}}
        model.register_to_config(quantizer_config=config)
    elif isinstance(getattr(ours.quantize, "embedding", None), torch.nn.Embedding) and ours.quantize.remap is None:
        model = diffusers.VQModel(**sizes)
    else:
        raise ConfigError(
            f"{run} has a {type(ours.quantize).__name__} as its quantizer, which diffusers' VQModel cannot have; "
            "expected vqct_plugin.Quantizer or taming's VectorQuantizer2, without remap"
        )
    _copy(ours, model, len(sizes["block_out_channels"]), back=False)
    if params["ddconfig"].get("dropout"):
        _log.warning(
            "The dropout of ddconfig, %s, is left out: diffusers has none there.", params["ddconfig"]["dropout"]
        )
    return model.eval()


def to_run(
    model: Any,
    folder: Union[str, Path],
    lossconfig: Optional[Mapping[str, Any]] = None,
    resolution: Optional[int] = None,
) -> Path:
    """A model of diffusers as a run's folder, which ``load_run`` and the commands take.

    Args:
        model: a :class:`vqct_plugin.hosts.diffusers.VQModel` or ``diffusers.VQModel``, or a folder of one.
        folder: where ``configs/`` and ``checkpoints/last.ckpt`` are written; new, or empty.
        lossconfig: ``{target, params}`` of the loss that training goes on with, which a model of diffusers does not
            say; by default pixels and a discriminator, without LPIPS.
        resolution: ``ddconfig.resolution``, the images' size; by default the model's ``sample_size``.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder is not empty, there is no model in the other, the class of ``lossconfig`` is not found,
            or the model has layers that taming's VQGAN cannot have.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; name a new folder")
    if lossconfig is not None:
        check_target(lossconfig, "lossconfig")
        find(lossconfig["target"], "lossconfig")
    if isinstance(model, (str, Path)):
        model = _load(Path(model))
    ddconfig = _ddconfig_of(model.config, resolution or model.config.sample_size)
    params: Dict[str, Any] = {
        "embed_dim": model.quant_conv.out_channels,
        "n_embed": model.quantize.n_e,
        "ddconfig": ddconfig,
        "lossconfig": to_plain(lossconfig) if lossconfig is not None else _LOSS,
    }
    with redirect_stdout(io.StringIO()):  # the host's decoder prints
        if type(model.quantize) is CodebookTransferQuantizer:
            target, options = "vqct_plugin.VQModel", _options_of(model.quantize)
            options.pop("n_e")
            built = TamingVQModel(**params, **options, prior=model.quantize.prior)
            named = (model.config.get("quantizer_config") or {}).get("params", {}).get("prior")
            params.update(options, **({} if named is None else {"prior": named}))
        elif isinstance(getattr(model.quantize, "embedding", None), torch.nn.Embedding):
            target = "taming.models.vqgan.VQModel"
            built = import_taming().VQModel(**params)
        else:
            raise ConfigError(
                f"the model's quantizer is a {type(model.quantize).__name__}, which no run of taming's has"
            )
    _copy(built, model, len(ddconfig["ch_mult"]), back=True)
    (folder / "configs").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    config = {"model": {"base_learning_rate": 4.5e-6, "target": target, "params": params}, "data": _DATA}
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    text = yaml.safe_dump(config, sort_keys=False).encode()
    write_whole(folder / "configs" / f"{now}-project.yaml", text, overwrite=False)
    weights = io.BytesIO()
    torch.save({"state_dict": built.state_dict(), "global_step": 0}, weights)
    write_whole(folder / "checkpoints" / "last.ckpt", weights.getvalue(), overwrite=False)
    return folder


def _load(folder: Path) -> Any:
    """The model that ``save_pretrained`` wrote: of our class, or of theirs where its codebook is theirs."""
    if not (folder / _CONFIG).is_file():
        what = f"has no {_CONFIG}" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{folder} {what}; expected a model, or the folder that its save_pretrained wrote")
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
        cls = VQModel if "quantizer_config" in config or _has_words(folder) else diffusers.VQModel
        return cls.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be loaded as a model of diffusers: {error}") from error


def _has_words(folder: Path) -> bool:
    """Whether the weights are those of a model whose quantizer was replaced, of which config.json says nothing."""
    files = (*folder.glob("diffusion_pytorch_model*.safetensors"), *folder.glob("diffusion_pytorch_model*.bin"))
    return any(read_weights(file, ("quantize.prior.header",)) for file in files)


def _options_of(quantizer: Any) -> Dict[str, Any]:
    """All arguments of a quantizer but ``e_dim`` and ``prior``."""
    if quantizer.remap is not None:
        raise ConfigError("the quantizer has a remap, a file that the other format has no place for; train without it")
    options = {name: value for name, value in quantizer.settings.items() if name != "e_dim"}
    for name, value in options.items():
        if was_given(value):
            raise ConfigError(f"the quantizer was made with an object as its {name}, {value['given']}; give it by name")
    return options


def _sizes_of(ddconfig: Mapping[str, Any]) -> Dict[str, Any]:
    """diffusers' arguments of a ``ddconfig``."""
    for name, value in _FIXED.items():
        if ddconfig.get(name, value) != value:
            raise ConfigError(f"ddconfig.{name} is {ddconfig[name]!r}; diffusers' VQModel can only have {value!r}")
    missing = [name for name in _SIZES if name not in ddconfig]
    if missing:
        raise ConfigError(f"ddconfig has no {missing[0]}; expected that of a VQGAN of taming's")
    ch, multiples = ddconfig["ch"], list(ddconfig["ch_mult"])
    if multiples[0] != 1:
        raise ConfigError(f"ddconfig.ch_mult begins with {multiples[0]}; diffusers' VQModel can only have 1 there")
    attention = [ddconfig["resolution"] // 2**i in ddconfig["attn_resolutions"] for i in range(len(multiples))]
    return {
        "in_channels": ddconfig["in_channels"],
        "out_channels": ddconfig["out_ch"],
        "down_block_types": [f"Attn{_DOWN}" if there else _DOWN for there in attention],
        "up_block_types": [f"Attn{_UP}" if there else _UP for there in reversed(attention)],
        "block_out_channels": [ch * multiple for multiple in multiples],
        "layers_per_block": ddconfig["num_res_blocks"],
        "latent_channels": ddconfig["z_channels"],
        "sample_size": ddconfig["resolution"],
        "norm_type": "group",
    }


def _ddconfig_of(config: Mapping[str, Any], resolution: int) -> Dict[str, Any]:
    """The ``ddconfig`` of a diffusers model's config."""
    for name, value in _THEIR_FIXED.items():
        if config.get(name, value) != value:
            raise ConfigError(f"{name} is {config[name]!r}; taming's VQGAN can only have {value!r}")
    widths, downs = list(config["block_out_channels"]), list(config["down_block_types"])
    ups = [name.replace("UpDecoder", "DownEncoder") for name in reversed(config["up_block_types"])]
    if downs != ups or not set(downs) <= {_DOWN, f"Attn{_DOWN}"}:
        raise ConfigError(
            f"down_block_types are {downs}, up_block_types {list(config['up_block_types'])}; taming's VQGAN can only "
            f"have {_DOWN} and Attn{_DOWN}, and the same in the decoder, in reverse"
        )
    if any(width % widths[0] for width in widths):
        raise ConfigError(f"block_out_channels are {widths}; taming's VQGAN can only have multiples of the first")
    smallest = 2 ** (len(widths) - 1)
    if resolution % smallest:
        raise ConfigError(f"resolution is {resolution}; expected a multiple of {smallest}, for {len(widths)} levels")
    return {
        "double_z": False,
        "z_channels": config["latent_channels"],
        "resolution": resolution,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [resolution // 2**i for i, name in enumerate(downs) if name.startswith("Attn")],
        "dropout": 0.0,
    }


def _copy(taming: Any, model: Any, levels: int, back: bool) -> None:
    """The weights of one model into the other; both have exactly the same, under other names."""
    ours, theirs = taming.state_dict(), model.state_dict()
    names = {key: _their_name(key, levels) for key in ours if not key.startswith("loss.")}
    without = sorted(set(names.values()) ^ set(theirs))
    if without:
        raise ConfigError(f"the two models differ: {', '.join(without[:3])} is only in one of them")
    pairs: Dict[str, Tuple[str, Tensor]] = {key: (name, theirs[name]) for key, name in names.items()}
    # attention is a linear layer there, and a convolution of one pixel here
    if back:
        taming.load_state_dict({key: value.reshape(ours[key].shape) for key, (_, value) in pairs.items()}, strict=False)
    else:
        model.load_state_dict({name: ours[key].reshape(value.shape) for key, (name, value) in pairs.items()})


def _their_name(key: str, levels: int) -> str:
    """diffusers' name of one of taming's tensors. Its decoder counts the levels from the other end."""
    side, *path = key.split(".")
    if side not in ("encoder", "decoder"):
        return key  # quant_conv, post_quant_conv, and the quantizer's own
    *path, kind = path
    if path[0] in ("down", "up"):
        way, level, part = path[0], int(path[1]), path[2]
        start = f"{side}.{way}_blocks.{level if way == 'down' else levels - 1 - level}"
        if part == "block":
            return f"{start}.resnets.{path[3]}.{_LAYERS.get(path[4], path[4])}.{kind}"
        if part == "attn":
            return f"{start}.attentions.{path[3]}.{_ATTENTION[path[4]]}.{kind}"
        return f"{start}.{re.sub('sample', 'samplers.0', part)}.{path[3]}.{kind}"
    if path[0] == "mid":
        layer = _ATTENTION[path[2]] if path[1] == "attn_1" else _LAYERS.get(path[2], path[2])
        return f"{side}.mid_block.{_MID[path[1]]}.{layer}.{kind}"
    return f"{side}.{'conv_norm_out' if path[0] == 'norm_out' else path[0]}.{kind}"
