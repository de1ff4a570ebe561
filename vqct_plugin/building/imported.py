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
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from vqct_plugin._files import NotAFileError, find_target, printable
from vqct_plugin._version import __version__
from vqct_plugin.building.captions import PathLike
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.tagging import PARTS
from vqct_plugin.building.untrusted import KEYS, RefusedError, read_apart
from vqct_plugin.prior import CodebookPrior

__all__ = ["import_prior"]

#: the model of the authors' file
CLIP = "openai/clip-vit-base-patch32"
#: bytes of a pickle that is read: 262,144 words with vectors of 1,024 float32
LARGEST = 1 << 30


def import_prior(
    pickle_file: PathLike,
    output: Optional[PathLike] = None,
    *,
    plm_name: str = CLIP,
    authors_edges: bool = False,
    force: bool = False,
) -> CodebookPrior:
    """The prior in a pickle of the authors' layout; written to ``output``, if one is named.

    The codes are the words that have a vector. Edges with a word that is not a code are left out, as the authors'
    quantizer leaves them out; repeated edges add up. The pickle is read by an unpickler that makes tensors and plain
    values and refuses everything else, so it can run no code; and in a process of its own, limited to 512 MB + 24 x
    file size, and 10 s + 1 s per 2 MB. (Windows and macOS limit the time only.) A file of more than 1 GB is not read.

    Args:
        pickle_file: for instance ``big_nlp_word_knowledge_clip.pkl``.
        output: the prior file to write; an existing one is refused unless ``force``.
        plm_name: the language model that the vectors came from, for the prior's record.
        authors_edges: the edges of the authors' module and not of the paper's definition (see above), for weights that
            were trained with them: with these edges ``GraphTransfer`` computes the codes that their module computes.
        force: replace an existing ``output``.

    Raises:
        BuildError: no such file, a pickle that names anything but tensors or takes too much to read, or another layout.
        PriorError: the content makes no prior, or the file cannot be written.
    """
    path = Path(pickle_file)
    try:
        if path.exists() and not path.is_file():  # a device may have no end
            raise BuildError(f"{printable(path)} is not a file; expected the authors' pickle")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size + 1) if size <= LARGEST else b""
            if len(data) > size:  # it grows, or does not say its size
                data += file.read(LARGEST)
        size = max(size, len(data))
        if size > LARGEST:
            raise BuildError(
                f"{printable(path)} is refused: it has {size:,} bytes, and at most {LARGEST:,} are read. Expected the "
                "authors' pickle, which has a few thousand bytes for each word"
            )
        if output is not None:  # before the reading, which may take a minute
            find_target(Path(output))
    except NotAFileError as error:
        raise BuildError(f"output {error}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, BuildError):
            raise
        why = getattr(error, "strerror", None) or error
        raise BuildError(f"{printable(path)} cannot be read: {why}") from error
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
            vectors.append(_vector(path, word, *vector))
    if len({len(vector) for vector in vectors}) != 1:
        raise BuildError(
            f"{printable(path)}: vectors of {sorted({len(v) for v in vectors})} numbers; expected one length"
        )
    seen = known["adj_noun_edges"]
    if authors_edges:
        one = {word: i for (_, word), i in place.items()}  # the nouns come last, so a noun stands for both
        ends = [(one.get(a), one.get(b), c) for (a, b), c in sorted(seen.items())]
    else:
        ends = [(place.get((0, a)), place.get((1, b)), c) for (a, b), c in sorted(seen.items())]
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
    """The keys of the authors' layout; edges are counted, and the vectors float16 or float32."""
    try:
        found, numbers = read_apart(data)
    except RefusedError as error:
        raise BuildError(
            f"{printable(path)} is refused: {printable(error, 1000)}. Expected a pickle of plain values and tensors "
            "only, laid out as the authors' big_nlp_word_knowledge_clip.pkl"
        ) from error
    if "missing" in found:
        raise BuildError(
            f"{printable(path)} has no {', '.join(found['missing'])}; expected the authors' layout: dictionaries and a "
            f"list called {', '.join(KEYS)}"
        )
    content: Dict[str, Any] = {}
    rows = iter(numbers)
    for part in ("adj", "noun"):
        if not found[part]:
            raise BuildError(f"{printable(path)}: {part}_code_book_vec is empty")
        content[f"{part}_code_book_num"] = {word: count for word, count, _ in found[part]}
        content[f"{part}_code_book_vec"] = {word: (dtype, next(rows)) for word, _, dtype in found[part]}
    if found.get("bad_edges"):
        raise BuildError(f"{printable(path)}: adj_noun_edges has to be a list of (adjective, noun)")
    names = found["names"]
    content["adj_noun_edges"] = {(names[a], names[b]): count for a, b, count in found["edges"]}
    return content


def _count(path: Path, counts: Dict[str, Any], word: str, part: str) -> int:
    if counts[word] is None:
        raise BuildError(f"{printable(path)}: {part}_code_book_num has no count for {printable(repr(word))}")
    return int(counts[word])


def _vector(path: Path, word: str, dtype: str, numbers: bytes) -> np.ndarray:
    if not dtype:
        shown = printable(repr(word))
        raise BuildError(
            f"{printable(path)}: the vector of {shown} has to be a tensor of one dimension with numbers of float16 to "
            "float64"
        )
    if dtype == "bfloat16":  # numpy has none: it is the upper half of a float32
        return (np.frombuffer(numbers, dtype="<u2").astype("<u4") << 16).view(np.float32)
    if dtype in ("float16", "half"):
        return np.frombuffer(numbers, dtype="<f2")
    with np.errstate(over="ignore"):  # what becomes infinite is refused with the prior
        return np.frombuffer(numbers, dtype="<f4" if dtype in ("float32", "float") else "<f8").astype(np.float32)
