"""Priors and quantizers in folders and on the hub: what :class:`vqct_plugin.pretrained.Pretrained` asks for.

| | data | config.json |
|---|---|---|
| a prior | ``prior.safetensors``, a prior file | format, version, sizes, fingerprint |
| a quantizer | ``model.safetensors``, its state, which holds its prior | format, version, class, settings |
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from vqct_plugin._files import printable, write_whole
from vqct_plugin._version import __version__
from vqct_plugin.compat.cards import describe_codebook, describe_words, format_card
from vqct_plugin.compat.hub import CARD, CONFIG, WEIGHTS, HubError, NoSuchFileError, Repository, fetch, find_if_there
from vqct_plugin.compat.hub import push as push_folder
from vqct_plugin.compat.trusted import refuse_foreign
from vqct_plugin.prior import IN_FOLDER, CodebookPrior, PriorError

VERSION = 1
#: of a config.json while the files beside it are replaced
_UNFINISHED = "unfinished"
#: what a config.json says it is of -> how it is loaded
LOADERS = {
    "vqct_prior": "CodebookPrior.from_pretrained",
    "vqct_quantizer": "CodebookTransferQuantizer.from_pretrained",
    "vqct_run": "vqct_plugin.load_run",
}


def load(cls: Any, name: Any, where: Mapping[str, Any], trusted: Sequence[str], options: Mapping[str, Any]) -> Any:
    """A prior or a quantizer: see :meth:`vqct_plugin.pretrained.Pretrained.from_pretrained`."""
    if not issubclass(cls, CodebookPrior):
        return _load_quantizer(cls, name, where, trusted, options)
    if options:
        raise PriorError(f"a prior takes no {', '.join(options)}; its select() takes fewer words")
    try:
        is_file = where.get("revision") is None and isinstance(name, (str, os.PathLike)) and Path(name).is_file()
        file = name if is_file else locate(name, where, "vqct_prior", IN_FOLDER)[0]
    except HubError as error:
        raise PriorError(str(error)) from error
    return cls.load(file)


def save(what: Any, folder: Any, overwrite: bool) -> None:
    """Write a folder: see :meth:`vqct_plugin.pretrained.Pretrained.save_pretrained`."""
    if isinstance(what, CodebookPrior):
        config: Dict[str, Any] = {
            "parts": list(what.parts), "sizes": what.sizes, "dim": int(what.vectors.shape[1]),
            "edges": int(what.edges.shape[1]), "fingerprint": what.fingerprint,
        }  # fmt: skip
        files = {IN_FOLDER: what.to_bytes(), CONFIG: format_config("vqct_prior", config)}
        use = 'from vqct_plugin import CodebookPrior\n\nprior = CodebookPrior.from_pretrained("user/name")'
        card = format_card("Words for a codebook", "codebook-prior", use, [_IN_YAML, describe_words(what)])
    else:
        kind = type(what).__name__
        files = {WEIGHTS: to_safetensors(what.state_dict()), CONFIG: format_config("vqct_quantizer", _config_of(what))}
        use = f'from {type(what).__module__} import {kind}\n\nquantizer = {kind}.from_pretrained("user/name").eval()'
        sections = [describe_codebook(what), describe_words(what.prior)]
        card = format_card("A codebook made of words", "vector-quantization", use, sections)
    write_folder(folder, files, card, overwrite)


def push(what: Any, repo_id: str, card: Optional[str], where: Mapping[str, Any]) -> str:
    """Put it on the hub: see :meth:`vqct_plugin.pretrained.Pretrained.push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        save(what, folder, overwrite=False)
        name = "a prior" if isinstance(what, CodebookPrior) else "a quantizer"
        return push_written(Path(folder), repo_id, card, where, name)


def push_written(folder: Path, repo_id: str, card: Optional[str], where: Mapping[str, Any], name: str) -> str:
    """Put a folder that was just written on the hub, with a card of the user's own where there is one."""
    file = folder / CARD
    text = file.read_text(encoding="utf-8") if card is None else str(card)
    file.write_text(text.replace("user/name", repo_id) if card is None else text, encoding="utf-8")
    return push_folder(folder, repo_id, where, f"Upload {name} with vqct_plugin", with_card=card is not None)


def write_folder(folder: Any, files: Mapping[str, bytes], card: str, overwrite: bool) -> None:
    """Write files and a card, which is left alone where there is one. The config comes last.

    Raises:
        HubError: a file is there and not ``overwrite``, or it cannot be written.
    """
    folder = Path(folder)
    there = [name for name in files if (folder / name).exists()]
    if there and not overwrite:
        raise HubError(f"{printable(folder)} has {' and '.join(there)}; pass overwrite=True to replace them")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if CONFIG in there:  # interrupted on the way, new data are not read under the old config
            write_whole(folder / CONFIG, format_config(_UNFINISHED, {}), overwrite=True)
        for name, data in sorted(files.items(), key=lambda item: item[0] == CONFIG):
            write_whole(folder / name, data, overwrite=True)
        if not (folder / CARD).exists():
            write_whole(folder / CARD, card.encode(), overwrite=False)
    except OSError as error:
        raise HubError(f"could not write to {printable(folder)}: {error}; give another folder") from error


def format_config(form: str, values: Mapping[str, Any]) -> bytes:
    """A ``config.json``."""
    config = {"format": form, "version": VERSION, "vqct_plugin": __version__, **values}
    return (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode()


def read_config(file: Path, form: str, source: str) -> Dict[str, Any]:
    """A ``config.json`` of this format.

    Raises:
        HubError: it cannot be read, or is of something else, which is named.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise HubError(f"{CONFIG} of {source} cannot be read: {printable(error)}") from error
    if config.get("format") != form:
        raise HubError(f"{source} holds {_name_format(config)}; expected one of format {form}")
    if config.get("version") != VERSION:
        version = printable(repr(config.get("version")))
        raise HubError(f"{source} is of version {version}, and this release reads {VERSION}; update vqct_plugin")
    return config


def to_safetensors(state: Mapping[str, Any], **metadata: str) -> bytes:
    """A state dict as the bytes of a safetensors file.

    Raises:
        HubError: it holds something else than tensors, which safetensors cannot hold.
    """
    import torch

    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise HubError(f"the state has {others[0]}, which is no tensor; safetensors holds tensors only")
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    if hasattr(torch, "frombuffer"):
        from safetensors.torch import save as to_bytes
    else:  # before 1.10, which safetensors does not serve
        from safetensors.numpy import save as to_bytes

        tensors = {name: value.numpy() for name, value in tensors.items()}
    data: bytes = to_bytes(tensors, metadata={"format": "pt", **metadata})
    return data


def locate(name: Any, where: Mapping[str, Any], form: str, *files: str) -> Sequence[Path]:
    """These files of a folder, or of a repository where there is no such folder."""
    folder = _find_folder(name)
    if folder is not None:
        if where.get("revision") is not None:
            raise HubError(f"{printable(name)} is a folder, which has no revision; leave revision out")
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            found = _read_format(folder / CONFIG)
            raise HubError(f"{printable(name)} has no {missing[0]}{found}; expected a folder of format {form}")
        return [folder / file for file in files]
    repository = Repository.of(name, **where)
    try:
        return fetch(repository, *files)
    except HubError as error:
        found = ""
        if isinstance(error, NoSuchFileError):
            config = find_if_there(repository, CONFIG)
            found = f"{'' if config is None else _read_format(config)}; expected a repository of format {form}"
        raise HubError(f"{repository} is no file and no folder here, and on the hub: {error}{found}") from error


def _find_folder(name: Any) -> Optional[Path]:
    try:
        return Path(name) if Path(name).is_dir() else None
    except (TypeError, ValueError, OSError):
        return None


def _read_format(file: Path) -> str:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return f": it holds {_name_format(config)}" if isinstance(config, dict) else ""
    except (OSError, ValueError, RecursionError):
        return ""


def _name_format(config: Mapping[str, Any]) -> str:
    form = config.get("format")
    if form == _UNFINISHED:
        return "what was not written to its end; write it again, with overwrite=True"
    if form not in LOADERS:
        return f"what is not of this package ({CONFIG} has no format of ours)"
    return f"a {str(form)[len('vqct_') :]}, which {LOADERS[form]} loads"


def _config_of(quantizer: Any) -> Dict[str, Any]:
    return {"class": type(quantizer).__name__, "settings": quantizer.settings}


def _load_quantizer(
    cls: Any, name: Any, where: Mapping[str, Any], trusted: Sequence[str], options: Mapping[str, Any]
) -> Any:
    from vqct_plugin.compat.checkpoints import read_state_dict
    from vqct_plugin.state import read_settings

    source = printable(name)
    config_file, weights = locate(name, where, "vqct_quantizer", CONFIG, WEIGHTS)
    config = read_config(config_file, "vqct_quantizer", source)
    state = read_state_dict(weights)
    kept, edited = read_settings(state), config.get("settings")
    if not isinstance(edited, Mapping):
        edited = {}
    # of the arguments that the state has, config.json may change the value
    changed = {key: value for key, value in edited.items() if key in kept and kept[key] != value}
    refuse_foreign({k: v for k, v in {**kept, **changed}.items() if k not in options}, trusted, source)
    try:
        return cls.from_state_dict(state, **{**changed, **options})
    except (RuntimeError, TypeError) as error:
        made = printable(config.get("class"))
        hint = f"; it was saved by a {made}: load it with that class" if made != cls.__name__ else ""
        raise HubError(f"{source} does not make a {cls.__name__}: {printable(error, 800)}{hint}") from error


_IN_YAML = "In the YAML of a run: `prior: user/name`, under `model.params`."
