"""Class lists as they are published, as a source of words: ``tench, Tinca tinca`` names a tench."""

import json
import re
from pathlib import Path
from typing import Any, List

from vqct_plugin._files import printable
from vqct_plugin.building.captions import PathLike
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.opening import Ahead, DamagedFileError, unpack

_WORD = re.compile(r"(?<![\w-])[^\W\d_]+(?:-[^\W\d_]+)*(?![\w-])")
_LONGEST = 64 << 20  # bytes; the largest lists have a few


def read_classes(path: PathLike) -> List[str]:
    """The words of a list of class names, in lower case, each once, in their order.

    Any list that has the names as text: one class per line with its synonyms (ImageNet's ``tench, Tinca tinca``), with
    identifiers or numbers before it (``n01440764 tench, Tinca tinca``, ``0: 'tench, Tinca tinca',``,
    ``n02119789 1 kit_fox``), or JSON (``{"0": ["n01440764", "tench"]}``). What has a digit is not a word. Which of the
    words are codes is for ``select_named`` to say: WordNet knows no scientific names as common words.

    Raises:
        BuildError: the list cannot be read, or has no word.
    """
    shown = printable(path)
    try:
        with Path(path).open("rb") as file:
            stream, _, _ = unpack(Ahead(file))
            data = stream.read(_LONGEST + 1)
        text = data.decode("utf-8-sig")
    except (BuildError, DamagedFileError) as error:
        raise BuildError(f"the list of classes {shown}: {error}") from error
    except (OSError, ValueError) as error:
        raise BuildError(f"the list of classes {shown} cannot be read: {error}") from error
    if len(data) > _LONGEST:
        raise BuildError(f"the list of classes {shown} is larger than {_LONGEST >> 20} MB; expected names of classes")
    try:
        names = _strings(json.loads(text))
    except (ValueError, RecursionError):
        names = text.splitlines()
    words = [word for name in names for word in _WORD.findall(name.replace("_", " ").lower())]
    if not words:
        raise BuildError(f"the list of classes {shown} has no word in it; expected one class per line, or JSON")
    return list(dict.fromkeys(words))


def _strings(document: Any) -> List[str]:
    """All strings of a JSON document, in their order; keys are names only where their values are no names."""
    found: List[str] = []
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            named = all(isinstance(inner, (int, float)) for inner in value.values())  # {"tench": 0}
            waiting.extend(reversed(list(value if named else value.values())))
        elif isinstance(value, list):
            waiting.extend(reversed(value))
    return found
