"""What the beginning of a file tells of it: whether it holds captions, and whether another file holds the same ones."""

import re
from collections import Counter
from typing import Dict, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from vqct_plugin.building.formats import Caption, Damage

#: captions or damaged lines of each file that are looked at
LOOKED_AT = 100
#: lines of a file with image#k before its captions whose images are looked at, which takes a second
IDENTIFIED = 200_000
_MOST = 0.5  # of what was looked at, that is no caption, in a file of none
_IMAGE = re.compile(r"(?i)\S+\.(jpe?g|jpe|png|gif|bmp|tiff?|webp|ppm|mat|npy)|.*[/\\].*\.(jpe?g|png)")
_NO_WORD = re.compile(r"[\d@=\\]|::|\w\.\w")  # in a number, a path, an identifier or an address
_ABOUT = re.compile(
    r"(?i)https?://|\bwww\.|\b[\w.-]+\.(txt|json|csv|tsv|zip|tar|gz|mat|html|jpe?g|png)\b|\b(licen[cs]ed?|copyright|"
    r"citation|cite|citing|dataset|data ?sets?|corpus|annotations?|captions?|readme)\b"
)
_SHARE_ABOUT, _LINES_ABOUT = 0.25, 3  # lines that speak of files, addresses and data
#: captions that make two files the same; a few are soon alike
FEWEST = 10
_SAME = 0.8  # of the captions of two files, that are in both
_REWRITTEN = re.compile(r"(?i)lemma|stem|token(iz|is)ed")  # the captions as someone's tool left them


class Flaw(NamedTuple):
    """Why a file is none of captions."""

    what: str
    is_plain: bool  # nobody means it to be one, so among others it can be passed over


def find_flaw(items: Sequence[Caption], form: str, is_sure: bool = False) -> Optional[Flaw]:
    """What a file holds in place of captions, of which these are the first in this format; ``None`` if it has some.

    Prose is told from captions only where it is not sure that a file has captions.

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
        images = sum(_IMAGE.fullmatch(caption) is not None for caption in without_words)
        what = "names of images" if images > _MOST * len(items) else "names and numbers"
        return Flaw(what if without_words else "numbers", form == "text")
    if not captions:
        return Flaw("", False)
    about = sum(_ABOUT.search(caption) is not None for caption in captions)
    if form == "text" and not is_sure and about >= max(_LINES_ABOUT, _SHARE_ABOUT * len(captions)):
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
    keys: FrozenSet[int]  # of its first captions
    ids: FrozenSet[int]  # of the image#k before its captions, all of them
    order: Tuple[bool, bool, int]  # the file that comes first stays, of several with the same captions


def make_head(name: str, items: Iterable[Caption], ids: Iterable[int], packed: bool, size: Optional[int]) -> Head:
    """The head of a file called so, with these first captions."""
    captions = (" ".join(re.findall(r"\w+", item.lower())) for item in items if not isinstance(item, Damage))
    order = (_REWRITTEN.search(name.rsplit("/", 1)[-1]) is not None, packed, -(size or 0))
    return Head(name, frozenset(map(hash, captions)), frozenset(ids), order)


def find_repeats(heads: Sequence[Head]) -> Iterator[Tuple[int, int]]:
    """Pairs (i, j): the file i has captions that the file j has too, nearly all of them."""
    order = sorted(range(len(heads)), key=lambda i: heads[i].order)
    owner: Dict[int, int] = {}  # of a first caption
    owner_of_id: Dict[int, int] = {}
    identified = sum(bool(head.ids) for head in heads) > 1
    by_ids = sorted(order, key=lambda i: (heads[i].order[0], -len(heads[i].ids)))  # a part comes after the whole
    repeated: Set[int] = set()
    for i in order:
        keys = heads[i].keys
        other = _commonest(owner[key] for key in keys if key in owner)
        if other is not None and len(keys) >= FEWEST:
            both = len(keys & heads[other].keys)
            if both >= _SAME * max(len(keys), len(heads[other].keys)):
                repeated.add(i)
                yield i, other
                continue
        for key in keys:
            owner.setdefault(key, i)
    for i in by_ids if identified else []:
        ids = heads[i].ids
        if i in repeated or len(ids) < FEWEST:
            continue
        other = _commonest(owner_of_id[key] for key in ids if key in owner_of_id)
        if other is not None and len(ids & heads[other].ids) >= _SAME * len(ids):
            yield i, other
            continue
        for key in ids:
            owner_of_id.setdefault(key, i)


def _commonest(found: Iterator[int]) -> Optional[int]:
    counts: List[Tuple[int, int]] = Counter(found).most_common(1)
    return counts[0][0] if counts else None
