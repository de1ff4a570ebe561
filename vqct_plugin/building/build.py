"""Captions and a language model in, a prior out: the whole way, with its summary."""

import hashlib
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
from tqdm import tqdm

from vqct_plugin._version import __version__
from vqct_plugin.building.captions import BuildError, CaptionsFile, PathLike, open_captions
from vqct_plugin.building.tagging import PARTS, CaptionTagger, WordCounts, known_to_wordnet
from vqct_plugin.building.vectors import InputEmbeddings
from vqct_plugin.prior import CodebookPrior

DTYPES = ("float32", "float16")


@dataclass
class BuildReport:
    """A built prior and how it came about; ``str(report)`` is the summary that the command prints."""

    prior: CodebookPrior
    corpora: List[CaptionsFile]
    counted: WordCounts
    unknown: List[Tuple[str, str]]
    seconds: Dict[str, float] = field(default_factory=dict)
    output: Optional[Path] = None

    def __str__(self) -> str:
        prior = self.prior
        lines = []
        for corpus in self.corpora:
            lines.append(f"{corpus.path.name}: {corpus.captions:,} captions ({corpus.format})")
            if corpus.spaces_for_tabs:
                lines.append(f"  {corpus.spaces_for_tabs:,} lines with a space for the tab, read as meant")
            if corpus.damaged:
                lines.append(f"  {corpus.damaged:,} damaged lines skipped, the first:")
                lines += [f"    {line}" for line in corpus.first_damaged]
        lines.append(f"counted: {self.counted.describe()}")
        sizes = " + ".join(f"{size:,} {part}s" for part, size in prior.sizes.items())
        occurrences, tied = int(prior.edge_count.sum()), np.unique(prior.edges).size
        lines.append(
            f"kept: {sizes} = {len(prior):,} codes with vectors of {prior.vectors.shape[1]} ({prior.vectors.dtype})"
        )
        lines.append(f"edges: {prior.edges.shape[1]:,} distinct, {occurrences:,} occurrences")
        lines.append(f"isolated codes (no edge): {len(prior) - tied:,}")
        if self.unknown:
            shown = ", ".join(word for word, _ in self.unknown[:10])
            lines.append(f"dropped, unknown to the tokenizer: {len(self.unknown):,} words ({shown})")
        for number, part in enumerate(prior.parts):
            words = [word for word, p in zip(prior.words, prior.part_of_speech) if p == number]
            lines.append(f"commonest {part}s: {', '.join(words[:12])}")
        lines.append("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in self.seconds.items()))
        if self.output is not None:
            lines.append(f"written: {self.output} ({self.output.stat().st_size / 1e6:.1f} MB)")
        return "\n".join(lines)


def build_prior(
    captions: Sequence[PathLike],
    plm: str,
    output: Optional[PathLike] = None,
    *,
    plm_name: Optional[str] = None,
    caption_format: str = "auto",
    min_count: int = 10,
    only_wordnet: bool = False,
    drop_words: Optional[PathLike] = None,
    dtype: str = "float32",
    batch_size: int = 1024,
    force: bool = False,
    progress: bool = False,
) -> BuildReport:
    """Build a prior by the recipe of Zhang et al., CVPR 2024, and write it whole or not at all.

    Args:
        captions: caption files, plain text or Flickr token files.
        plm: the language model, a local folder or a name on the hub; a word's vector is the mean of the input
            embeddings of its pieces. A word that the tokenizer only knows as unknown is dropped, and reported.
        output: the prior file to write; ``None`` writes none.
        plm_name: what the prior calls the model; the hub name or the folder's base name by default.
        caption_format: ``"auto"``, ``"text"`` or ``"flickr"``.
        min_count: words seen more often than this are kept.
        only_wordnet: keep only words that WordNet lists in that part of speech (no typos, no slips of the tagger).
        drop_words: a text file of words to leave out: a word a line, or a word and the one part it is dropped from.
        dtype: what the vectors are stored as, ``"float32"`` or ``"float16"``.
        batch_size: words tokenized at a time; does not change the result.
        force: replace an existing ``output``.
        progress: progress bars on stderr.

    Raises:
        BuildError: whatever is wrong with the input. Output and input are checked before the long work begins.
        PriorError: the file cannot be written.
    """
    seconds: Dict[str, float] = {}
    _check_options(min_count, dtype, batch_size)
    _check_output(output, force)
    corpora = open_captions(captions, caption_format)
    dropped = read_drop_words(drop_words) if drop_words is not None else set()
    with _timed(seconds, "language model"):
        embeddings = InputEmbeddings(plm, plm_name)
    with _timed(seconds, "tagging"):
        tagger = CaptionTagger()
        counted = count_captions(corpora, tagger, progress)
    with _timed(seconds, "vectors"):
        kept = counted.more_than(min_count)
        if only_wordnet:
            kept = kept.only(known_to_wordnet)
        kept = kept.without(dropped)
        provenance: Dict[str, Any] = {
            "captions": [corpus.describe() for corpus in corpora],
            "tagger": tagger.describe(),
            "edges": "adjective right before a noun",
            "min_count": min_count,
            "only_wordnet": only_wordnet,
            "tool": f"vqct_plugin {__version__}",
        }
        if drop_words is not None:
            digest = hashlib.sha256(Path(drop_words).read_bytes()).hexdigest()
            provenance["drop_words"] = {"file": Path(drop_words).name, "sha256": digest}
        prior, unknown = assemble(kept, embeddings, provenance, dtype, batch_size, progress)
    report = BuildReport(prior, corpora, counted, unknown, seconds)
    if output is not None:
        with _timed(seconds, "writing"):
            prior.save(output, overwrite=force)
        report.output = Path(output)
    return report


def count_captions(corpora: Sequence[CaptionsFile], tagger: CaptionTagger, progress: bool = False) -> WordCounts:
    """Tag all captions and count their words and pairs; memory grows with distinct words and pairs only."""
    counts = WordCounts()
    total = sum(corpus.size for corpus in corpora)
    with tqdm(total=total, desc="tagging captions", unit="B", unit_scale=True, disable=not progress) as bar:
        done = 0
        for corpus in corpora:
            for caption in corpus:
                counts.add(tagger(caption))
                bar.update(done + corpus.bytes_read - bar.n)
            done += corpus.size
    return counts


def assemble(
    counts: WordCounts,
    embeddings: InputEmbeddings,
    provenance: Dict[str, Any],
    dtype: str = "float32",
    batch_size: int = 1024,
    progress: bool = False,
) -> Tuple[CodebookPrior, List[Tuple[str, str]]]:
    """The prior of the counted words, and the (word, part) pairs dropped because the tokenizer does not know them."""
    pairs = [(word, part) for part in PARTS for word in sorted(counts.words[part])]
    vectors, known = embeddings([word for word, _ in pairs], batch_size, progress)
    unknown = [pair for pair, is_known in zip(pairs, known) if not is_known]
    counts = counts.without(set(unknown))
    pairs = [pair for pair, is_known in zip(pairs, known) if is_known]
    for part in PARTS:
        if not counts.words[part]:
            raise BuildError(
                f"no {part} is left of the captions ({len(unknown)} words unknown to the tokenizer): "
                "give more captions, or lower --min-count"
            )
    with np.errstate(over="ignore"):  # an overflow is told of below
        stored = vectors[known].astype(dtype)
    if not np.isfinite(stored).all():
        what = "overflow float16; store them as float32" if dtype == "float16" else "hold NaN or infinite values"
        raise BuildError(f"vectors of {embeddings.name!r} {what}")
    place = {pair: i for i, pair in enumerate(pairs)}
    edges = sorted(counts.pairs.items())
    prior = CodebookPrior(
        words=tuple(word for word, _ in pairs),
        part_of_speech=np.array([PARTS.index(part) for _, part in pairs]),
        count=np.array([counts.words[part][word] for word, part in pairs]),
        vectors=stored,
        edges=np.array(
            [[place[a, "adjective"] for (a, _), _ in edges], [place[b, "noun"] for (_, b), _ in edges]], dtype=np.int64
        ),
        edge_count=np.array([count for _, count in edges], dtype=np.int64),
        parts=PARTS,
        provenance={
            **provenance,
            "language_model": embeddings.name,
            "vectors": {**embeddings.describe(), "dtype": dtype},
            "unknown_to_tokenizer": len(unknown),
        },
    )
    return prior, unknown


def read_drop_words(path: PathLike) -> Set[Tuple[str, str]]:
    """The (word, part) pairs of a list: ``word`` (every part) or ``word part`` a line, ``#`` begins a comment."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"the list of words to drop, {path}, cannot be read: {error}") from error
    dropped: Set[Tuple[str, str]] = set()
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("#")[0].split()
        if len(fields) > 2 or (len(fields) == 2 and fields[1] not in PARTS):
            raise BuildError(
                f"{path}, line {number}: {line!r}; expected a word, or a word and one of {', '.join(PARTS)}"
            )
        if fields:
            dropped |= {(fields[0].lower(), part) for part in (fields[1:] or PARTS)}
    return dropped


def _check_options(min_count: int, dtype: str, batch_size: int) -> None:
    if min_count < 0:
        raise BuildError(f"min_count is {min_count}; expected 0 (every word seen) or more")
    if dtype not in DTYPES:
        raise BuildError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if batch_size < 1:
        raise BuildError(f"batch_size is {batch_size}; expected 1 or more")


def _check_output(output: Optional[PathLike], force: bool) -> None:
    """Refuse now what could not be written after minutes of work."""
    if output is None:
        return
    path = Path(output)
    if path.is_dir():
        raise BuildError(f"output {path} is a folder; name a file in it")
    if path.exists() and not force:
        raise BuildError(f"output {path} exists; use --force to replace it")
    if not path.absolute().parent.is_dir():
        raise BuildError(f"the folder of the output, {path.absolute().parent}, does not exist; make it first")


@contextmanager
def _timed(seconds: Dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
