"""What the beginning of a file tells of it: whether it holds captions, and whether another file holds the same ones."""

import re
from collections import Counter
from typing import Dict, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from vqct_plugin.building.formats import Caption, Damage

#: captions or damaged lines of each file that are looked at; and further ones, where the first are none of captions
LOOKED_AT, LOOKED_AT_MORE = 100, 2000
#: lines of a file with image#k before its captions whose images are looked at, which takes a second
IDENTIFIED = 200_000
_MOST = 0.5  # of what was looked at, that is no caption, in a file of none
_IMAGE = re.compile(r"(?i)\S+\.(jpe?g|jpe|png|gif|bmp|tiff?|webp|ppm|mat|npy)|.*[/\\].*\.(jpe?g|png)")
_NO_WORD = re.compile(r"[\d@=\\]|::|\w\.\w")  # in a number, a path, an identifier or an address
_ABOUT = re.compile(
    r"(?i)https?://|\b[\w.-]+\.(txt|json|csv|tsv|zip|tar|gz|mat|html)\b|\b(licen[cs]ed?(?! plate)|copyright|citation|"
    r"cite|citing|dataset|data ?sets?|corpus|readme)\b"
)
_SHARE_ABOUT, _LINES_ABOUT = 0.6, 5  # of lines that speak of files, addresses and data, in so many
#: captions that say something of a file; a few are soon alike
FEWEST = 10
_SAME = 0.8  # of the beginnings of two files, or of their images, that are in both
_RUN = 3  # captions in a row: single ones, such as "a photo of a cat", are in files that differ
#: the captions as someone's tool left them
_REWRITTEN = re.compile(r"(?i)(?<![a-z])(lemma\w*|stem(s|med|ming)?|token(iz|is)ed)(?![a-z])")


class Flaw(NamedTuple):
    """Why a file is none of captions."""

    what: str
    is_plain: bool  # nobody means it to be one, so among others it can be passed over


def find_flaw(items: Sequence[Caption], form: str, is_sure: bool = False, is_alone: bool = False) -> Optional[Flaw]:
    """What a file holds in place of captions, of which these are the first in this format; ``None`` if it has some.

    Prose is told from captions only where it is not sure that a file has captions; and who names one file alone and is
    sure of it knows what its names and numbers are.

    >>> find_flaw(["1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg"], "text")
    Flaw(what='names of images', is_plain=True)
    >>> find_flaw(["A dog .", "1001773457_577c3a7d70.jpg", "A cat ."], "text")
    """
    if len(items) < 2:
        return None
    captions = [item for item in items if not isinstance(item, Damage)]
    without_letters = sum(isinstance(item, Damage) and item.reason == "no letter in the caption" for item in items)
    without_words = [caption for caption in captions if not _has_word(caption)]
    if len(without_words) + without_letters > _MOST * len(items):
        if without_words and is_sure and is_alone:
            return None
        images = sum(_IMAGE.fullmatch(caption) is not None for caption in without_words)
        what = "names of images" if images > _MOST * len(items) else "names and numbers"
        return Flaw(what if without_words else "numbers", form == "text")
    if not captions:
        return Flaw("", False)
    about = sum(_ABOUT.search(caption) is not None for caption in captions)
    if form == "text" and not is_sure and len(captions) >= _LINES_ABOUT and about > _SHARE_ABOUT * len(captions):
        return Flaw("prose about files and data", False)
    return None


def _has_word(caption: str) -> bool:
    tokens = (token.strip(".,:!?\"'") for token in re.split(r"[\s,;|()\[\]]+", caption))
    if _IMAGE.fullmatch(caption):
        return False
    return any(any(map(str.isalpha, token)) and not _NO_WORD.search(token) for token in tokens)


class Head(NamedTuple):
    """What is kept of a file's beginning, to compare it with others'."""

    name: str
    runs: FrozenSet[int]  # of its first captions, some in a row
    ids: FrozenSet[int]  # of the image#k before its captions, all of them
    is_rewritten: bool  # by its name


class Repeat(NamedTuple):
    """Two files that seem to hold the same captions, by their places among the heads."""

    again: int
    first: int
    is_sure: bool  # the second is a rewritten form of the first, by its name too


def make_head(name: str, items: Iterable[Caption], ids: Iterable[int]) -> Head:
    """The head of a file called so, with these first captions."""
    captions = [" ".join(re.findall(r"\w+", item.lower())) for item in items if not isinstance(item, Damage)]
    runs = zip(*(captions[i:] for i in range(_RUN)))
    is_rewritten = _REWRITTEN.search(name.rsplit("/", 1)[-1]) is not None
    return Head(name, frozenset(map(hash, runs)), frozenset(ids), is_rewritten)


def find_repeats(heads: Sequence[Head]) -> Iterator[Repeat]:
    """Files that begin as another one does, and rewritten ones of the same images.

    Beginnings are no proof, and equal images are none either: an excerpt begins as the whole does, and two people
    describe the same image. So only a file that is rewritten by its name is surely a repeat.
    """
    owner: Dict[int, int] = {}  # of a run, and of an image
    for i in sorted(range(len(heads)), key=lambda i: heads[i].is_rewritten):
        head = heads[i]
        for keys, has_to_be_rewritten in ((head.runs, False), (head.ids, True)):
            other = _commonest(owner[key] for key in keys if key in owner)
            if other is None or heads[other].name == head.name or len(keys) < FEWEST - _RUN + 1:
                continue
            theirs = heads[other].ids if has_to_be_rewritten else heads[other].runs
            is_sure = head.is_rewritten and not heads[other].is_rewritten
            if len(keys & theirs) >= _SAME * len(keys) and (is_sure or not has_to_be_rewritten):
                yield Repeat(i, other, is_sure)
                break
        for key in (*head.runs, *head.ids):
            owner.setdefault(key, i)


def _commonest(found: Iterator[int]) -> Optional[int]:
    counts: List[Tuple[int, int]] = Counter(found).most_common(1)
    return counts[0][0] if counts else None
