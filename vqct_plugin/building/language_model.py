"""A language model and its tokenizer: what it is made of, which words it knows, and the table of its pieces."""

import json
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from vqct_plugin._files import printable
from vqct_plugin.building.formats import BuildError

_LONGEST = 200  # letters of a name on the hub, which takes fewer


class LanguageModel:
    """A ``transformers`` model and its tokenizer.

    Args:
        plm: a local folder, as ``save_pretrained`` writes it, or a name on the Hugging Face hub.
        name: what to call the model in the prior; the folder's base name or the hub name by default.
        revision: of a model on the hub, a branch, a tag or a commit.

    The model itself is read when it is first needed.

    Raises:
        BuildError: the model or its tokenizer cannot be loaded, or takes no text.
    """

    def __init__(self, plm: str, name: Optional[str] = None, revision: Optional[str] = None) -> None:
        self.is_folder = bool(plm) and os.path.isdir(plm)  # pathlib's raises of a name that is too long
        is_name = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", plm) and len(plm) <= _LONGEST and not os.path.exists(plm)
        if not self.is_folder and not is_name:
            hint = "; pass a file of word vectors as word_vectors" if os.path.isfile(plm) else ""
            shown = printable(repr(plm))
            raise BuildError(f"language model {shown} is neither a folder that exists nor a name on the hub{hint}")
        if revision is not None and self.is_folder:
            raise BuildError(f"revision is {revision!r}, but {plm} is a folder: revisions are of models on the hub")
        self._plm, self.revision = plm, revision
        self._options = {} if revision is None else {"revision": revision}
        self.name = name or (Path(plm).resolve().name if self.is_folder else plm)
        self._model: Any = None
        self._found: Dict[str, Tuple[Optional[Path], bool]] = {}  # by name, what came of asking for a file
        import transformers  # seconds of import: only once something is to be loaded

        with self._explain_errors():
            self.config: Any = transformers.AutoConfig.from_pretrained(plm, **self._options)
            if _takes_no_text(self.config):
                raise BuildError(f"language model {self.name!r} ({self.config.model_type}) has no text input")
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(plm, **self._options)

    @property
    def model(self) -> Any:
        """The model, read when it is first asked for: input embeddings need only its table."""
        if self._model is None:
            with self._explain_errors():
                self._model = self._kind().from_pretrained(self._plm, **self._options).eval()
        return self._model

    def release(self) -> None:
        """Forget the model: gigabytes of a large one."""
        self._model = None

    def file(self, name: str) -> Optional[Path]:
        """A file beside the model's own, or None where there is none, or where it cannot be told."""
        return self._find(name)[0]

    def lacks(self, name: str) -> bool:
        """Whether it is known that there is no such file: the folder is here, or the hub says so or once said so."""
        return self._find(name)[1]

    def _find(self, name: str) -> Tuple[Optional[Path], bool]:
        """The file, and whether it is known to be absent; the hub is asked once."""
        if name not in self._found:
            self._found[name] = self._ask(name)
        return self._found[name]

    def _ask(self, name: str) -> Tuple[Optional[Path], bool]:
        if self.is_folder:
            path = Path(self._plm) / name
            return (path, False) if path.is_file() else (None, True)
        import huggingface_hub
        from transformers.utils import cached_file

        try:
            found = cached_file(self._plm, name, **self._options, _raise_exceptions_for_connection_errors=False)
        except Exception as error:  # each release and each failure in its own way
            if _says_absent(error):
                return None, True
            found = None
        if found is not None:
            return Path(found), False
        with suppress(Exception):
            cached = huggingface_hub.try_to_load_from_cache(self._plm, name, revision=self.revision)
            return None, cached is huggingface_hub._CACHED_NO_EXIST
        return None, False

    def read_table(self) -> Any:
        """The input embeddings (pieces, dim), a tensor; of a model in safetensors nothing else is read."""
        table = self._table_alone() if self._model is None else None
        if table is None:
            try:
                table = _input_layer(self.model).weight.detach()
            except (NotImplementedError, AttributeError) as error:
                kind = type(self.model).__name__
                raise BuildError(f"language model {self.name!r} ({kind}) has no text input") from error
        return table

    def _table_alone(self) -> Optional[Any]:
        """The table out of the file that has it; None where it cannot be told which of its tensors it is."""
        import torch
        from safetensors import safe_open

        try:
            with torch.device("meta"):  # names and shapes without numbers
                kind = self._kind()
                model = kind.from_config(self.config) if hasattr(kind, "from_config") else kind(self.config)
            weight = _input_layer(model).weight
            names = [name for name, value in model.named_parameters(remove_duplicate=False) if value is weight]
            index, file = self.file("model.safetensors.index.json"), self.file("model.safetensors")
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index is not None else {}
            if not places and file is not None:
                with safe_open(str(file), framework="pt") as opened:
                    places = dict.fromkeys(opened.keys(), "model.safetensors")
            key = next(key for key in map(lambda name: _only_key(name, places), names) if key is not None)
            file = self.file(places[key])
            with safe_open(str(file), framework="pt") as opened:
                table = opened.get_tensor(key)
        except Exception:  # an old torch, other files, other names: the whole model is read instead, or explains
            return None
        return table if table.shape == weight.shape and table.is_floating_point() else None

    def _kind(self) -> Any:
        import transformers

        architecture = (getattr(self.config, "architectures", None) or [""])[0]
        half = re.fullmatch(r"\w+EncoderModel|Siglip\w*TextModel", architecture)  # of T5, of SigLIP, by itself
        if half and hasattr(transformers, architecture):
            return getattr(transformers, architecture)
        projected = getattr(transformers, "CLIPTextModelWithProjection", None)
        return projected if self.config.model_type == "clip_text_model" and projected else transformers.AutoModel

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except BuildError:
            raise
        except Exception as error:
            raise BuildError(
                f"{_explain_failure(self._plm, self.is_folder, self.revision)}\n"
                f"({type(error).__name__}: {first_line(error)})"
            ) from error

    def knows(self, words: Sequence[str]) -> np.ndarray:
        """(n,) bool; unknown is a word with the tokenizer's unknown piece, or no piece at all, for a part of it."""
        return np.array([self.is_known(pieces) for pieces in self.pieces(words)], dtype=bool)

    def is_known(self, pieces: Sequence[int]) -> bool:
        """Whether these pieces are a word's."""
        unknown = self.tokenizer.unk_token_id
        return bool(pieces) and (unknown is None or unknown not in pieces)

    def pieces(self, words: Sequence[str]) -> List[List[int]]:
        """A word's pieces as it stands inside a sentence.

        Byte-level tokenizers (GPT-2) have another, commoner piece for a word after a space; for others the space is
        nothing, or (Llama) a piece of its own, and then the word without it is meant.
        """

        def tokenize(texts: List[str]) -> List[List[int]]:
            return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []

        after_space, bare = tokenize([f" {word}" for word in words]), tokenize(list(words))
        return [a if len(a) <= len(b) else b for a, b in zip(after_space, bare)]

    def whole_words(self) -> List[str]:
        """The words in lower case that the tokenizer's vocabulary has as one piece."""
        pieces = list(self.tokenizer.get_vocab())
        # byte-level, unigram and CLIP's pieces have a mark where a word begins or ends; WordPiece marks the others
        for mark in (r"\u0120(\w+)", r"\u2581(\w+)", r"(\w+)</w>", r"(\w+)"):
            words = sorted({match[1] for match in (re.fullmatch(mark, piece) for piece in pieces) if match})
            if words:
                break
        words = [word for word in words if len(word) > 1 and word.isalpha() and word == word.lower()]
        return [word for word, pieces in zip(words, self.pieces(words)) if len(pieces) == 1 and self.is_known(pieces)]


def _says_absent(error: Exception) -> bool:
    """Whether transformers' ``cached_file`` failed because the hub, asked, has no such file."""
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    cause = error.__cause__
    if cause is None:  # its own sentence; an error of the system has a number, and others are of a class of their own
        return type(error) is OSError and error.errno is None
    return isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError)


def _takes_no_text(config: Any) -> bool:
    text = getattr(config, "text_config", config)
    return not hasattr(text, "vocab_size")


def _input_layer(model: Any) -> Any:
    if hasattr(model, "text_model"):  # CLIP and its kin: the model as a whole has images for input too
        model = model.text_model
    return model.get_input_embeddings()


def _only_key(name: str, keys: Mapping[str, str]) -> Optional[str]:
    """The key of a parameter in a file, where a larger model's may have a prefix: ``bert.embeddings...``."""
    if name in keys:
        return name
    longer = [key for key in keys if key.endswith(f".{name}")]
    return longer[0] if len(longer) == 1 else None


def _explain_failure(plm: str, is_folder: bool, revision: Optional[str]) -> str:
    if is_folder:
        return (
            f"no language model could be loaded from the folder {plm}; expected what save_pretrained writes: "
            "config.json, the weights, and the tokenizer's files"
        )
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") else ""
    at = "" if revision is None else f" at revision {revision!r}"
    return (
        f"language model {plm!r}{at} could not be loaded from the Hugging Face hub{offline}: it is not there, or the "
        f"hub cannot be reached. Without a network, get all of its files on a machine that has one (hf download {plm} "
        "--local-dir FOLDER) and pass the folder: plm=FOLDER"
    )


def first_line(error: Exception) -> str:
    """The first line of what an error says, printable."""
    return printable((str(error).strip().splitlines() or [""])[0], 1000)
