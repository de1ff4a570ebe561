"""Captions -> words by part of speech, and which adjective stands right before which noun.

Source: the recipe of Zhang et al., CVPR 2024, as their prior was made: lower case, NLTK's tokens and tags; an adjective
is a token tagged ``JJ``, as written; a noun one tagged ``NN``, ``NNS``, ``NNP`` or ``NNPS``, reduced by WordNet's noun
lemmatiser; an edge for each adjective with a noun as the very next token.
"""

import functools
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

import nltk
from nltk.corpus import wordnet
from nltk.stem import WordNetLemmatizer
from nltk.tag.perceptron import PerceptronTagger
from nltk.tokenize import word_tokenize

from vqct_plugin.building.captions import BuildError

PARTS = ("adjective", "noun")
_PART_OF_TAG = {"JJ": "adjective", "NN": "noun", "NNS": "noun", "NNP": "noun", "NNPS": "noun"}
_WORDNET_PART = {"adjective": "a", "noun": "n"}
# The slash at the end lets nltk.data.find look into a zip file too.
_NLTK_DATA = {
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng/",
    "wordnet": "corpora/wordnet/",
}


@dataclass
class WordCounts:
    """How often each word was seen in each part of speech, and each (adjective, noun) pair side by side."""

    words: Dict[str, "Counter[str]"] = field(default_factory=lambda: {part: Counter() for part in PARTS})
    pairs: "Counter[Tuple[str, str]]" = field(default_factory=Counter)

    def add(self, tagged: Iterable[Tuple[str, Optional[str]]]) -> None:
        """Count one tagged caption."""
        before = ""  # the adjective that the token before was, if it was one
        for word, part in tagged:
            if part is not None:
                self.words[part][word] += 1
            if part == "noun" and before:
                self.pairs[before, word] += 1
            before = word if part == "adjective" else ""

    def only(self, keep: Callable[[str, str], bool]) -> "WordCounts":
        """The words with ``keep(word, part)``, and the pairs of which both are kept."""
        kept = WordCounts()
        for part, words in self.words.items():
            kept.words[part] = Counter({word: count for word, count in words.items() if keep(word, part)})
        adjectives, nouns = kept.words["adjective"], kept.words["noun"]
        kept.pairs = Counter({(a, b): c for (a, b), c in self.pairs.items() if a in adjectives and b in nouns})
        return kept

    def more_than(self, min_count: int) -> "WordCounts":
        """The words seen more than ``min_count`` times."""
        return self.only(lambda word, part: self.words[part][word] > min_count)

    def without(self, dropped: Set[Tuple[str, str]]) -> "WordCounts":
        """All but the given (word, part) pairs."""
        return self.only(lambda word, part: (word, part) not in dropped)

    def describe(self) -> str:
        """One line of figures."""
        sizes = ", ".join(f"{len(words):,} {part}s" for part, words in self.words.items())
        return f"{sizes}, {len(self.pairs):,} distinct pairs ({sum(self.pairs.values()):,} occurrences)"


class CaptionTagger:
    """A caption -> its tokens, each a (word, part of speech), the part ``None`` for tokens that are no code.

    Needs NLTK's tagger and WordNet, and fetches them with NLTK's downloader where they are missing.

    Raises:
        BuildError: NLTK's data is missing and could not be fetched; says how to get it.
    """

    def __init__(self) -> None:
        ensure_nltk_data()
        self._tagger = PerceptronTagger()  # once: nltk.pos_tag would read the model again for every caption
        self._lemma = functools.lru_cache(maxsize=1 << 16)(WordNetLemmatizer().lemmatize)

    def __call__(self, caption: str) -> List[Tuple[str, Optional[str]]]:
        # preserve_line: a caption is one sentence, so NLTK's sentence splitter (and its data) is not needed.
        tokens = word_tokenize(caption.lower(), preserve_line=True)
        tagged: List[Tuple[str, Optional[str]]] = []
        for token, tag in self._tagger.tag(tokens):
            part = _PART_OF_TAG.get(tag)
            if not token.isprintable():  # a stray zero-width character: no word of a prior may hold one
                part = None
            tagged.append((self._lemma(token, "n") if part == "noun" else token, part))
        return tagged

    def describe(self) -> str:
        """What tagged and lemmatised, for a prior's record."""
        return (
            f"NLTK {nltk.__version__}: word_tokenize, averaged_perceptron_tagger_eng, "
            f"noun lemmatiser of WordNet {wordnet.get_version()}"
        )


def known_to_wordnet(word: str, part: str) -> bool:
    """Whether WordNet lists this very form in this part of speech: ``girl`` is no adjective, ``gril`` is no word."""
    return bool(wordnet.lemmas(word, _WORDNET_PART[part]))


def ensure_nltk_data() -> None:
    """Fetch what the tagger needs of NLTK's data, if it is not there yet."""
    for name in _missing_nltk_data():
        print(f"NLTK data {name!r} is missing; trying NLTK's downloader", file=sys.stderr)
        try:
            nltk.download(name, quiet=True)
        except Exception as error:  # whatever the network does, the sentence below is what helps
            print(f"NLTK's downloader failed: {error}", file=sys.stderr)
    missing = _missing_nltk_data()
    if missing:
        raise BuildError(
            f"NLTK data is missing and could not be downloaded: {', '.join(missing)}. With a network, run\n"
            f"    python -m nltk.downloader {' '.join(missing)}\n"
            "Without one, copy an nltk_data folder from a machine that has it (taggers/averaged_perceptron_tagger_eng "
            "and corpora/wordnet in it), and set the environment variable NLTK_DATA to that folder"
        )


def _missing_nltk_data() -> List[str]:
    missing = []
    for name, place in _NLTK_DATA.items():
        try:
            nltk.data.find(place)
        except LookupError:
            missing.append(name)
    return missing
