"""The authors' own prior, a pickle, read without running it.

Source: the layout of ``big_nlp_word_knowledge_clip.pkl`` of Zhang et al., CVPR 2024: dictionaries word -> count
(``adj_code_book_num``, ``noun_code_book_num``, of all words seen) and word -> tensor (``adj_code_book_vec``,
``noun_code_book_vec``, of the words kept), and the list ``adj_noun_edges`` of (adjective, noun) with repetitions.

Which codes an (adjective, noun) of that list ties, the paper and the authors' module answer differently. In the paper
the adjective's code and the noun's. The module looks both words up in one dictionary over the adjectives and then the
nouns, in which a word that is both stands for its noun: the adjective of such a word has no edge, its noun has the
edges of both, some edges tie two nouns (or two adjectives: ``green`` the noun, where only the adjective is a code), and
(w, w) would tie a noun to itself. Of the last nothing is left: PyG's ``GCNConv`` takes every loop out of the edges and
gives each code one of weight 1 (``add_remaining_self_loops``, edges without weights). Ours is the paper's definition;
``authors_edges=True`` keeps theirs.
"""

import hashlib
import io
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from vqct_plugin._version import __version__
from vqct_plugin.building.captions import PathLike
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.tagging import PARTS
from vqct_plugin.compat import pickles as _pickles
from vqct_plugin.prior import CodebookPrior

__all__ = ["import_prior"]

#: the model of the authors' file
CLIP = "openai/clip-vit-base-patch32"
_KEYS = {
    "adj_code_book_num": dict,
    "noun_code_book_num": dict,
    "adj_code_book_vec": dict,
    "noun_code_book_vec": dict,
    "adj_noun_edges": list,
}


def import_prior(
    pickle_file: PathLike,
    output: Optional[PathLike] = None,
    *,
    plm_name: str = CLIP,
    authors_edges: bool = False,
    force: bool = False,
) -> CodebookPrior:
    """The prior in a pickle of the authors' layout; written to ``output``, if one is named.

    The codes are the words that have a vector. Edges with a word that is no code are left out, as the authors'
    quantizer leaves them out; repeated edges add up. The pickle is read by an unpickler that makes tensors and plain
    values and refuses everything else, so it can run no code.

    Args:
        pickle_file: for instance ``big_nlp_word_knowledge_clip.pkl``.
        output: the prior file to write; an existing one is refused unless ``force``.
        plm_name: the language model that the vectors came from, for the prior's record.
        authors_edges: the edges of the authors' module and not of the paper's definition (see above), for weights that
            were trained with them: with these edges ``GraphTransfer`` computes the codes that their module computes.
        force: replace an existing ``output``.

    Raises:
        BuildError: no such file, a pickle that names anything but tensors, or another layout.
        PriorError: the content makes no prior, or the file cannot be written.
    """
    path = Path(pickle_file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror or error}") from error
    known = _read(path, data)
    words: List[str] = []
    part_of_speech: List[int] = []
    count: List[int] = []
    vectors: List[np.ndarray] = []
    place: Dict[Any, int] = {}
    for number, part in enumerate(("adj", "noun")):
        for word, vector in known[f"{part}_code_book_vec"].items():
            place[number, word] = len(words)
            words.append(word)
            part_of_speech.append(number)
            count.append(_count(path, known[f"{part}_code_book_num"], word, part))
            vectors.append(_vector(path, word, vector))
    if len({len(vector) for vector in vectors}) != 1:
        raise BuildError(f"{path}: vectors of {sorted({len(v) for v in vectors})} numbers; expected one length")
    try:
        seen = Counter((adjective, noun) for adjective, noun in known["adj_noun_edges"])
        if authors_edges:
            one = {word: i for (_, word), i in place.items()}  # the nouns come last, so a noun stands for both
            ends = [(one.get(a), one.get(b), c) for (a, b), c in sorted(seen.items())]
        else:
            ends = [(place.get((0, a)), place.get((1, b)), c) for (a, b), c in sorted(seen.items())]
    except (TypeError, ValueError) as error:
        raise BuildError(f"{path}: adj_noun_edges has to be a list of (adjective, noun): {error}") from error
    kept = [(a, b, c) for a, b, c in ends if a is not None and b is not None]
    left_out = sum(seen.values()) - sum(c for _, _, c in kept)
    loops = sum(c for a, b, c in kept if a == b)
    kept = [(a, b, c) for a, b, c in kept if a != b]
    record: Dict[str, Any] = {"edges": "adjective right before noun", "edges_left_out": left_out}
    if authors_edges:
        record["edges"] += ", as the authors' module ties them: a word of both parts stands for its noun"
        record["loops_left_out"] = loops
    dtype = np.float16 if all(vector.dtype == np.float16 for vector in vectors) else np.float32
    prior = CodebookPrior(
        words=tuple(words),
        part_of_speech=np.array(part_of_speech),
        count=np.array(count),
        vectors=np.stack(vectors).astype(dtype),
        edges=np.array([(a, b) for a, b, _ in kept], dtype=np.int64).reshape(-1, 2).T,
        edge_count=np.array([c for _, _, c in kept], dtype=np.int64),
        parts=PARTS,
        provenance={
            "imported_from": {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()},
            "language_model": plm_name,
            **record,
            "vectors": {"kind": "as in the file", "dim": len(vectors[0]), "dtype": np.dtype(dtype).name},
            "tool": f"vqct_plugin {__version__}",
        },
        edges_within_parts=authors_edges,
    )
    if output is not None:
        prior.save(output, overwrite=force)
    return prior


def _read(path: Path, data: bytes) -> Dict[str, Any]:
    unpickler = _Unpickler(io.BytesIO(data))
    try:
        content = unpickler.load()
        if isinstance(content, dict):
            content = {key: _pickles.materialize(content[key], unpickler.bytes_of) for key in _KEYS if key in content}
    except Exception as error:  # whatever a damaged or hostile pickle makes the reader raise
        raise BuildError(
            f"{path} is refused: {error}. Expected a pickle of plain values and tensors only, laid out as the authors' "
            "big_nlp_word_knowledge_clip.pkl"
        ) from error
    there = content if isinstance(content, dict) else {}
    missing = [key for key, kind in _KEYS.items() if type(there.get(key)) is not kind]
    if missing:
        raise BuildError(
            f"{path} has no {', '.join(missing)}; expected the authors' layout: dictionaries and a list called "
            f"{', '.join(_KEYS)}"
        )
    for part in ("adj", "noun"):
        if not content[f"{part}_code_book_vec"]:
            raise BuildError(f"{path}: {part}_code_book_vec is empty")
    return content


class _Unpickler(_pickles.TensorUnpickler):
    """Tensors and plain values; any other global is refused by name."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._storages: Dict[str, bytes] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _pickles.Known(self._load_from_bytes)
        found = super().find_class(module, name)
        if isinstance(found, type) and issubclass(found, _pickles.Inert):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor and no plain value")
        return found

    def _load_from_bytes(self, data: bytes) -> _pickles.Storage:
        """A tensor's numbers, for which a plain pickle has a stream of torch.save's in it."""
        storage, storage_bytes = _pickles.read_stream(io.BytesIO(data))
        if not isinstance(storage, _pickles.Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        key = str(len(self._storages))
        self._storages[key] = storage_bytes(storage)
        return storage._replace(key=key)

    def bytes_of(self, storage: _pickles.Storage) -> bytes:
        """The numbers of a storage."""
        return self._storages[storage.key]


def _count(path: Path, counts: Dict[Any, Any], word: Any, part: str) -> int:
    count = counts.get(word)
    if not isinstance(count, int):
        raise BuildError(f"{path}: {part}_code_book_num has no count for {word!r}")
    return count


def _vector(path: Path, word: Any, vector: Any) -> np.ndarray:
    import torch

    if not isinstance(vector, torch.Tensor) or vector.ndim != 1 or not vector.is_floating_point():
        raise BuildError(f"{path}: the vector of {word!r} has to be a tensor of one dimension with numbers")
    return (vector if vector.dtype == torch.float16 else vector.float()).numpy()
