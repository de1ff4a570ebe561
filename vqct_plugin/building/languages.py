"""Which language captions are in, by their commonest words.

The tagger, the lemmatizer and WordNet know English only.
"""

from collections import Counter
from typing import Dict, FrozenSet, Iterable, Iterator, List, Optional

from vqct_plugin.building.formats import BuildError

#: the commonest words of each language's sentences that the others' do not have so often
_COMMONEST = {
    "English": "a the of and is are with on in at to from by an its two his her there their while that for it next",
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
_SAMPLE = 1000  # captions
_ENOUGH = 60  # words; of fewer nothing is said
_SHARE = 0.12  # of words that are a language's commonest: English captions have 0.3 to 0.5, lists of keywords none
_DISTINCT = 4  # of these words: one may be a part of a name that is in every caption
_OTHER_LETTERS = 0.3  # of letters beyond Latin's


def find_foreign(captions: Iterable[str]) -> Optional[str]:
    """What these captions are in, if it is not English; ``None`` if it is, or if it cannot be told.

    >>> find_foreign(["Ein Hund steht auf der Wiese und eine Katze sitzt vor dem Haus ."] * 9)
    'German'
    >>> find_foreign(["A dog stands on the grass and a cat sits in front of the house ."] * 9)
    """
    seen: Dict[str, Counter[str]] = {language: Counter() for language in _WORDS}
    letters = beyond = words = 0
    for caption in captions:
        of_caption = [letter for letter in caption if letter.isalpha()]
        letters += len(of_caption)
        beyond += sum(letter > "\u024f" for letter in of_caption)
        for word in caption.lower().split():
            word = word.strip(".,;:!?\"'()")
            words += word.isalpha()
            for language, known in _WORDS.items():
                if word in known:
                    seen[language][word] += 1
    if letters >= _ENOUGH and beyond > _OTHER_LETTERS * letters:
        return "another script"
    if words < _ENOUGH:
        return None
    totals = {language: sum(counts.values()) for language, counts in seen.items()}
    language = max(totals, key=lambda name: totals[name])
    if totals[language] < _SHARE * words or totals[language] < 1.5 * totals["English"]:
        return None
    return language if len(seen[language]) >= _DISTINCT else None


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
        raise BuildError(
            f"{name}: its captions seem to be in {found} ({sample[0][:60]!r}). Words are found by an English tagger "
            "and lexicon, which would take its function words for nouns; give captions in English"
        )
    yield from sample
    yield from source
