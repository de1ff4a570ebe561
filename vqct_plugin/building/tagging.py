"""Captions -> words by part of speech, and which of them stand right before which others.

Source: the recipe of Zhang et al., CVPR 2024, as their prior was made: lower case, NLTK's tokens and tags; an adjective
is a token tagged ``JJ``, as written; a noun one tagged ``NN``, ``NNS``, ``NNP`` or ``NNPS``, reduced by WordNet's noun
lemmatizer; an edge for each adjective with a noun as the very next token. Verbs (``VB*``, WordNet's verb lemmas) and
adverbs (``RB``, as written) come on request, with edges of their own (``EDGES``).
"""

import functools
import logging
from collections import Counter
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

import nltk
import numpy as np
from nltk.corpus import wordnet
from nltk.stem import WordNetLemmatizer
from nltk.tag.perceptron import AveragedPerceptron, PerceptronTagger
from nltk.tokenize import word_tokenize

from vqct_plugin.building.formats import BuildError

_log = logging.getLogger(__name__)

PARTS = ("adjective", "noun")
ALL_PARTS = ("adjective", "noun", "verb", "adverb")
#: which part right before which other makes an edge
EDGES = (
    ("adjective", "noun"),
    ("noun", "verb"),
    ("verb", "noun"),
    ("adverb", "adjective"),
    ("adverb", "verb"),
    ("verb", "adverb"),
)
_PART_OF_TAG = {
    **{"JJ": "adjective", "RB": "adverb"},
    **{tag: "noun" for tag in ("NN", "NNS", "NNP", "NNPS")},
    **{tag: "verb" for tag in ("VB", "VBD", "VBG", "VBN", "VBP", "VBZ")},
}
WORDNET_PART = {"adjective": "a", "noun": "n", "verb": "v", "adverb": "r"}
_LEMMATIZED = ("noun", "verb")
# The slash at the end lets nltk.data.find look into a zip file too.
_NLTK_DATA = {
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng/",
    "wordnet": "corpora/wordnet/",
}

Tagged = List[Tuple[str, Optional[str]]]


class WordCounts:
    """How often each word was seen in each part of speech, and each pair side by side that makes an edge.

    ``words[part][word]`` and ``pairs[part, next_part][word, next_word]`` are counts.
    """

    def __init__(self, parts: Sequence[str] = PARTS) -> None:
        self.words: Dict[str, Counter[str]] = {part: Counter() for part in parts}
        self.pairs: Dict[Tuple[str, str], Counter[Tuple[str, str]]] = {
            edge: Counter() for edge in EDGES if set(edge) <= set(parts)
        }

    @property
    def parts(self) -> Tuple[str, ...]:
        """The parts of speech that are counted."""
        return tuple(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordCounts) and (self.words, self.pairs) == (other.words, other.pairs)

    def add(self, tagged: Iterable[Tuple[str, Optional[str]]]) -> None:
        """Count one tagged caption."""
        before, before_part = "", ""
        for word, part in tagged:
            if part not in self.words:
                part = ""
            if part:
                self.words[part][word] += 1
                if (before_part, part) in self.pairs:
                    self.pairs[before_part, part][before, word] += 1
            before, before_part = word, part or ""

    def merge(self, other: "WordCounts") -> None:
        """Add what another has counted."""
        for part, words in other.words.items():
            self.words[part].update(words)
        for edge, pairs in other.pairs.items():
            self.pairs[edge].update(pairs)

    def rename(self, name: Callable[[str, str], str]) -> "WordCounts":
        """The counts of ``name(word, part)`` instead of ``word``; those that become one word add up."""
        renamed = WordCounts(self.parts)
        for part, words in self.words.items():
            for word, count in words.items():
                renamed.words[part][name(word, part)] += count
        for (part, next_part), pairs in self.pairs.items():
            for (word, next_word), count in pairs.items():
                renamed.pairs[part, next_part][name(word, part), name(next_word, next_part)] += count
        return renamed

    def only(self, keep: Callable[[str, str], bool]) -> "WordCounts":
        """The words with ``keep(word, part)``, and the pairs of which both are kept."""
        kept = WordCounts(self.parts)
        for part, words in self.words.items():
            kept.words[part] = Counter({word: count for word, count in words.items() if keep(word, part)})
        for (a, b), pairs in self.pairs.items():
            firsts, seconds = kept.words[a], kept.words[b]
            kept.pairs[a, b] = Counter({(v, w): c for (v, w), c in pairs.items() if v in firsts and w in seconds})
        return kept

    def more_than(self, min_count: int) -> "WordCounts":
        """The words seen more than ``min_count`` times."""
        return self.only(lambda word, part: self.words[part][word] > min_count)

    def without(self, dropped: Set[Tuple[str, str]]) -> "WordCounts":
        """All but the given (word, part) pairs."""
        return self.only(lambda word, part: (word, part) not in dropped)

    def among(self, vocabulary: Mapping[str, Iterable[str]]) -> "WordCounts":
        """The words of ``vocabulary[part]``, also those that were never seen, with a count of 0."""
        words = {part: set(vocabulary[part]) for part in self.parts}
        kept = self.only(lambda word, part: word in words[part])
        for part in self.parts:
            for word in words[part]:
                kept.words[part].setdefault(word, 0)
        return kept

    def commonest(self, most: Mapping[str, int]) -> "WordCounts":
        """At most ``most[part]`` words of each part: the commonest, the first by spelling where counts are equal."""
        kept = {
            part: set(sorted(words, key=lambda word: (-words[word], word))[: most.get(part)])
            for part, words in self.words.items()
        }
        return self.only(lambda word, part: word in kept[part])

    def describe(self) -> str:
        """One line of figures."""
        sizes = ", ".join(f"{len(words):,} {part}s" for part, words in self.words.items())
        distinct = sum(len(pairs) for pairs in self.pairs.values())
        occurrences = sum(sum(pairs.values()) for pairs in self.pairs.values())
        return f"{sizes}, {distinct:,} distinct pairs ({occurrences:,} occurrences)"


class CaptionTagger:
    """A caption -> its tokens, each a (token, part of speech), the part ``None`` for tokens that are not codes.

    Tokens come in lower case and as written; ``lemma`` gives the word that a token is counted as. The two are apart
    because there are few distinct tokens and many captions.

    Needs NLTK's tagger, and fetches it with NLTK's downloader where it is missing.

    Raises:
        BuildError: NLTK's data is missing and could not be fetched; says how to get it.
    """

    def __init__(self) -> None:
        ensure_nltk_data(["averaged_perceptron_tagger_eng"])
        self._tagger = PerceptronTagger()
        self._tagger.model = DensePerceptron(self._tagger.model)

    def __call__(self, caption: str) -> Tagged:
        # preserve_line: a caption is one sentence, so NLTK's sentence splitter (and its data) is not needed.
        tokens = word_tokenize(caption.lower(), preserve_line=True)
        # A stray zero-width character: no word of a prior may hold one.
        return [
            (token, _PART_OF_TAG.get(tag) if token.isprintable() else None) for token, tag in self._tagger.tag(tokens)
        ]


class DensePerceptron(AveragedPerceptron):
    """NLTK's model of the tagger, the same sums in the same order, with a row of numbers for a feature.

    NLTK adds up a dictionary of labels for each feature of a token; a row takes a quarter of the time for the same
    tag.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model.weights)
        self.classes = model.classes
        self._labels = sorted(model.classes, reverse=True)  # of labels with equal scores NLTK takes the last
        self._place = {label: i for i, label in enumerate(self._labels)}
        self._rows: Dict[str, np.ndarray] = {}  # made when a feature is first met; no more than the model has

    def predict(self, features: Iterable[str], return_conf: bool = False) -> Tuple[str, None]:
        """The best label. Confidences are not computed."""
        scores = np.zeros(len(self._labels))
        for feature in features:
            row = self._rows.get(feature)
            if row is None:
                weights = self.weights.get(feature)
                if weights is None:
                    continue
                row = self._rows[feature] = np.zeros(len(self._labels))
                for label, weight in weights.items():
                    row[self._place[label]] = weight
            scores += row
        return self._labels[int(scores.argmax())], None


def make_lemmatizer() -> Callable[[str, str], str]:
    """(token, part) -> the word it is counted as: WordNet's lemma of nouns and verbs, others as written."""
    ensure_nltk_data(["wordnet"])
    lemmatize = functools.lru_cache(maxsize=1 << 16)(WordNetLemmatizer().lemmatize)

    def lemma(token: str, part: str) -> str:
        return str(lemmatize(token, WORDNET_PART[part])) if part in _LEMMATIZED else token

    return lemma


def describe_tagger() -> str:
    """What tagged and lemmatized, for a prior's record."""
    return (  # a record's text stays as it is in files that exist, its spelling too: the same recipe, the same bytes
        f"NLTK {nltk.__version__}: word_tokenize, averaged_perceptron_tagger_eng, "
        f"noun lemmatiser of WordNet {wordnet.get_version()}"
    )


def is_in_wordnet(word: str, part: str) -> bool:
    """Whether WordNet has this very form in this part of speech: not ``girl`` as an adjective, nor ``gril`` at all."""
    return bool(wordnet.lemmas(word, WORDNET_PART[part]))


def batches(captions: Iterable[str], size: int) -> Iterator[List[str]]:
    """Lists of ``size`` captions, the last one shorter."""
    batch: List[str] = []
    for caption in captions:
        batch.append(caption)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def ensure_nltk_data(wanted: Sequence[str] = tuple(_NLTK_DATA)) -> None:
    """Fetch what is missing of NLTK's data."""
    for name in _missing_nltk_data(wanted):
        _log.warning("NLTK data %r is missing; trying NLTK's downloader", name)
        try:
            nltk.download(name, quiet=True)
        except Exception as error:  # whatever the network does, the sentence below is what helps
            _log.warning("NLTK's downloader failed: %s", error)
    missing = _missing_nltk_data(wanted)
    if missing:
        raise BuildError(
            f"NLTK data is missing and could not be downloaded: {', '.join(missing)}. With a network, run\n"
            f"    python -m nltk.downloader {' '.join(missing)}\n"
            "Without one, copy an nltk_data folder from a machine that has it (taggers/averaged_perceptron_tagger_eng "
            "and corpora/wordnet in it), and set the environment variable NLTK_DATA to that folder"
        )


def _missing_nltk_data(wanted: Sequence[str] = tuple(_NLTK_DATA)) -> List[str]:
    missing = []
    for name in wanted:
        try:
            nltk.data.find(_NLTK_DATA[name])
        except LookupError:
            missing.append(name)
    return missing
