"""A JSON schema of the YAML, for editors: what they complete, explain and underline, made from our code's signatures.

Nothing is required, since a file may hold only what it changes of another. Where a ``target`` is known here, so are its
``params``; ``null`` passes for any name, because it removes an option of a file before.
"""

import inspect
import re
import typing
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

from vqct_plugin.compat.lightning import Adapted
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.gumbel import GumbelTransferQuantizer
from vqct_plugin.hosts.taming import GumbelVQ, VQModel, VQSegmentationModel
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.runs.config import KEYS
from vqct_plugin.runs.datasets import CUB, DataModuleFromConfig, Images, LabeledImages
from vqct_plugin.runs.hugging_face import HuggingFaceImages
from vqct_plugin.runs.losses import VQPerceptualWithDiscriminator, VQPixelWithDiscriminator
from vqct_plugin.runs.photographs import Photographs
from vqct_plugin.runs.shards import ShardedImages
from vqct_plugin.stage_2.transformer import Net2NetTransformer
from vqct_plugin.training.callbacks import CodebookUsageLogger, ImageLogger
from vqct_plugin.training.loggers import LOGGERS
from vqct_plugin.training.progress import OneLine
from vqct_plugin.training.schedule import AnnealRate
from vqct_plugin.training.word_maps import WordMapLogger

__all__ = ["make_schema"]

#: in place of a value of another type: what is to be given yet, and what is taken from elsewhere in the file
_LATER = {"type": "string", "pattern": r"^\?\?\?$|\$\{"}
_JSON = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (type(None), "null"))
#: taming's own models in a YAML, by their names in its module
_TAMING = {"taming.models.vqgan.VQModel": "VQModel", "taming.models.vqgan.GumbelVQ": "GumbelVQ"}


def make_schema() -> Dict[str, Any]:
    """The schema, draft 7, as a mapping to write as JSON; always the same for the same code.

    Needs taming-transformers, whose models' arguments are in it.
    """
    sets = {
        _path(cls): _list_arguments([cls])
        for cls in (Images, LabeledImages, CUB, Photographs, ShardedImages, HuggingFaceImages)
    }
    module = {
        **_list_arguments([DataModuleFromConfig]),
        **dict.fromkeys(("train", "validation", "test"), _refer("set")),
    }
    modules = dict.fromkeys(("main.DataModuleFromConfig", _path(DataModuleFromConfig)), module)
    taming = import_taming()
    loss = import_taming("taming.modules.losses.vqperceptual").VQLPIPSWithDiscriminator
    losses = {
        _path(cls): _list_arguments([cls]) for cls in (VQPerceptualWithDiscriminator, VQPixelWithDiscriminator, loss)
    }
    quantizer = _list_arguments([CodebookTransferQuantizer, Adapted])
    quantizer.update(n_embed=quantizer["n_e"], embed_dim=quantizer["e_dim"])
    models = _list_models(taming)
    stage_2 = {
        **_list_arguments([Net2NetTransformer, Adapted]),
        "first_stage_config": _refer("model"),
        "cond_stage_config": {"anyOf": [_refer("model"), {"type": "string"}]},
    }
    models["vqct_plugin.Net2NetTransformer"] = stage_2
    rate = {"type": "number", "description": "times batch_size and processes: the learning rate, as in taming"}
    arguments = {**models, **losses, **sets, **modules, "quantizer": quantizer}
    model = _choose(models)
    model["properties"]["base_learning_rate"] = {"anyOf": [rate, _LATER]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A taming YAML, as vqct-train takes it",
        "type": "object",
        "properties": {"model": _refer("model"), "data": _choose(modules), "lightning": _make_lightning()},
        "additionalProperties": False,
        "definitions": {
            **{name: _close(of_target) for name, of_target in sorted(arguments.items())},
            "model": model,
            "loss": _choose(losses),
            "set": _choose(sets),
            "coders": _close(_list_arguments([taming.Encoder, taming.Decoder])),
            "quantizer_config": _choose(["vqct_plugin.Quantizer"], "quantizer"),
        },
    }


def _list_models(taming: Any) -> Dict[str, Dict[str, Any]]:
    """target -> the arguments of each first stage that a YAML can name."""
    models = {
        name: _list_arguments([*_of_ours(cls), Adapted, quantizer], but=("n_e", "e_dim", "temp_init"))
        for name, cls, quantizer in (
            ("vqct_plugin.VQModel", VQModel, CodebookTransferQuantizer),
            ("vqct_plugin.Quantizer", VQModel, CodebookTransferQuantizer),
            ("vqct_plugin.VQSegmentationModel", VQSegmentationModel, CodebookTransferQuantizer),
            ("vqct_plugin.GumbelVQ", GumbelVQ, GumbelTransferQuantizer),
        )
    }
    for target, name in _TAMING.items():
        models[target] = _list_arguments([getattr(taming, name), Adapted])
        models[target]["quantizer_config"] = _refer("quantizer_config")
    for arguments in models.values():
        arguments.update(ddconfig=_refer("coders"), lossconfig=_refer("loss"))
    return models


def _of_ours(cls: Any) -> List[Any]:
    """The classes that a model of ours is made of, without the host's."""
    return [base for base in inspect.getmro(cls) if base.__module__ == VQModel.__module__]


def _make_lightning() -> Dict[str, Any]:
    known = {
        "image_logger": ImageLogger,
        "codebook_usage_logger": CodebookUsageLogger,
        "progress_bar": OneLine,
        "anneal_rate": AnnealRate,
        "word_maps": WordMapLogger,
    }
    callbacks = {}
    for name, cls in known.items():
        params = _close(_list_arguments([cls], but=("folder",)))
        callbacks[name] = {
            "type": ["object", "null"],
            "description": _first_sentence(cls),
            "properties": {"target": {"type": "string"}, "params": params},
        }
    gpus = {"type": ["string", "integer", "array", "null"], "description": "numbers of GPUs, as in taming: 0, or 0,1"}
    own = {
        "type": ["object", "null"],
        "properties": {"target": {"type": "string"}, "params": {"type": ["object", "null"]}},
    }
    named = {"type": "string", "pattern": r"\."}  # a class
    logger = [{"enum": [*LOGGERS]}, named, dict(_LATER), {**own, "additionalProperties": False}]
    sections = {
        "trainer": {"type": ["object", "null"], "properties": {"gpus": gpus}},
        "logger": {"anyOf": [*logger, {"type": "array", "items": {"anyOf": logger}}]},
        "modelcheckpoint": own,
        "callbacks": {"type": ["object", "null"], "properties": callbacks, "additionalProperties": own},
    }
    return {
        "type": ["object", "null"],
        "properties": {name: sections[name] for name in KEYS["lightning"]},
        "additionalProperties": False,
    }


def _refer(name: str) -> Dict[str, Any]:
    return {"$ref": f"#/definitions/{name}"}


def _choose(known: Iterable[str], definition: str = "") -> Dict[str, Any]:
    """``{target, params}``, with the arguments of those targets that are known; any other target is taken too.

    The arguments' definitions are called as the targets, unless the name of one is given.
    """
    names = sorted(known)
    target = {"anyOf": [{"enum": names}, {"type": "string"}]}
    of_each = [
        {
            "if": {"properties": {"target": {"const": name}}, "required": ["target"]},
            "then": {"properties": {"params": _refer(definition or name)}},
        }
        for name in names
    ]
    properties = {"target": target, "params": {"type": ["object", "null"]}}
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False, "allOf": of_each}


def _close(arguments: Mapping[str, Any]) -> Dict[str, Any]:
    """An object of these arguments, and of no other but to remove it."""
    return {"type": ["object", "null"], "properties": dict(arguments), "additionalProperties": {"type": "null"}}


def _list_arguments(classes: Iterable[Any], but: Sequence[str] = ()) -> Dict[str, Any]:
    """name -> schema of the arguments of all these classes' constructors."""
    classes = list(classes)
    types: Dict[str, Any] = {}
    for cls in classes:
        for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
            if name not in but and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                kind = Any if parameter.annotation is parameter.empty else parameter.annotation
                types[name] = kind if types.get(name, Any) is Any else types[name]
    said = {name: text for cls in reversed(classes) for name, text in _describe_arguments(cls).items()}
    return {
        name: {**_make_type(kind), **({"description": said[name]} if name in said else {})}
        for name, kind in types.items()
    }


def _make_type(annotation: Any) -> Dict[str, Any]:
    """A type of Python as JSON has it; nothing, which is any, where JSON has no such thing."""
    kinds = _list_kinds(annotation)
    if not kinds:
        return {}
    kinds = sorted({*kinds, "null"})
    schema: Dict[str, Any] = {"type": kinds}
    return schema if "string" in kinds else {"anyOf": [schema, dict(_LATER)]}


def _list_kinds(annotation: Any) -> Optional[List[str]]:
    origin = typing.get_origin(annotation)
    if origin is typing.Union:
        inside = [_list_kinds(each) for each in typing.get_args(annotation)]
        return None if None in inside else [kind for kinds in inside if kinds for kind in kinds]
    if annotation is Any:
        return None
    if isinstance(annotation, typing.ForwardRef):  # of another module, where its names mean something
        return ["string"] if "PathLike" in annotation.__forward_arg__ else []
    plain = origin or annotation
    for kind, name in _JSON:
        if plain is kind:
            return [name]
    if not isinstance(plain, type):
        return None
    if issubclass(plain, Path):
        return ["string"]
    if issubclass(plain, typing.get_origin(Mapping)):  # type: ignore[arg-type]
        return ["object"]
    if issubclass(plain, typing.get_origin(Sequence)):  # type: ignore[arg-type]
        return ["array"]
    return []  # what only Python can hold, beside what a YAML can


def _describe_arguments(cls: Any) -> Dict[str, str]:
    """What a docstring says of each argument."""
    match = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", inspect.cleandoc(cls.__doc__ or ""), flags=re.M)
    said: Dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", match.group(1)) if match else ():
        names, _, text = _flatten(entry).partition(": ")
        if text and not text.startswith("as "):  # as another class has them
            said.update({name: text for name in names.split(", ") if name.isidentifier()})
    return said


def _first_sentence(cls: Any) -> str:
    return _flatten((cls.__doc__ or "").split("\n\n")[0])


def _flatten(text: str) -> str:
    """A docstring's text on one line, without its marks."""
    return " ".join(re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "").split())


def _path(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
