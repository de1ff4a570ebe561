"""Words without captions: a language model's vocabulary or WordNet's own, and WordNet's glosses as a corpus.

Of the nouns those are taken that name what can be seen, by the lexicographer file of their senses.
"""

import functools
import hashlib
from collections import Counter
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from nltk.corpus import wordnet

from vqct_plugin.building.tagging import WORDNET_PART, ensure_nltk_data

#: lexicographer files of WordNet (lexnames) with nouns for things that can be seen
VISIBLE = (
    "animal",
    "artifact",
    "body",
    "food",
    "group",
    "location",
    "object",
    "person",
    "phenomenon",
    "plant",
    "shape",
    "substance",
)
_RARELY = 0.01  # of a word's tagged occurrences: a part of speech seen less often is a slip ("in" the adjective)
_ENOUGH = 20  # tagged occurrences that make such a share mean something


class WordNetGlosses:
    """The definitions and examples of WordNet's adjectives and visible nouns, a caption each.

    Abstract nouns are left out: their glosses tie words that no picture has.
    """

    name = "WordNet glosses"
    size: Optional[int] = None

    def __init__(self) -> None:
        ensure_nltk_data(["wordnet"])
        self.captions = self.bytes_read = 0
        self.sha256 = ""

    def __iter__(self) -> Iterator[str]:
        self.captions = self.bytes_read = 0
        digest = hashlib.sha256()
        for part in ("adjective", "noun"):
            for synset in wordnet.all_synsets(WORDNET_PART[part]):
                if part == "noun" and not _is_visible(synset):
                    continue
                for text in (synset.definition(), *synset.examples()):
                    digest.update(text.encode() + b"\n")
                    self.bytes_read += len(text) + 1
                    self.captions += 1
                    yield text
        self.sha256 = digest.hexdigest()

    def describe(self) -> Dict[str, Union[str, int]]:
        """What a prior records of this corpus."""
        return {
            "file": f"WordNet {wordnet.get_version()}, glosses of adjectives and visible nouns",
            "format": "text",
            "bytes": self.bytes_read,
            "sha256": self.sha256,
            "captions": self.captions,
        }

    def summary(self) -> List[str]:
        """Lines for people."""
        return [f"{self.name}: {self.captions:,} definitions and examples"]


def list_wordnet_words(parts: Sequence[str]) -> Dict[str, List[str]]:
    """WordNet's words of each part of speech: single words in lower case; of the nouns those for visible things.

    There are many, so the choice is strict: the first, commonest sense of a noun is one that can be seen, and proper
    names are left out.
    """
    ensure_nltk_data(["wordnet"])
    return {part: _of_part(wordnet.all_lemma_names(WORDNET_PART[part]), part, strictly=True) for part in parts}


def select_known(vocabulary: Iterable[str], parts: Sequence[str]) -> Dict[str, List[str]]:
    """The given words that WordNet has in each part of speech; of the nouns those with a sense that can be seen.

    Proper names in lower case stay: a vocabulary does not tell them apart ("jersey", "rose").
    """
    ensure_nltk_data(["wordnet"])
    words = set(vocabulary)
    return {part: _of_part(words, part, strictly=False) for part in parts}


def select_named(names: Iterable[str], parts: Sequence[str]) -> Dict[str, List[str]]:
    """The words of names of classes that WordNet has in each part of speech, of nouns those that can be seen.

    Unlike ``select_known`` it leaves out what WordNet has as a proper name only: the genus ``Tinca``, the country
    ``Persia``. A plural that WordNet does not list counts as its singular.
    """
    ensure_nltk_data(["wordnet"])
    words = list(names)
    found = {}
    for part in parts:
        letter = WORDNET_PART[part]
        of_part = [word if wordnet.lemmas(word, letter) else wordnet.morphy(word, letter) or word for word in words]
        known = _of_part(of_part, part, strictly=False)
        found[part] = [word for word in known if any(name.name() == word for name in wordnet.lemmas(word, letter))]
    return found


def _of_part(words: Iterable[str], part: str, strictly: bool) -> List[str]:
    counts = _sense_counts()
    kept = []
    for word in sorted({word for word in words if _is_word(word)}):
        total = sum(counts[p, word] for p in WORDNET_PART)
        if total >= _ENOUGH and counts[part, word] < _RARELY * total:
            continue
        lemmas = wordnet.lemmas(word, WORDNET_PART[part])  # the commonest sense first
        if strictly:
            lemmas = [lemma for lemma in lemmas[:1] if lemma.name()[0].islower()]
        if any(part != "noun" or _is_visible(lemma.synset()) for lemma in lemmas):
            kept.append(word)
    return kept


def _is_word(word: str) -> bool:
    return len(word) > 1 and word.replace("-", "").isalpha() and word.isascii() and word == word.lower()


def _is_visible(synset: Any) -> bool:
    return str(synset.lexname()).rpartition(".")[2] in VISIBLE


@functools.lru_cache(maxsize=1)
def _sense_counts() -> "Counter[Tuple[str, str]]":
    """How often each word occurs in each part of speech in the corpus that WordNet's makers tagged with senses."""
    letters = {"1": "noun", "2": "verb", "3": "adjective", "4": "adverb", "5": "adjective"}
    counts: Counter[Tuple[str, str]] = Counter()
    with wordnet.open("cntlist.rev") as file:  # a line: sense key (word%part:...), number of the sense, count
        for line in file:
            key, _, count = line.split()
            word, _, rest = key.partition("%")
            counts[letters[rest[0]], word] += int(count)
    return counts
