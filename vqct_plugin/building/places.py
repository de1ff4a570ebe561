"""Where captions are: a file, the files of a folder, an address that fsspec opens, or standard input."""

import io
import os
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, NamedTuple, Optional, Union, cast

from vqct_plugin._files import printable
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.opening import PACKED, TAR

STANDARD_INPUT = "-"
EXTENSIONS = (".txt", ".token", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")  # and these compressed
_SHOWN = 8  # files passed over that are named
#: what lies beside captions_*.json in COCO's folder of annotations
_BESIDE = re.compile(r"(instances|person_keypoints|image_info|stuff|panoptic)_.*\.json")
_ABOUT = re.compile(
    r"(?i)((read[-_ ]?me|requirements|changelog)([-_. ].*)?|licen[cs]e([-_.](mit|apache|bsd|cc|gpl|en).*)?|"
    r"copying|notice|citation|manifest|(md5|sha\d+)sums?)\.txt"
)

PathLike = Union[str, "os.PathLike[str]"]


class Piece(NamedTuple):
    """One file of a corpus."""

    name: str
    below: str  # its name inside the folder that was given, empty for a file given by itself
    size: Optional[int]  # bytes, if known
    open: Callable[[], BinaryIO]


class Found(NamedTuple):
    """What is at a place."""

    name: str
    pieces: List[Piece]  # the files to read
    passed_over: Dict[str, str]  # the files that their names tell to hold no captions, and what they hold
    others: int = 0  # files of other kinds


def find_pieces(path: PathLike) -> Found:
    """The corpus's name and its files.

    Raises:
        BuildError: nothing is there, it cannot be read, or no file of a folder may hold captions.
    """
    if str(path) == STANDARD_INPUT:
        return Found(STANDARD_INPUT, [Piece(STANDARD_INPUT, "", None, lambda: _without_close(sys.stdin.buffer))], {})
    if "://" in str(path):
        return _pieces_of_address(str(path))
    if not str(path).strip():  # or the folder that one happens to be in would be read
        raise BuildError("captions are an empty name; expected a file or folder")
    place = Path(path)
    try:
        if place.is_file():
            return Found(place.name, [Piece(place.name, "", place.stat().st_size, lambda: place.open("rb"))], {})
        if not place.is_dir():
            raise BuildError(f"captions in {printable(place)}: it does not exist")
        files = _files_below(place)
    except OSError as error:
        raise BuildError(f"captions in {printable(place)} cannot be read: {error}") from error
    return _of_folder(
        place.resolve().name,
        files,
        lambda below: Piece(
            Path(below).name, below, (place / below).stat().st_size, lambda: (place / below).open("rb")
        ),
    )


def _pieces_of_address(address: str) -> Found:
    try:
        import fsspec
    except ImportError as error:
        raise BuildError(f"{error}; captions at an address need it: pip install 'vqct-plugin[dask]'") from error
    try:
        system, place = fsspec.core.url_to_fs(address)
        name = place.rstrip("/").rsplit("/", 1)[-1]
        if system.isfile(place):
            return Found(name, [Piece(name, "", system.size(place), lambda: system.open(place, "rb"))], {})
        if not system.isdir(place):
            raise BuildError(f"captions in {address}: it does not exist")
        files = sorted(file[len(place.rstrip("/")) + 1 :] for file in system.find(place))
    except BuildError:
        raise
    except Exception as error:  # each file system fails in its own ways
        raise BuildError(f"captions in {address} cannot be read: {type(error).__name__}: {error}") from error

    def piece(below: str) -> Piece:
        whole = f"{place.rstrip('/')}/{below}"
        return Piece(below.rsplit("/", 1)[-1], below, system.size(whole), lambda: system.open(whole, "rb"))

    return _of_folder(name, files, piece)


def _files_below(folder: Path) -> List[str]:
    """The names of the files below a folder, in order; links to folders are followed, and no folder is read twice."""
    found: List[str] = []
    seen = {os.path.realpath(str(folder))}
    for place, folders, files in os.walk(str(folder), followlinks=True):
        beside = Path(place)
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(str(beside / name))
            if real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        found += [(beside / name).relative_to(folder).as_posix() for name in files if (beside / name).is_file()]
    return sorted(found)


def is_wanted(name: str) -> bool:
    """Whether a file of this name, below a folder, is one of captions."""
    if any(part.startswith(".") and part != "." for part in name.split("/")):
        return False
    name = name.lower()
    if name.endswith(TAR):
        return True
    packing = next((ending for ending in PACKED if name.endswith(ending)), "")
    return name[: len(name) - len(packing)].endswith((*EXTENSIONS, ".tar"))


def tell_by_name(name: str) -> str:
    """What a text file of this name, below a folder or in an archive, holds in place of captions; else nothing."""
    base = name.rsplit("/", 1)[-1]
    return "about the data" if _ABOUT.fullmatch(base) else ""


def is_beside_captions(name: str) -> bool:
    """Whether it is called as what COCO's folder of annotations has beside its captions."""
    return _BESIDE.fullmatch(name.rsplit("/", 1)[-1]) is not None


def _of_folder(name: str, files: List[str], piece: Callable[[str], Piece]) -> Found:
    files = [file for file in files if not any(part.startswith(".") for part in file.split("/"))]
    wanted = [file for file in files if is_wanted(file)]
    others = len(files) - len(wanted)
    passed_over = {file: tell_by_name(file) for file in wanted if tell_by_name(file)}
    if any(re.match(r"captions_.*\.json", file.rsplit("/", 1)[-1]) for file in wanted):
        passed_over.update({file: "no captions" for file in wanted if is_beside_captions(file)})
    wanted = [file for file in wanted if file not in passed_over]
    if not wanted:
        raise BuildError(
            f"captions in the folder {printable(name)}: none of its {len(files):,} files ends in "
            f"{' '.join(EXTENSIONS)} (or one of these and {' '.join(PACKED)}, or .tar)"
            + describe_passed_over(passed_over, ", except ")
        )
    return Found(name, [piece(file) for file in wanted], passed_over, others)


def describe_passed_over(passed_over: Dict[str, str], before: str = "") -> str:
    """The files and what they hold, in a line."""
    shown = [f"{printable(name)} ({what})" for name, what in sorted(passed_over.items())[:_SHOWN]]
    more = f" and {len(passed_over) - _SHOWN:,} more" if len(passed_over) > _SHOWN else ""
    return f"{before}{', '.join(shown)}{more}" if shown else ""


def not_again() -> BinaryIO:
    raise AssertionError("a file in an archive is read once")


class _Unclosed(io.RawIOBase):
    """A stream that a ``with`` block does not close."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _without_close(stream: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Unclosed(stream)))
