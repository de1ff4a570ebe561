"""Captions and a language model in, a prior out: the whole way.

This file is long: it checks each argument where it uses it, and half of it is the documentation of the arguments.
"""

import hashlib
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

import numpy as np

from vqct_plugin._files import NotAFileError, find_target, printable
from vqct_plugin._version import __version__
from vqct_plugin.building.captions import Captions, PathLike, open_captions
from vqct_plugin.building.classes import read_classes
from vqct_plugin.building.counting import count_captions
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.language_model import LanguageModel
from vqct_plugin.building.neighbors import connect_isolated, connect_parts
from vqct_plugin.building.pooling import check_pooling
from vqct_plugin.building.report import BuildReport
from vqct_plugin.building.tagging import ALL_PARTS, EDGES, PARTS, WordCounts, describe_tagger, is_in_wordnet
from vqct_plugin.building.vectors import InputEmbeddings, PromptEncodings, WordVectors, check_prompts
from vqct_plugin.building.wordnet import WordNetGlosses, list_wordnet_words, select_known, select_named
from vqct_plugin.prior import CodebookPrior

__all__ = ["build_prior"]

WORDS = ("captions", "model", "wordnet", "classes")
VECTORS = ("embeddings", "prompts")
EDGE_KINDS = ("cooccurrence", "neighbors", "both", "filled")
DTYPES = ("float32", "float16")
MIN_COUNT = 10  # the authors' threshold

VectorSource = Union[InputEmbeddings, PromptEncodings, WordVectors]


def build_prior(
    plm: Optional[str] = None,
    captions: Optional[Sequence[PathLike]] = None,
    output: Optional[PathLike] = None,
    *,
    plm_name: Optional[str] = None,
    revision: Optional[str] = None,
    device: Optional[str] = None,
    pooling: Optional[str] = None,
    word_vectors: Optional[PathLike] = None,
    vectors: str = "embeddings",
    prompts: Optional[Mapping[str, str]] = None,
    standardize: bool = False,
    caption_format: str = "auto",
    caption_field: str = "caption",
    glosses: bool = False,
    words: Optional[str] = None,
    classes: Optional[PathLike] = None,
    parts: Sequence[str] = PARTS,
    min_count: Optional[int] = None,
    max_words: Union[int, Mapping[str, int], None] = None,
    only_wordnet: bool = False,
    keep_words: Optional[PathLike] = None,
    drop_words: Optional[PathLike] = None,
    edges: str = "cooccurrence",
    neighbors: int = 5,
    dtype: str = "float32",
    batch_size: int = 256,
    workers: int = 1,
    scheduler: Optional[str] = None,
    picture: Optional[PathLike] = None,
    force: bool = False,
    progress: bool = False,
) -> BuildReport:
    """Build a prior by the recipe of Zhang et al., CVPR 2024, and write it whole or not at all.

    Captions have to be in English: so are the tagger, the lemmatizer and WordNet. This is assumed, and recorded so; the
    languages that are recognized are refused, and captions with few English function words warned of.

    The same inputs give the same bytes, with any number of workers.

    Args:
        plm: the language model, a local folder or a name on the hub.
        captions: corpora in English: files, folders, addresses that fsspec opens, ``"-"`` for standard input; in any
            format of ``vqct_plugin.building.formats.FORMATS``. Without captions the words come from the language
            model's vocabulary, and counts and edges from WordNet's glosses.
        output: the prior file to write; ``None`` writes none.
        plm_name: what the prior calls the model; the hub name or the folder's base name by default.
        revision: of a model on the hub, a branch, a tag or a commit; recorded in the prior.
        device: where prompts are encoded, as torch names it (``"cpu"``, ``"cuda:1"``); a GPU where there is one, if
            none is named.
        pooling: how a model without text features of its own makes one vector of a prompt: ``"cls"`` (the first
            token), ``"mean"``, ``"max"``, ``"lasttoken"``, ``"weightedmean"`` or ``"mean_sqrt_len_tokens"``, as
            sentence-transformers names them. By default what the model's own ``1_Pooling/config.json`` says; without
            one the last token of a model whose tokens see only what came before, and of others the mean.
        word_vectors: a text file of GloVe, word2vec or fastText in place of ``plm``.
        vectors: ``"embeddings"``, a word's vector is the mean of the input embeddings of its pieces; ``"prompts"``, the
            model's encoding of a prompt. A word that the tokenizer only knows as unknown, or that the file of word
            vectors does not have, is dropped and reported; if these are more than half, that is an error.
        prompts: part of speech -> text with one ``{}``; the authors' are ``"a photo of {} object"`` for adjectives and
            ``"a photo of {}"`` for others.
        standardize: center each dimension of the vectors over all words and scale it to standard deviation 1.
        caption_format: the format of all corpora; ``"auto"`` detects it from their first lines.
        caption_field: where captions stand in JSON records (a field in a field as ``"sentences.raw"``), and the column
            of CSV, TSV and Parquet; a number, from 1, for CSV and TSV without a header.
        glosses: count WordNet's glosses too (of adjectives and of nouns that can be seen), beside the captions.
        words: ``"captions"``, the words seen there; ``"model"``, the language model's whole words that WordNet knows;
            ``"wordnet"``, WordNet's; ``"classes"``, those of ``classes``. Of the last three only nouns that can be
            seen. By default ``"classes"`` if a list is given, then ``"captions"`` if there are any, then ``"model"``,
            then (with ``word_vectors``) ``"wordnet"``.
        classes: a list of class names as it is published (ImageNet's ``tench, Tinca tinca``), whose words that WordNet
            knows are the codes; counts and edges come from the captions, or from WordNet's glosses.
        parts: parts of speech, of ``adjective noun verb adverb``, in this order in the prior.
        min_count: words seen more often than this are kept. By default 10 of captions, and of other words all.
        max_words: the number of most frequent words kept in each part, or a mapping from parts to numbers.
        only_wordnet: keep only words that WordNet lists in that part of speech (no typos, no slips of the tagger).
        keep_words: a text file of words, no others are kept: one word per line, or a word and the one part meant.
        drop_words: a text file of words to leave out, written the same way.
        edges: ``"cooccurrence"``, words side by side; ``"neighbors"``, each word and the words of other parts with
            the nearest vectors, each such edge with a count of 1; ``"both"``, which leaves no word without an edge; or
            ``"filled"``, words side by side, and each word that has fewer than ``neighbors`` such relatives among
            words no rarer than itself is tied to the nearest of those (count 1), so that whichever of the commonest
            words ``CodebookPrior.select`` takes, every one of them has relatives.
        neighbors: how many nearest words each word is tied to, where ``edges`` says so.
        dtype: what the vectors are stored as, ``"float32"`` or ``"float16"``.
        batch_size: words encoded at a time; may change the last digits of prompt encodings.
        workers: processes of this machine that tag captions.
        scheduler: the address of a Dask scheduler whose workers tag captions.
        picture: a picture of the prior to draw, for instance a ``.png``.
        force: replace an existing ``output`` and ``picture``.
        progress: progress bars on stderr.

    Raises:
        BuildError: whatever is wrong with the input. Output and input are checked before the long work begins.
        PriorError: the file cannot be written.
    """
    seconds: Dict[str, float] = {}
    words = (
        words
        or ("classes" if classes is not None else None)
        or ("captions" if captions is not None else "model" if plm is not None else "wordnet")
    )
    glosses = glosses or captions is None
    if min_count is None:
        min_count = MIN_COUNT if words == "captions" else -1
    elif min_count < 0:
        raise BuildError(f"min_count is {min_count}; expected 0 (every word seen) or more")
    parts = _check_parts(parts)
    most = _check_max_words(max_words, parts)
    _check_choices(
        {"words": (words, WORDS), "vectors": (vectors, VECTORS), "edges": (edges, EDGE_KINDS), "dtype": (dtype, DTYPES)}
    )
    _check_numbers({"neighbors": neighbors, "batch_size": batch_size, "workers": workers})
    _check_together(plm, word_vectors, vectors, prompts, words, workers, scheduler)
    if (words == "classes") != (classes is not None):
        raise BuildError(f"words are {words!r} and classes are {classes!r}: a list of classes makes words='classes'")
    if device is not None and vectors != "prompts":
        raise BuildError(
            f"device is {device!r}, but input embeddings are read and not computed; pass vectors='prompts'"
        )
    if pooling is not None:
        check_pooling(pooling)
        if vectors != "prompts":
            raise BuildError(f"pooling is {pooling!r}, but nothing is encoded; pass vectors='prompts'")
    if revision is not None and plm is None:
        raise BuildError(f"revision is {revision!r}, but there is no model on the hub; pass plm=NAME")
    for path in (output, picture):
        _check_output(path, force)
    if picture is not None:
        from vqct_plugin.building.pictures import check_picture

        check_picture(picture)
    corpora: List[Union[Captions, WordNetGlosses]] = (
        list(open_captions(captions, caption_format, caption_field)) if captions is not None else []
    )
    kept_list = read_words(keep_words, parts) if keep_words is not None else None
    dropped = read_words(drop_words, parts) if drop_words is not None else set()
    class_words = read_classes(classes) if classes is not None else []
    if glosses:
        corpora.append(WordNetGlosses())

    with _measure_time(seconds, "language model"):
        language_model = LanguageModel(plm, plm_name, revision) if plm is not None else None
        source = _make_source(language_model, word_vectors, plm_name, vectors, prompts, device, pooling)
    with _measure_time(seconds, "tagging"):
        counted = count_captions(corpora, parts, workers, scheduler, progress)
    with _measure_time(seconds, "words"):
        kept = counted
        if words == "wordnet":
            kept = kept.among(list_wordnet_words(parts))
        elif words == "model" and language_model is not None:
            kept = kept.among(select_known(language_model.whole_words(), parts))
        elif words == "classes":
            kept = kept.among(select_named(class_words, parts))
        kept = kept.more_than(min_count)
        if only_wordnet:
            kept = kept.only(is_in_wordnet)
        if kept_list is not None:
            chosen = kept_list
            kept = kept.only(lambda word, part: (word, part) in chosen)
        kept = kept.without(dropped)
        provenance: Dict[str, Any] = {
            "captions": [corpus.describe() for corpus in corpora],
            "language": "English (assumed)" if captions is not None else "English (WordNet)",
            "tagger": describe_tagger(),
            "words": words,
            "min_count": min_count if min_count >= 0 else None,
            "max_words": most or None,
            "only_wordnet": only_wordnet,
            "tool": f"vqct_plugin {__version__}",
        }
        for what, path in (("keep_words", keep_words), ("drop_words", drop_words), ("classes", classes)):
            if path is not None:
                digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                provenance[what] = {"file": Path(path).name, "sha256": digest}
    with _measure_time(seconds, "vectors"):
        prior, unknown = assemble_prior(
            kept,
            source,
            provenance,
            most=most,
            standardize=standardize,
            edges=edges,
            neighbors=neighbors,
            dtype=dtype,
            batch_size=batch_size,
            progress=progress,
        )
    report = BuildReport(prior, corpora, counted, unknown, seconds)
    if kept_list is not None:
        report.not_found = sorted({word for word, _ in kept_list} - set(prior.words))
    if output is not None:
        with _measure_time(seconds, "writing"):
            prior.save(output, overwrite=force)
        report.output = Path(output)
    if picture is not None:
        from vqct_plugin.building.pictures import draw_prior

        with _measure_time(seconds, "picture"):
            draw_prior(prior, picture, overwrite=force)
    return report


def assemble_prior(
    counts: WordCounts,
    source: VectorSource,
    provenance: Dict[str, Any],
    *,
    most: Optional[Mapping[str, int]] = None,
    standardize: bool = False,
    edges: str = "cooccurrence",
    neighbors: int = 5,
    dtype: str = "float32",
    batch_size: int = 256,
    progress: bool = False,
) -> Tuple[CodebookPrior, List[Tuple[str, str]]]:
    """The prior of the counted words, and the (word, part) pairs dropped because they have no vector."""
    pairs = [(word, part) for part in counts.parts for word in sorted(counts.words[part])]
    known = source.knows([word for word, _ in pairs], progress)
    unknown = [pair for pair, is_known in zip(pairs, known) if not is_known]
    if len(unknown) * 2 > len(pairs):
        shown = ", ".join(word for word, _ in unknown[:10])
        raise BuildError(
            f"{source.name!r} has no vector for {len(unknown):,} of {len(pairs):,} words ({shown}): "
            "is it of the language of the captions?"
        )
    counts = counts.without(set(unknown))
    if most:
        counts = counts.commonest(most)
    pairs = [(word, part) for part in counts.parts for word in sorted(counts.words[part])]
    for part in counts.parts:
        if not counts.words[part]:
            raise BuildError(
                f"no {part} is left ({len(unknown)} words have no vector): give more captions, or lower min_count"
            )
    vectors, known = source([word for word, _ in pairs], [part for _, part in pairs], batch_size, progress)
    assert known.all()
    if standardize:
        vectors = _standardize(vectors)
    with np.errstate(over="ignore"):  # an overflow is reported below
        stored = vectors.astype(dtype)
    if not np.isfinite(stored).all():
        what = "overflow float16; store them as float32" if dtype == "float16" else "hold NaN or infinite values"
        raise BuildError(f"vectors of {source.name!r} {what}")
    part_of_speech = np.array([counts.parts.index(part) for _, part in pairs])
    place = {pair: i for i, pair in enumerate(pairs)}
    ends: List[Tuple[int, int]] = []
    edge_count: List[int] = []
    if edges != "neighbors":
        for (part, next_part), seen in counts.pairs.items():
            for (word, next_word), count in sorted(seen.items()):
                ends.append((place[word, part], place[next_word, next_part]))
                edge_count.append(count)
    seen_often = np.array([counts.words[part][word] for word, part in pairs])
    both_ends = np.array(ends, dtype=np.int64).reshape(-1, 2).T
    if edges == "filled":
        near = connect_isolated(vectors, part_of_speech, seen_often, both_ends, neighbors)
    elif edges == "cooccurrence":
        near = both_ends[:, :0]
    else:
        near = connect_parts(vectors, part_of_speech, neighbors)
    prior = CodebookPrior(
        words=tuple(word for word, _ in pairs),
        part_of_speech=part_of_speech,
        count=seen_often,
        vectors=stored,
        edges=np.concatenate([both_ends, near], axis=1),
        edge_count=np.array(edge_count + [1] * near.shape[1], dtype=np.int64),
        parts=counts.parts,
        provenance={
            **provenance,
            "edges": _describe_edges(edges, neighbors, counts.parts),
            "language_model": source.name,
            "vectors": {
                **source.describe(),
                **(
                    {"prompts": {part: source.prompts[part] for part in counts.parts}}
                    if isinstance(source, PromptEncodings)
                    else {}
                ),
                "dim": int(vectors.shape[1]),
                "standardized": standardize,
                "dtype": dtype,
            },
            "without_vector": len(unknown),
        },
    )
    return prior, unknown


def read_words(path: PathLike, parts: Sequence[str] = PARTS) -> Set[Tuple[str, str]]:
    """The (word, part) pairs of a list: ``word`` (every part) or ``word part`` a line, ``#`` begins a comment."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"the list of words {path} cannot be read: {error}") from error
    listed: Set[Tuple[str, str]] = set()
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("#")[0].split()
        if len(fields) > 2 or (len(fields) == 2 and fields[1] not in ALL_PARTS):
            raise BuildError(
                f"{path}, line {number}: {line!r}; expected a word, or a word and one of {', '.join(ALL_PARTS)}"
            )
        if fields:
            listed |= {(fields[0].lower(), part) for part in (fields[1:] or parts)}
    return listed


def _make_source(
    language_model: Optional[LanguageModel],
    word_vectors: Optional[PathLike],
    name: Optional[str],
    vectors: str,
    prompts: Optional[Mapping[str, str]],
    device: Optional[str],
    pooling: Optional[str],
) -> VectorSource:
    if word_vectors is not None:
        return WordVectors(word_vectors, name)
    assert language_model is not None
    if vectors == "prompts":
        return PromptEncodings(language_model, prompts, device, pooling)
    return InputEmbeddings(language_model)


def _standardize(vectors: np.ndarray) -> np.ndarray:
    exact = vectors.astype(np.float64)
    deviation = exact.std(0)
    return ((exact - exact.mean(0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def _describe_edges(edges: str, neighbors: int, parts: Sequence[str]) -> str:
    beside = "; ".join(f"{a} right before {b}" for a, b in EDGES if {a, b} <= set(parts))
    near = f"each word and the {neighbors} words of other parts nearest by cosine, counted once"
    filled = (
        f"each word with fewer than {neighbors} such relatives among the no rarer words of other parts, and the "
        f"{neighbors} of those nearest by cosine, counted once"
    )
    records = {"cooccurrence": beside, "neighbors": near, "both": f"{beside}; {near}", "filled": f"{beside}; {filled}"}
    return records[edges]


def _check_parts(parts: Sequence[str]) -> Tuple[str, ...]:
    if isinstance(parts, str):
        parts = (parts,)
    wrong = [part for part in parts if part not in ALL_PARTS]
    if wrong or not parts or len(set(parts)) != len(parts):
        raise BuildError(f"parts are {list(parts)}; expected some of {', '.join(ALL_PARTS)}, each once")
    return tuple(parts)


def _check_max_words(max_words: Union[int, Mapping[str, int], None], parts: Sequence[str]) -> Dict[str, int]:
    if max_words is None:
        return {}
    most = dict(max_words) if isinstance(max_words, Mapping) else {part: max_words for part in parts}
    for part, number in most.items():
        if part not in parts:
            raise BuildError(f"max_words names {part!r}; expected one of {', '.join(parts)}")
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise BuildError(f"max_words is {number!r} for {part}s; expected an integer from 1")
    return most


def _check_choices(choices: Mapping[str, Tuple[str, Sequence[str]]]) -> None:
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise BuildError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")


def _check_numbers(numbers: Mapping[str, int]) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise BuildError(f"{name} is {number!r}; expected an integer from 1")


def _check_together(
    plm: Optional[str],
    word_vectors: Optional[PathLike],
    vectors: str,
    prompts: Optional[Mapping[str, str]],
    words: str,
    workers: int,
    scheduler: Optional[str],
) -> None:
    """Refuse options that exclude each other."""
    if (plm is None) == (word_vectors is None):
        raise BuildError("expected one source of vectors: a language model (plm=...) or a file (word_vectors=...)")
    if word_vectors is not None and (vectors != "embeddings" or words == "model"):
        raise BuildError("a file of word vectors takes no prompts and has no model's vocabulary: both need plm=...")
    if prompts:
        check_prompts(prompts)
        if vectors != "prompts":
            raise BuildError("prompts are given, but vectors are 'embeddings'; pass vectors='prompts'")
    if scheduler is not None and workers != 1:
        raise BuildError(
            "workers are processes of this machine, and a Dask scheduler has its own; "
            "pass workers or scheduler, not both"
        )


def _check_output(output: Optional[PathLike], force: bool) -> None:
    """Refuse before the long work what could not be written after it."""
    if output is None:
        return
    path = Path(output)
    try:
        there = find_target(path)
    except NotAFileError as error:
        raise BuildError(f"output {error}") from error
    except (OSError, ValueError) as error:
        raise BuildError(f"output {printable(path)} cannot be written: {error}") from error
    if there.exists() and not force:
        raise BuildError(f"{printable(path)} exists; pass force=True to replace it")
    path = there
    if not path.absolute().parent.is_dir():
        raise BuildError(f"the folder of the output, {path.absolute().parent}, does not exist; make it first")
    if not os.access(str(path.absolute().parent), os.W_OK):
        raise BuildError(f"the folder of the output, {path.absolute().parent}, cannot be written to")


@contextmanager
def _measure_time(seconds: Dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
