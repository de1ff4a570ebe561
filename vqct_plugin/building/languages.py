"""Which language captions are in, by their commonest words.

The tagger, the lemmatizer and WordNet know English only.
"""

import itertools
import logging
from collections import Counter
from typing import Dict, FrozenSet, Iterable, Iterator, List, Optional, Tuple

from vqct_plugin._files import printable
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.heads import FEWEST

#: the commonest words of each language's sentences that the others' do not have so often
_COMMONEST = {
    "English": "a the of and is are with on in at to from by an its two his her there their while that for it next "
    "as no do over under man woman into up down out",
    "German": "der die das ein eine einen einem einer und ist mit auf im am zu den dem von sich steht zwei vor über",
    "French": "le la les un une des du de et est avec sur dans à en qui au sont deux dans une par pour homme femme",
    "Spanish": "el la los las un una unos de del y es está con en que al por dos se sobre hay su para mientras",
    "Portuguese": "o a os as um uma de do da dos das e é está com em no na que ao dois duas se sobre por para",
    "Italian": "il lo la gli le un una uno di del della e è con su sul sulla in nel che al due si per da sono",
    "Dutch": "de het een en is met op van in aan die dat te zijn naar voor bij twee zit staat over uit man vrouw",
    "Swedish": "en ett och är med på i av som den det till två står sitter för om under över vid man kvinna",
    "Polish": "w na z i do jest się ze nad po przez dwa dwie który która obok przy pod dla od oraz mężczyzna kobieta",
    "Turkish": "bir ve ile iki üzerinde olan için bu da de gibi adam içinde",
    "Indonesian": "di yang dan sebuah seorang dengan ke dari sedang dua itu pada untuk atas",
}
_WORDS: Dict[str, FrozenSet[str]] = {language: frozenset(words.split()) for language, words in _COMMONEST.items()}
#: those of English that are no words of other languages, as "on", "a", "is" and "to" are; English captions have 0.05
#: to 0.3 of them
_ONLY_ENGLISH = (
    "the",
    "of",
    "and",
    "with",
    "from",
    "their",
    "there",
    "while",
    "that",
    "this",
    "two",
    "its",
    "into",
    "who",
)
_log = logging.getLogger(__name__)
_SAMPLE = 1000  # captions
_ENOUGH = 60  # words; of fewer nothing is said
_SHARE = 0.12  # of words that are a language's commonest: English captions have 0.3 to 0.5, lists of keywords none
_DISTINCT = 4  # of these words: one may be a part of a name that is in every caption
_OTHER_LETTERS = 0.3  # of letters beyond Latin's
_LEAST_ENGLISH = 0.03  # of words that are English only, in captions that are not warned of
_ENOUGH_ENGLISH = 200  # words that make this share mean something
_SHOWN = 3  # files named in a warning


def find_foreign(captions: Iterable[str]) -> Optional[str]:
    """What these captions are in, if it is not English; ``None`` if it is, or if it cannot be told.

    >>> find_foreign(["Ein Hund steht auf der Wiese und eine Katze sitzt vor dem Haus ."] * 9)
    'German'
    >>> find_foreign(["A dog stands on the grass and a cat sits in front of the house ."] * 9)
    """
    counts, letters = _count(captions)
    if letters[0] >= _ENOUGH and letters[1] > _OTHER_LETTERS * letters[0]:
        return "another script"
    words = sum(counts.values())
    if words < _ENOUGH:
        return None
    seen = {language: [word for word in known if word in counts] for language, known in _WORDS.items()}
    totals = {language: sum(counts[word] for word in known) for language, known in seen.items()}
    language = max(totals, key=lambda name: totals[name])
    if totals[language] < _SHARE * words or totals[language] < 1.5 * totals["English"]:
        return None
    return language if len(set(seen[language]) - _WORDS["English"]) >= _DISTINCT else None


def measure_english(captions: Iterable[str]) -> Optional[float]:
    """The share of words that are function words of English and of no other language; ``None`` for a few words.

    >>> measure_english(["A dog stands on the grass and a cat sits in front of the house ."] * 20)
    0.26666666666666666
    >>> measure_english(["Koira juoksee rannalla ja poika heittää sille pallon ."] * 30)
    0.0
    """
    counts, _ = _count(captions)
    words = sum(counts.values())
    return None if words < _ENOUGH_ENGLISH else sum(counts[word] for word in _ONLY_ENGLISH) / words


def _count(captions: Iterable[str]) -> Tuple["Counter[str]", Tuple[int, int]]:
    """The words of captions; how many letters there are, and of these beyond Latin's."""
    text = " ".join(captions)
    words = Counter(word.strip(".,;:!?\"'()") for word in text.lower().split())
    letters = [letter for letter in text if letter.isalpha()]
    known = Counter({word: count for word, count in words.items() if word.isalpha()})
    return known, (len(letters), sum(letter > "\u024f" for letter in letters))


class LanguageCheck:
    """The language of a corpus, file by file: one that is known is refused, one that seems not English warned of."""

    def __init__(self, corpus: str) -> None:
        self._corpus = corpus
        self._few: Dict[str, float] = {}  # file -> its share of English words
        self._small: List[str] = []  # captions of files that are too small to tell

    def judge(self, name: str, before: str, captions: List[str], found: Optional[str]) -> None:
        """Take note of a file in which :func:`find_foreign` has found a language or none; one of few captions is judged
        with others. ``before`` begins what is raised.

        Raises:
            BuildError: its captions are in another language.
        """
        if found is not None and len(captions) >= FEWEST:
            raise BuildError(before + _refuse(found, captions))
        share = measure_english(captions)
        if share is None:
            self._small += captions[: _SAMPLE - len(self._small)]
        elif share < _LEAST_ENGLISH:
            self._few[name] = share

    def report(self) -> None:
        """Warn of what seems not English, in a line.

        Raises:
            BuildError: the small files are in another language.
        """
        found = find_foreign(self._small)
        if found is not None:
            raise BuildError(f"captions in {self._corpus}: {_refuse(found, self._small)}")
        share = measure_english(self._small)
        if share is not None and share < _LEAST_ENGLISH:
            self._few["all its small files" if self._few else ""] = share
        if not self._few:
            return
        shown = ", ".join(
            f"{printable(name)} ({share:.1%})" if name else f"{share:.1%}"
            for name, share in itertools.islice(self._few.items(), _SHOWN)
        )
        more = f" and {len(self._few) - _SHOWN:,} files more" if len(self._few) > _SHOWN else ""
        _log.warning(
            "captions in %s: few of their first words are English function words such as the, of, and, with: %s%s; "
            "English captions have 5%% to 30%%. If they are in another language, leave them out: words are found by an "
            "English tagger and lexicon. Lists of keywords are no concern",
            self._corpus,
            shown,
            more,
        )
        self._few.clear()
        self._small.clear()


def _refuse(found: str, captions: List[str]) -> str:
    return (
        f"its captions seem to be in {found} ({printable(captions[0], 60)!r}). Words are found by an English tagger "
        "and lexicon, which would take its function words for nouns; give captions in English"
    )


def refuse_foreign(captions: Iterable[str], name: str) -> Iterator[str]:
    """The captions, as they come, if their beginning is not of another language.

    Raises:
        BuildError: it is.
    """
    source = iter(captions)
    sample: List[str] = []
    for caption in source:
        sample.append(caption)
        if len(sample) == _SAMPLE:
            break
    found = find_foreign(sample)
    if found is not None:
        raise BuildError(f"{name}: {_refuse(found, sample)}")
    yield from sample
    yield from source
