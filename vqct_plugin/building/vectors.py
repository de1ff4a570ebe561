"""Words -> vectors: a language model's input embeddings, its encodings of a prompt, or a file of word vectors.

Each source is called with words and their parts of speech and gives ``(n, dim)`` float32 vectors and which words it
knows, (n,) bool. The row of a word that it does not know is NaN, so that it cannot pass for a vector.
"""

import gzip
import hashlib
import logging
import os
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, cast

import numpy as np
from tqdm import tqdm

from vqct_plugin._files import printable
from vqct_plugin.building.captions import PathLike
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.language_model import LanguageModel, first_line
from vqct_plugin.building.pooling import POOLING_FILE, POOLINGS, check_pooling, choose_device, pool, read_pooling

_log = logging.getLogger(__name__)

#: the authors' prompts, of one form for all that is no adjective
PROMPTS = {
    "adjective": "a photo of {} object",
    "noun": "a photo of {}",
    "verb": "a photo of {}",
    "adverb": "a photo of {}",
}

Vectors = Tuple[np.ndarray, np.ndarray]


class InputEmbeddings:
    """A word's vector is the mean of its pieces' rows in the model's input embeddings; the model is then released."""

    def __init__(self, language_model: LanguageModel) -> None:
        self._language_model = language_model
        self.name = language_model.name
        table, tokenizer = language_model.read_table(), language_model.tokenizer
        if table.ndim != 2 or table.shape[0] < len(tokenizer):
            raise BuildError(
                f"the input embeddings of {self.name!r} ({language_model.config.model_type}) have shape "
                f"{tuple(table.shape)}; expected at least one row for each of the tokenizer's {len(tokenizer):,} pieces"
            )
        self._table = table.float().cpu().numpy().copy()
        language_model.release()

    def knows(self, words: Sequence[str], progress: bool = False) -> np.ndarray:
        """(n,) bool: which words have a vector."""
        return self._language_model.knows(words)

    def __call__(
        self, words: Sequence[str], parts: Sequence[str] = (), batch_size: int = 256, progress: bool = False
    ) -> Vectors:
        """Vectors (n, dim) float32, and known (n,) bool; ``parts`` make no difference."""
        vectors = np.full((len(words), self._table.shape[1]), np.nan, dtype=np.float32)
        known = np.zeros(len(words), dtype=bool)
        starts = range(0, len(words), batch_size)
        for start in tqdm(starts, desc="word vectors", unit="batch", disable=not progress):
            pieces = self._language_model.pieces(words[start : start + batch_size])
            usable = [i for i, ids in enumerate(pieces) if self._language_model.is_known(ids)]
            if not usable:
                continue
            lengths = np.array([len(pieces[i]) for i in usable])
            rows = self._table[np.concatenate([pieces[i] for i in usable])].astype(np.float64)
            sums = np.add.reduceat(rows, np.cumsum(lengths) - lengths, axis=0)
            vectors[start + np.array(usable)] = sums / lengths[:, None]
            known[start + np.array(usable)] = True
        return vectors, known

    def describe(self) -> Dict[str, Any]:
        """How the vectors were made, for a prior's record."""
        digest = hashlib.sha256(np.ascontiguousarray(self._table).tobytes()).hexdigest()
        kind = "input embeddings, mean over a word's pieces"
        return {"kind": kind, "table_sha256": digest, **_describe_revision(self._language_model)}


class PromptEncodings:
    """A word's vector is the model's encoding of a prompt that holds it, pooled as the architecture wants.

    - a model with text features of its own (CLIP): these, projected, as in the paper; SigLIP's are of prompts padded to
      its 64 places, as it was trained, and of the last of them;
    - a model that says itself how it is pooled, in sentence-transformers' ``1_Pooling/config.json`` (BGE: the first
      token): so;
    - encoder and decoder (T5), or the encoder alone: the mean over the encoder's tokens;
    - each token sees those before it only (GPT-2, Llama): the last token;
    - each token sees all (BERT): the mean over the tokens.

    Of a folder that does not say it, the last three are a guess, and a warning says so: a sentence-transformers model
    loses its file of pooling in ``save_pretrained``.

    Prompts of equal length make a batch, so nothing is padded but what has to be.

    Args:
        language_model: the model.
        prompts: part of speech -> text with one ``{}`` for the word; the authors' for parts that are not named.
        device: where the model runs, as torch names it (``"cpu"``, ``"cuda:1"``); by default a GPU where there is one.
        pooling: how the model is pooled, one of ``POOLINGS``; by default as said above.

    Raises:
        BuildError: how the model is pooled cannot be told, or it takes no such pooling, or no text; no such device.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        prompts: Optional[Mapping[str, str]] = None,
        device: Optional[str] = None,
        pooling: Optional[str] = None,
    ) -> None:
        own = None if pooling is None else [check_pooling(pooling)]
        self._language_model = language_model
        self.name = language_model.name
        self.prompts = {**PROMPTS, **check_prompts(prompts or {})}
        self._device = choose_device(device)
        model = language_model.model
        if self._device.type == "cpu":
            model = model.float()
        model = model.to(self._device)
        with _explain_errors(self.name):
            self._choose_pooling(model, own)

    def _choose_pooling(self, model: Any, own: Optional[List[str]]) -> None:
        self._padded_to = 0
        config = model.config
        features = hasattr(model, "get_text_features") or type(model).__name__ == "CLIPTextModelWithProjection"
        if own and (features or str(config.model_type).startswith("siglip")):
            raise BuildError(f"pooling is {own[0]!r}, but {self.name!r} has text features of its own; leave it out")
        if str(config.model_type).startswith("siglip"):
            self._padded_to = int(getattr(config, "text_config", config).max_position_embeddings)
            self.pooling = f"text features, padded to {self._padded_to}, last position"
            self._encode = getattr(model, "get_text_features", model)
        elif hasattr(model, "get_text_features"):
            self.pooling, self._encode = "projected text features", model.get_text_features
        elif type(model).__name__ == "CLIPTextModelWithProjection":
            self.pooling = "projected text features"
            self._encode = lambda **inputs: model(**inputs).text_embeds
        else:
            encoder, of_encoder = model, ""
            if getattr(config, "is_encoder_decoder", False):
                encoder = model.get_encoder()
            if encoder is not model or type(model).__name__.endswith("EncoderModel"):
                of_encoder = "the encoder's "
            if own is None:
                own = read_pooling(self._language_model)
            if own:
                names = list(own)
            elif not of_encoder and _sees_only_what_came_before(model, self._language_model.tokenizer, self._device):
                names = ["lasttoken"]
            else:
                names = ["mean"]
            described = [POOLINGS[name][0] for name in names]
            self.pooling = ", then ".join(described).replace("over tokens", f"over {of_encoder}tokens")
            if not own and self._language_model.is_folder:
                _log.warning(
                    "how %r is pooled is a guess, %s: its folder has no %s, in which models of sentence-transformers "
                    "(BGE, E5, GTE) say it, and which save_pretrained leaves out. If it is one of them, get all of its "
                    "files (hf download NAME --local-dir FOLDER); or say how it is pooled: pooling is one of %s",
                    self.name,
                    self.pooling,
                    POOLING_FILE,
                    ", ".join(POOLINGS),
                )
            self._encode = lambda **inputs: pool(encoder(**inputs).last_hidden_state, names)

    def knows(self, words: Sequence[str], progress: bool = False) -> np.ndarray:
        """(n,) bool: which words have a vector."""
        return self._language_model.knows(words)

    def __call__(
        self, words: Sequence[str], parts: Sequence[str], batch_size: int = 256, progress: bool = False
    ) -> Vectors:
        """Vectors (n, dim) float32, and known (n,) bool."""
        import torch

        known = self.knows(words)
        places = np.flatnonzero(known).tolist()
        texts = [self.prompts[parts[i]].replace("{}", words[i]) for i in places]
        ids = list(self._language_model.tokenizer(texts)["input_ids"]) if texts else []
        self._check_lengths(texts, ids)
        if self._padded_to:
            filler = self._language_model.tokenizer.pad_token_id
            ids = [[*pieces, *[filler] * (self._padded_to - len(pieces))] for pieces in ids]
        by_length: Dict[int, List[int]] = {}
        for number, pieces in enumerate(ids):
            by_length.setdefault(len(pieces), []).append(number)
        batches = [
            numbers[start : start + batch_size]
            for _, numbers in sorted(by_length.items())
            for start in range(0, len(numbers), batch_size)
        ]
        rows: List[Optional[np.ndarray]] = [None] * len(texts)
        with torch.no_grad(), _explain_errors(self.name):
            for numbers in tqdm(batches, desc="prompt encodings", unit="batch", disable=not progress):
                inputs = torch.tensor([ids[number] for number in numbers], device=self._device)
                # SigLIP's padding is seen, as it was in training
                mask = {} if self._padded_to else {"attention_mask": torch.ones_like(inputs)}
                encoded = self._encode(input_ids=inputs, **mask)
                encoded = getattr(encoded, "pooler_output", encoded)  # transformers 5 wraps text features
                for number, row in zip(numbers, encoded.float().cpu().numpy()):
                    rows[number] = row
        dim = len(rows[0]) if rows and rows[0] is not None else 1
        vectors = np.full((len(words), dim), np.nan, dtype=np.float32)
        for place, row in zip(places, rows):
            vectors[place] = row
        return vectors, known

    def _check_lengths(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        config = getattr(self._language_model.config, "text_config", self._language_model.config)
        longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        if not longest or getattr(self._language_model.config, "is_encoder_decoder", False):
            return
        for text, pieces in zip(texts, ids):
            if len(pieces) > longest:
                raise BuildError(f"the prompt {text[:60]!r} has {len(pieces)} pieces; {self.name!r} takes {longest}")

    def describe(self) -> Dict[str, Any]:
        """How the vectors were made, for a prior's record."""
        return {"kind": f"prompt encodings, {self.pooling}", **_describe_revision(self._language_model)}


def _describe_revision(language_model: LanguageModel) -> Dict[str, str]:
    return {} if language_model.revision is None else {"revision": language_model.revision}


class WordVectors:
    """The vectors of a text file of GloVe, word2vec or fastText, gzip too: one word and its numbers per line.

    word2vec and fastText have a first line with the number of words and the dimension; GloVe has none. The file is read
    once, and only wanted words are kept. A line that does not have the dimension's number of finite values is damaged:
    counted, and skipped.

    Args:
        path: the file.
        name: what to call it in the prior; the file's name by default.
    """

    def __init__(self, path: PathLike, name: Optional[str] = None) -> None:
        self._path = Path(path)
        if not os.path.isfile(path):  # pathlib's raises of a name that is too long
            what = "is a folder" if os.path.isdir(path) else "does not exist"
            raise BuildError(f"the file of word vectors {printable(self._path)} {what}")
        self.name = name or self._path.name
        self.damaged, self.sha256 = 0, ""
        self._known: Dict[str, np.ndarray] = {}
        self._asked: Tuple[str, ...] = ()
        with self._open() as stream:
            self._dim, self._has_header = self._dimension(stream)

    def knows(self, words: Sequence[str], progress: bool = False) -> np.ndarray:
        """(n,) bool: which words are in the file."""
        self._read(words, progress)
        return np.array([word in self._known for word in words], dtype=bool)

    def __call__(
        self, words: Sequence[str], parts: Sequence[str] = (), batch_size: int = 256, progress: bool = False
    ) -> Vectors:
        """Vectors (n, dim) float32, and known (n,) bool; ``parts`` make no difference."""
        self._read(words, progress)
        nothing = np.full(self._dim, np.nan, dtype=np.float32)
        vectors = np.stack([self._known.get(word, nothing) for word in words]) if words else np.zeros((0, self._dim))
        return vectors.astype(np.float32), np.array([word in self._known for word in words], dtype=bool)

    def describe(self) -> Dict[str, Any]:
        """How the vectors were made, for a prior's record."""
        return {"kind": "word vectors of a file", "sha256": self.sha256, "damaged_lines": self.damaged}

    def _read(self, words: Sequence[str], progress: bool = False) -> None:
        wanted = {word.encode() for word in words}
        if wanted <= {word.encode() for word in self._asked}:
            return
        self._asked = tuple(words)
        self._known, self.damaged = {}, 0
        digest, lines = hashlib.sha256(), 0
        with self._path.open("rb") as raw:
            for piece in iter(lambda: raw.read(1 << 20), b""):
                digest.update(piece)
        with self._open() as stream:
            if self._has_header:
                stream.readline()
            for line in tqdm(self._lines(stream), desc="word vectors", unit="line", disable=not progress):
                lines += 1
                fields = line.rstrip().rsplit(b" ", self._dim)
                if len(fields) != self._dim + 1:
                    self.damaged += 1
                elif fields[0] in wanted and fields[0].decode() not in self._known:
                    try:
                        vector = np.array([float(value) for value in fields[1:]], dtype=np.float32)
                    except ValueError:
                        vector = np.array([np.nan])
                    if np.isfinite(vector).all():
                        self._known[fields[0].decode()] = vector
                    else:
                        self.damaged += 1
        if self.damaged * 2 > lines:
            raise BuildError(
                f"{self._path}: {self.damaged:,} of {lines:,} lines do not have {self._dim} numbers after the word; "
                "expected a text file of GloVe, word2vec or fastText"
            )
        self.sha256 = digest.hexdigest()

    def _open(self) -> BinaryIO:
        raw = self._path.open("rb")
        if raw.read(2) == b"\x1f\x8b":
            raw.close()
            return cast(BinaryIO, gzip.open(self._path, "rb"))
        raw.seek(0)
        return raw

    def _lines(self, stream: BinaryIO) -> Iterator[bytes]:
        try:
            yield from iter(lambda: stream.readline(1 << 20), b"")
        except (EOFError, OSError, zlib.error) as error:
            raise BuildError(f"{self._path} cannot be read to its end: {error}") from error

    def _dimension(self, stream: BinaryIO) -> Tuple[int, bool]:
        first, second = (next(self._lines(stream), b"").split() for _ in range(2))
        has_header = len(first) == 2 and all(field.isdigit() for field in first)
        dim = int(first[1]) if has_header else len(first) - 1
        numbers = (second if has_header else first)[-max(dim, 1) :]
        try:
            np.array([float(number) for number in numbers])
        except ValueError:
            numbers = []
        if dim < 2 or len(numbers) != dim:
            raise BuildError(
                f"{self._path} is not a text file of word vectors: expected one word and its numbers per line, as "
                "GloVe, word2vec (text, not binary) and fastText (.vec) have it"
            )
        return dim, has_header


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    """Replace what a model raises by a BuildError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        raise BuildError(f"the GPU's memory is too small for these batches of {name!r}: lower batch_size") from error
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BuildError):
            raise
        raise BuildError(f"language model {name!r} takes no text: {first_line(error)}") from error


def check_prompts(prompts: Mapping[str, str]) -> Dict[str, str]:
    """The prompts, each with one place for the word."""
    for part, text in prompts.items():
        if part not in PROMPTS:
            raise BuildError(f"a prompt for {part!r}; expected one of {', '.join(PROMPTS)}")
        if not isinstance(text, str) or text.count("{}") != 1:
            raise BuildError(f"the prompt for {part!r} is {text!r}; expected a text with one {{}} for the word")
    return dict(prompts)


def _sees_only_what_came_before(model: Any, tokenizer: Any, device: Any) -> bool:
    """Whether the encoding of a token stays the same when a later token changes."""
    import torch

    a, b = (torch.tensor([ids], device=device) for ids in _two_texts(tokenizer))
    with torch.no_grad():
        first, second = (model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state for ids in (a, b))
    difference = (first[:, 0] - second[:, 0]).abs().max()
    return bool(difference <= 1e-6 * first[:, 0].abs().max())


def _two_texts(tokenizer: Any) -> Tuple[List[int], List[int]]:
    """Two lists of pieces that differ in the last one."""
    ordinary = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids][:4]
    return ordinary[:3], [*ordinary[:2], ordinary[-1]]
