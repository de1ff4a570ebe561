"""The word prior: which words the codes are, their vectors, and which adjective stands before which noun.

Source: Zhang et al., *Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling*, CVPR 2024, the
section on the part-of-speech prior. A code is a (word, part of speech) pair: ``orange`` the color and ``orange`` the
fruit are two codes. The file is one ``.safetensors``; data is never code, and every array is checked on loading.

This file is long: a prior, its file and the checks of both are one contract, read together.
"""

import difflib
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes

from vqct_plugin._files import NotAFileError, printable, write_whole
from vqct_plugin.pretrained import Pretrained, split_name

__all__ = ["CodebookPrior", "Neighbor", "PriorError"]

FORMAT = "vqct_prior"
VERSION = 1
VERSION_WITHIN_PARTS = 2  # of a prior whose edges may tie words of one part; a release that knows 1 only refuses it
IN_FOLDER = "prior.safetensors"  # what save_pretrained and the hub call the file
DEFAULT_FILE = Path(__file__).parent / "data" / "default.safetensors"

# What stands in a file, and as what. int32 edges keep a large graph small on disk.
_FILE_DTYPES = {
    "vectors": ("F16", "F32"),
    "part_of_speech": ("U8",),
    "count": ("I64",),
    "edges": ("I32",),
    "edge_count": ("I64",),
}
_CACHES = ("_fingerprint_cache", "_index_cache")
_MOST_PROVENANCE = 100_000  # values; a record of where words come from, which a person may read
_MANY_VALUES = f"provenance holds more than {_MOST_PROVENANCE:,} values; it is a short record of where words come from"
_LARGEST_COUNT = 2**53  # sums of counts stay exact, also as float64

PathLike = Union[str, "os.PathLike[str]"]


class PriorError(ValueError):
    """A prior, or the file it should come from, is not what it has to be."""


class Neighbor(NamedTuple):
    """A word tied to another by an edge, and how often the two stood side by side."""

    word: str
    part: str
    count: int  # type: ignore[assignment]  # a tuple's method of this name is of no use here


@dataclass(frozen=True, eq=False)
class CodebookPrior(Pretrained):
    """Words, their vectors and the edges between them: what a codebook is built from.

    The words may come in any order; they are kept sorted by part of speech, then count (the commonest first), then
    word, and ``edges`` follow. Edges may repeat and point either way; they are merged and their counts added.

    A word that is both adjective and noun is two codes, and each has the edges of its own part of speech: this is the
    paper's definition. The authors' module ties such a word's noun only; ``import_prior(..., authors_edges=True)``
    makes a prior with their edges.

    Args:
        words: n words; a word may stand once in each part of speech.
        part_of_speech: (n,) integers, each an index into ``parts``.
        count: (n,) integers >= 0, how often each word was seen.
        vectors: (n, d) float16 or float32, a language model's vector of each word.
        edges: (2, E) integers, indices into ``words``; an edge ties words of two different parts. No edge ties a word
            to itself: the graph network adds a loop of weight 1 to every word.
        edge_count: (E,) integers >= 1, how often the two words stood side by side (c_ab of the paper's graph).
        parts: the names of the parts of speech.
        provenance: where it all comes from, as plain JSON values: language model, corpora, thresholds.
        edges_within_parts: edges may also tie two words of one part, as some of the authors' do.

    Raises:
        PriorError: naming what is wrong, where, and what was expected.

    >>> prior = CodebookPrior(
    ...     words=["wheel", "orange", "orange"], part_of_speech=[1, 0, 1], count=[5, 9, 2],
    ...     vectors=np.eye(3, 4, dtype=np.float32), edges=[[1], [0]], edge_count=[3])
    >>> prior.words
    ('orange', 'wheel', 'orange')
    >>> prior.index("orange", "noun")
    2
    >>> prior.neighbors("wheel", "noun")
    [Neighbor(word='orange', part='adjective', count=3)]
    """

    words: Tuple[str, ...]
    part_of_speech: np.ndarray
    count: np.ndarray
    vectors: np.ndarray
    edges: np.ndarray
    edge_count: np.ndarray
    parts: Tuple[str, ...] = ("adjective", "noun")
    provenance: Dict[str, Any] = field(default_factory=dict)
    edges_within_parts: bool = False

    def __post_init__(self) -> None:
        words, parts = _check_names(self.words, "words"), _check_names(self.parts, "parts")
        if len(set(parts)) != len(parts):
            raise PriorError(f"parts are {list(parts)}: each part of speech has to be named once")
        if len(parts) > 255:
            raise PriorError(f"{len(parts)} parts of speech: at most 255 can be told apart in the file")
        n = len(words)
        part_of_speech = _check_integers(self.part_of_speech, "part_of_speech", (n,), 0, len(parts) - 1)
        count = _check_integers(self.count, "count", (n,), 0, _LARGEST_COUNT)
        vectors = _check_vectors(self.vectors, n)
        edges = np.asarray(self.edges)
        if edges.size == 0:
            edges = np.zeros((2, 0), dtype=np.int64)
        edges = _check_integers(edges, "edges", (2, None), 0, n - 1)
        edge_count = np.asarray(self.edge_count)
        if edge_count.size == 0:
            edge_count = np.zeros(0, dtype=np.int64)
        edge_count = _check_integers(edge_count, "edge_count", (edges.shape[1],), 1, _LARGEST_COUNT)
        if not isinstance(self.edges_within_parts, bool):
            raise PriorError(f"edges_within_parts is {self.edges_within_parts!r}; expected True or False")
        _refuse_edges(words, part_of_speech, parts, edges, self.edges_within_parts)
        _refuse_duplicates(words, part_of_speech, parts)
        _refuse_many_values(self.provenance)
        try:
            provenance = json.loads(_canonical_json(dict(self.provenance)))
        except (TypeError, ValueError, RecursionError) as error:
            raise PriorError(f"provenance has to be a mapping of plain JSON values: {error}") from error

        order = _find_order(words, part_of_speech, count)
        place = np.empty(n, dtype=np.int64)
        place[order] = np.arange(n)
        edges, edge_count = _merge_edges(place[edges], edge_count, n)
        values = {
            "words": tuple(map(words.__getitem__, order.tolist())),
            "part_of_speech": part_of_speech[order],
            "count": count[order],
            "vectors": vectors[order],
            "edges": edges,
            "edge_count": edge_count,
            "parts": parts,
            "provenance": provenance,
        }
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """A copy or an unpickled prior is as immutable as the one it was made from; what was cached is made anew."""
        for name, value in state.items():
            if name in _CACHES:
                continue
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"CodebookPrior({self.describe()})"

    @property
    def sizes(self) -> Dict[str, int]:
        """How many words each part of speech has."""
        numbers = np.bincount(self.part_of_speech, minlength=len(self.parts))
        return {part: int(number) for part, number in zip(self.parts, numbers)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of words, parts, counts, vectors and edges: two priors with the same one make the same codebook."""
        cached: Optional[str] = self.__dict__.get("_fingerprint_cache")
        if cached is None:
            named = _canonical_json([list(self.parts), list(self.words), str(self.vectors.dtype)])
            digest = hashlib.sha256(named.encode())
            for name, array in self.to_arrays().items():
                digest.update(f"{name}{array.shape}".encode())
                digest.update(array.reshape(-1).view(np.uint8).data)  # its bytes, without a copy of them
            cached = digest.hexdigest()
            object.__setattr__(self, "_fingerprint_cache", cached)
        return cached

    def describe(self) -> str:
        """One line that tells this prior from others: words per part, language model, fingerprint."""
        sizes = " + ".join(f"{number:,} {part}" for part, number in self.sizes.items())
        model = printable(self.provenance.get("language_model", "an unnamed language model"), 100)
        return f"{sizes}, vectors ({self.vectors.shape[1]}) of {model}, {self.fingerprint[:12]}"

    def index(self, word: str, part: Optional[str] = None) -> int:
        """The place of a word in ``words``; ``part`` may be left out where the word has only one part of speech."""
        places = self._index.get(word, ())
        if part is not None:
            wanted = self._part_number(part)
            places = tuple(i for i in places if self.part_of_speech[i] == wanted)
        if not places:
            close = difflib.get_close_matches(str(word), self.words, n=3)
            hint = f"; close to it: {', '.join(sorted(set(close)))}" if close else ""
            raise PriorError(f"no word {word!r}" + (f" of part {part!r}" if part else "") + f" in this prior{hint}")
        if len(places) > 1:
            found = ", ".join(repr(self.parts[self.part_of_speech[i]]) for i in places)
            raise PriorError(f"{word!r} is in several parts of speech ({found}): say which one")
        return places[0]

    def __contains__(self, word: object) -> bool:
        return word in self._index

    def neighbors(self, word: str, part: Optional[str] = None) -> List[Neighbor]:
        """The words tied to one by an edge, the most frequent pair first."""
        here = self.index(word, part)
        ends = np.concatenate([self.edges[1][self.edges[0] == here], self.edges[0][self.edges[1] == here]])
        counts = np.concatenate([self.edge_count[self.edges[0] == here], self.edge_count[self.edges[1] == here]])
        order = sorted(range(len(ends)), key=lambda i: (-counts[i], ends[i]))
        return [Neighbor(self.words[ends[i]], self.parts[self.part_of_speech[ends[i]]], int(counts[i])) for i in order]

    def select(
        self, n_e: Union[int, Mapping[str, int]], parts_of_speech: Optional[Sequence[str]] = None
    ) -> "CodebookPrior":
        """The prior of the ``n_e`` most frequent words, with the edges among them.

        Args:
            n_e: how many words in all, shared between the parts in the proportion they have here (each part keeps one
                at least); or a mapping from each part to its own number.
            parts_of_speech: the parts to keep, in this prior's order; all of them by default.
        """
        names = self.parts if parts_of_speech is None else tuple(parts_of_speech)
        wanted = sorted({self._part_number(name) for name in names})
        if len(wanted) != len(names):
            raise PriorError(f"parts_of_speech are {list(names)}: each part is named once")
        have = np.array([self.sizes[self.parts[p]] for p in wanted])
        shares = self._shares(n_e, [self.parts[p] for p in wanted], have)
        keep = np.concatenate(
            [np.flatnonzero(self.part_of_speech == p)[:share] for p, share in zip(wanted, shares)]
        ).astype(np.int64)  # the words of a part stand together, the most frequent first
        place = np.full(len(self), -1, dtype=np.int64)
        place[keep] = np.arange(len(keep))
        new_part = np.full(len(self.parts), -1, dtype=np.int64)
        new_part[wanted] = np.arange(len(wanted))
        edges = place[self.edges]
        inside = (edges >= 0).all(axis=0)
        return CodebookPrior(
            words=tuple(map(self.words.__getitem__, keep.tolist())),
            part_of_speech=new_part[self.part_of_speech[keep]],
            count=self.count[keep],
            vectors=self.vectors[keep],
            edges=edges[:, inside],
            edge_count=self.edge_count[inside],
            parts=tuple(self.parts[p] for p in wanted),
            provenance={**self.provenance, "selected_from": self.fingerprint},
            edges_within_parts=self.edges_within_parts,
        )

    def save(self, path: PathLike, overwrite: bool = False) -> None:
        """Write the prior file, whole or not at all; an existing file is refused unless ``overwrite``."""
        path = Path(path)
        try:
            write_whole(path, self.to_bytes(), overwrite)
        except FileExistsError:
            raise PriorError(f"{path} exists; pass overwrite=True to replace it") from None
        except NotAFileError as error:
            raise PriorError(str(error)) from error
        except OSError as error:
            raise PriorError(f"could not write the prior to {path}: {error}") from error

    def to_bytes(self) -> bytes:
        """The prior file: the same bytes from the same prior."""
        # All metadata under one key: safetensors does not fix the order of several, and the bytes have to be the same.
        data: bytes = safetensors_bytes(self.to_arrays(), metadata={FORMAT: _canonical_json(self.header())})
        return data

    @classmethod
    def load(cls, path: PathLike = "default") -> "CodebookPrior":
        """Read a prior file; ``"default"`` is the one shipped in the package.

        Also the folder of a prior, as :meth:`save_pretrained` writes it; and where there is neither, a text
        ``user/name`` or ``user/name@revision`` is a name on the Hugging Face hub, see :meth:`from_pretrained`.

        Raises:
            PriorError: whatever is wrong with the file, and nothing else.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise PriorError(f"the prior is {path!r}; expected a path, or 'default' for the one in the package")
        try:
            file = DEFAULT_FILE if os.fspath(path) == "default" else Path(path)
        except Exception as error:  # a path of bytes, or an object that fails to say which path it is
            what = f"of type {type(path).__name__}"
            raise PriorError(f"the prior is {what}; expected a path of letters, not of bytes") from error
        named = printable(file)
        try:
            mode = os.stat(str(file)).st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            if split_name(path) is not None:
                return cls.from_pretrained(path)
            raise PriorError(f"{named} does not exist; build a prior with vqct_plugin.build_prior") from error
        except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be read, a NUL in it
            why = getattr(error, "strerror", None) or error
            raise PriorError(f"{named} cannot be opened: {why}; expected the path of a prior file") from error
        if stat.S_ISDIR(mode) and (file / IN_FOLDER).is_file():
            return cls.load(file / IN_FOLDER)
        if not stat.S_ISREG(mode):
            what = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
            raise PriorError(f"{named} {what}; a prior is one file; build it with vqct_plugin.build_prior")
        try:
            header, arrays = _read(file)
        except PriorError as error:
            raise PriorError(f"{named}: {printable(error, 1500)}") from error
        except Exception as error:  # safetensors and its header may fail in any way over a damaged file
            why = f"{type(error).__name__}: {printable(error, 1500)}"
            raise PriorError(f"{named} is not a readable safetensors file: {why}") from error
        try:
            return cls.from_header(header, arrays)
        except PriorError as error:
            raise PriorError(f"{named}: {printable(error, 1500)}") from error
        except Exception as error:  # memory that is not there, a value that no check foresaw
            why = f"{type(error).__name__}: {printable(error, 1500)}"
            raise PriorError(f"{named} holds what makes no prior: {why}") from error

    @property
    def _index(self) -> Dict[str, Tuple[int, ...]]:
        cached = self.__dict__.get("_index_cache")
        if cached is None:
            cached = {}
            for i, word in enumerate(self.words):
                cached[word] = (*cached.get(word, ()), i)
            object.__setattr__(self, "_index_cache", cached)
        return cached

    def _part_number(self, part: str) -> int:
        if part not in self.parts:
            raise PriorError(f"unknown part of speech {part!r}; this prior has {', '.join(map(repr, self.parts))}")
        return self.parts.index(part)

    def _shares(self, n_e: Union[int, Mapping[str, int]], names: List[str], have: np.ndarray) -> List[int]:
        if isinstance(n_e, Mapping):
            if sorted(map(str, n_e)) != sorted(names):
                raise PriorError(f"n_e sets the parts {sorted(map(str, n_e))}; expected a number for each of {names}")
            shares = [n_e[name] for name in names]
            for name, share, most in zip(names, shares, have):
                if not _is_integer(share) or not 1 <= share <= most:
                    raise PriorError(f"n_e asks for {share!r} of part {name!r}; this prior has 1 to {most}")
            return [int(share) for share in shares]
        total = int(have.sum())
        if not _is_integer(n_e) or n_e < len(names):
            raise PriorError(f"n_e is {n_e!r}; expected an integer from {len(names)} (one code a part) to {total}")
        if n_e > total:
            raise PriorError(
                f"n_e is {n_e}, but the prior has only {total} words of {', '.join(names)} ({self.describe()}); "
                f"write {total} (in a host's YAML: n_embed: {total}), or build a larger one with "
                "vqct_plugin.build_prior"
            )
        # Largest remainders: every part within one word of its exact share, and the sum is n_e.
        exact = have * (int(n_e) / total)
        shares_ = np.maximum(np.floor(exact).astype(np.int64), 1)
        while shares_.sum() < n_e:
            shares_[int(np.argmax(np.where(shares_ < have, exact - shares_, -np.inf)))] += 1
        while shares_.sum() > n_e:  # a tiny part was lifted to its one word
            shares_[int(np.argmax(np.where(shares_ > 1, shares_ - exact, -np.inf)))] -= 1
        return [int(share) for share in shares_]

    def header(self) -> Dict[str, Any]:
        """What the prior file says beside its arrays: format, version, words, parts, provenance, fingerprint."""
        header = {
            "format": FORMAT,
            "version": VERSION_WITHIN_PARTS if self.edges_within_parts else VERSION,
            "words": list(self.words),
            "parts": list(self.parts),
            "provenance": self.provenance,
            "fingerprint": self.fingerprint,
        }
        return {**header, "edges_within_parts": True} if self.edges_within_parts else header

    @classmethod
    def from_header(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "CodebookPrior":
        """The prior of a :meth:`header` and its :meth:`to_arrays`.

        Raises:
            PriorError: they are not those of a prior, or do not belong together.
        """
        checked = _check_header(header)
        prior = cls(
            words=checked["words"],
            parts=checked["parts"],
            provenance=checked["provenance"],
            edges_within_parts=checked["version"] == VERSION_WITHIN_PARTS and checked["edges_within_parts"],
            **arrays,
        )
        if prior.fingerprint != checked["fingerprint"]:
            raise PriorError("it is damaged: its content does not match the fingerprint it was saved with")
        return prior

    def __deepcopy__(self, memo: Any) -> "CodebookPrior":
        return self  # it never changes

    def to_arrays(self) -> Dict[str, np.ndarray]:
        """The arrays of the prior file, by their names there and in the types they have there."""
        arrays = {
            "vectors": self.vectors,
            "part_of_speech": self.part_of_speech.astype(np.uint8),
            "count": self.count,
            "edges": self.edges.astype(np.int32),
            "edge_count": self.edge_count,
        }
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors writes raw memory


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _refuse_many_values(provenance: Any) -> None:
    """Before they are sorted and written, which takes seconds for a million. Values in values are counted too."""
    waiting, seen = [provenance], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, (dict, list, tuple)):
            seen += len(value)
            if seen > _MOST_PROVENANCE:
                raise PriorError(_MANY_VALUES)
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _check_names(names: Any, what: str) -> Tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        raise PriorError(f"{what} has to be a list of strings, not {type(names).__name__}")
    if not names:
        raise PriorError(f"{what} is empty; at least one is needed")
    for i, name in enumerate(names):  # 262,144 of them take a tenth of a second
        if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip():
            raise PriorError(f"{what}[{i}] is {name!r}; expected a printable string without spaces around it")
    return tuple(names)


def _check_integers(array: Any, name: str, shape: Tuple[Optional[int], ...], low: int, high: int) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "iu":
        raise PriorError(f"{name} has dtype {array.dtype}; expected integers")
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape)):
        expected = "(" + "".join("E" if size is None else f"{size}, " for size in shape).rstrip() + ")"
        raise PriorError(f"{name} has shape {array.shape}; expected {expected}")
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        bad = int(array.min()) if int(array.min()) < low else int(array.max())
        raise PriorError(f"{name} holds {bad}; expected values from {low} to {high}")
    return array.astype(np.int64)


def _check_vectors(vectors: Any, n: int) -> np.ndarray:
    vectors = np.asarray(vectors)
    if vectors.dtype not in (np.float16, np.float32):
        raise PriorError(f"vectors have dtype {vectors.dtype}; expected float16 or float32")
    if vectors.ndim != 2 or vectors.shape[0] != n or vectors.shape[1] < 1:
        raise PriorError(f"vectors have shape {vectors.shape}; expected ({n}, d): one row for each word")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise PriorError(f"the vector of word {int(np.flatnonzero(~finite)[0])} holds NaN or infinite values")
    return vectors


def _refuse_duplicates(words: Sequence[str], part_of_speech: np.ndarray, parts: Sequence[str]) -> None:
    pairs = list(zip(words, part_of_speech.tolist()))
    if len(set(pairs)) == len(pairs):
        return
    seen = set()
    for word, part in pairs:
        if (word, part) in seen:
            raise PriorError(f"{word!r} stands twice in part {parts[part]!r}: a code is one word in one part of speech")
        seen.add((word, part))


def _refuse_edges(
    words: Sequence[str], part_of_speech: np.ndarray, parts: Sequence[str], edges: np.ndarray, within_parts: bool
) -> None:
    within = edges[0] == edges[1] if within_parts else part_of_speech[edges[0]] == part_of_speech[edges[1]]
    if not within.any():
        return
    first = int(np.flatnonzero(within)[0])
    a, b = (int(i) for i in edges[:, first])
    if within_parts:
        raise PriorError(
            f"edge {first} ties {words[a]!r} to itself: an edge ties two different words; every word has its loop of "
            "weight 1 in the graph without one"
        )
    raise PriorError(
        f"edge {first} ties {words[a]!r} and {words[b]!r}, both of part {parts[part_of_speech[a]]!r}: "
        "an edge ties words of two different parts of speech"
    )


def _find_order(words: Sequence[str], part_of_speech: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Where the words come from, sorted by part, then count (the commonest first), then word."""
    alphabetical = np.array(sorted(range(len(words)), key=words.__getitem__), dtype=np.int64)
    in_order = np.lexsort((-count[alphabetical], part_of_speech[alphabetical]))  # stable: the alphabet settles the rest
    return alphabetical[in_order]


def _merge_edges(edges: np.ndarray, edge_count: np.ndarray, n: int) -> Tuple[np.ndarray, np.ndarray]:
    """Each edge once, from the lower index to the higher, in order; the counts of repeated ones added."""
    if not edges.shape[1]:
        return edges, edge_count
    key = np.minimum(edges[0], edges[1]) * n + np.maximum(edges[0], edges[1])  # n is below 2**31: no overflow
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    about = np.add.reduceat(edge_count[order].astype(np.float64), first)  # unlike integers, no sum of these wraps round
    total = np.add.reduceat(edge_count[order], first)
    if about.max() > _LARGEST_COUNT:
        largest = int(total[about.argmax()]) if about.max() < 2**62 else about.max()
        raise PriorError(f"the counts of a repeated edge add up to {largest}; at most 2**53 can be kept exactly")
    key = key[first]
    return np.stack([key // n, key % n]), total


def _read(file: Path) -> Tuple[Dict[str, Any], Dict[str, np.ndarray]]:
    with safe_open(str(file), framework="numpy") as opened:
        metadata = opened.metadata() or {}
        if FORMAT not in metadata:
            raise PriorError(f"a safetensors file, but not a prior: its metadata has no {FORMAT!r}")
        if metadata[FORMAT].count('":') > 2 * _MOST_PROVENANCE:  # the keys, counted before a million are made
            raise PriorError(_MANY_VALUES)
        header = _check_header(_parse_json(metadata[FORMAT]))
        arrays = {}
        present = list(opened.keys())
        for name, dtypes in _FILE_DTYPES.items():
            if name not in present:
                raise PriorError(f"the array {name!r} is missing")
            dtype = opened.get_slice(name).get_dtype()
            if dtype not in dtypes:  # looked at before the array is read
                raise PriorError(f"{name} is stored as {dtype}; expected {' or '.join(dtypes)}")
            arrays[name] = opened.get_tensor(name)
    return header, arrays


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PriorError(f"the metadata is damaged: {error}") from error


def _check_header(header: Any) -> Dict[str, Any]:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PriorError(f"the metadata does not say it is a {FORMAT!r}")
    versions = (VERSION, VERSION_WITHIN_PARTS)
    if header.get("version") not in versions or isinstance(header["version"], bool):
        known = " and ".join(map(str, versions))
        raise PriorError(f"format version {header.get('version')!r}; this release of vqct_plugin reads {known}")
    expected: Dict[str, type] = {"words": list, "parts": list, "provenance": dict, "fingerprint": str}
    if header["version"] == VERSION_WITHIN_PARTS:
        expected["edges_within_parts"] = bool
    for key, kind in expected.items():
        if not isinstance(header.get(key), kind):
            raise PriorError(f"the metadata has no {kind.__name__} called {key!r}")
    return header
