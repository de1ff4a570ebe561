"""Corpora, streamed: one caption after the other out of files, folders, addresses or standard input.

What cannot be read is counted and the first of it is kept to be shown; a corpus that is mostly damaged is an error.
"""

import hashlib
import io
import itertools
import os
import re
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union, cast

from vqct_plugin._files import printable
from vqct_plugin.building import formats
from vqct_plugin.building.documents import read_document
from vqct_plugin.building.formats import FORMATS, BuildError, Damage, Mended, recognize_format
from vqct_plugin.building.opening import PACKED, TAR, Ahead, DamagedFileError, Watched, is_tar, unpack

STANDARD_INPUT = "-"
_EXTENSIONS = (".txt", ".token", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")  # and these compressed
_SHOWN = 3  # damaged lines kept to be shown
_LOOKED_AT = 100  # captions or damaged lines of each file, before the long work
#: what lies beside captions_*.json in COCO's folder of annotations
_NOT_CAPTIONS = re.compile(r"(instances|person_keypoints|image_info|stuff|panoptic)_.*\.json")

READERS = {**formats.READERS, "coco": read_document}

PathLike = Union[str, "os.PathLike[str]"]


class Captions:
    """A corpus: a file, a folder of files, an address that fsspec opens, or standard input.

    Iterating over it reads it once and gives the captions. After a whole pass ``captions``, ``damaged``, ``mended``,
    ``files`` and ``sha256`` describe what was read. Gzip, bzip2, xz, zstd, UTF-16 and tar are recognized by their first
    bytes. In a folder every caption file below it is read (``.txt .token .json .jsonl .ndjson .csv .tsv .parquet``,
    each also with ``.gz .bz2 .xz .zst``, and ``.tar``), in the order of their names, links to folders followed; other
    files are counted in ``ignored``, among them what COCO's ``annotations/`` has beside its captions. The beginning
    of every file is read when the corpus is opened, so a wrong one is refused before the long work.

    Args:
        path: a path, ``"-"`` for standard input, or an address such as ``s3://bucket/captions.txt``.
        caption_format: one of ``FORMATS``; ``"auto"`` detects it from the first lines and the name.
        field: where captions stand in JSON records (a field in a field as ``"sentences.raw"``), and the column of CSV,
            TSV and Parquet; a number, from 1, for CSV and TSV without a header.

    Raises:
        BuildError: nothing is there, the format is unknown or not what it is said to be, there is no caption, or there
            are more damaged lines than captions.
    """

    def __init__(self, path: PathLike, caption_format: str = "auto", field: str = "caption") -> None:
        if caption_format not in FORMATS:
            raise BuildError(f"caption format {caption_format!r} is not known; expected one of {', '.join(FORMATS)}")
        self._forced, self._field = caption_format, field
        self.name, self._pieces, self.ignored = _pieces(path)
        self._one = len(self._pieces) == 1 and not self._pieces[0].below
        sizes = [piece.size for piece in self._pieces]
        self.size: Optional[int] = None if None in sizes else sum(cast(List[int], sizes))  # bytes
        self._formats: Dict[str, None] = {}  # in the order they were met
        self._form, self._packed = caption_format, False  # of the file being read
        self._start_over()
        if self.name != STANDARD_INPUT:
            for piece in self._pieces:
                self._look_at(piece)
        self._formats.clear()

    def _look_at(self, piece: "_Piece") -> None:
        """Refuse a file that is none of captions."""
        with self._open(piece) as (stream, _, head):
            items = list(itertools.islice(self._items(self._reader(stream, head, piece), piece), _LOOKED_AT))
        if len(items) > 1 and all(isinstance(item, Damage) for item in items):
            first = f"{piece.below or piece.name}: no caption in its first {len(items)} lines or records"
            raise BuildError(
                f"captions in {printable(first)}, read as {self._form}: {printable(items[0])}. Is it a file of "
                "captions? If so, name the field or column (caption_field) or the format (caption_format)"
            )

    def _start_over(self) -> None:
        self.captions = self.damaged = self.mended = self.files = self.bytes_read = 0
        self.first_damaged: List[str] = []
        self.sha256 = ""

    @property
    def format(self) -> str:
        """The formats met so far."""
        return ", ".join(self._formats) or self._forced

    def __iter__(self) -> Iterator[str]:
        self._start_over()
        digests = []
        for piece in self._pieces:
            before = self.bytes_read
            with self._open(piece) as (stream, watched, head):
                where = f"{piece.below}, " if piece.below else ""
                for item in self._items(self._reader(stream, head, piece), piece):
                    self.bytes_read = before + watched.seen
                    if isinstance(item, Damage):
                        self.damaged += 1
                        if len(self.first_damaged) < _SHOWN:
                            self.first_damaged.append(printable(f"{where}{item}", 1000))
                        continue
                    self.captions += 1
                    self.mended += isinstance(item, Mended)
                    yield str(item)
                watched.drain()
            self.bytes_read = before + watched.seen
            self.files += 1
            digests.append((piece.below, watched.digest.hexdigest()))
        self._check_whole()
        self.sha256 = digests[0][1] if self._one else _digest("".join(f"{n}\0{d}\n" for n, d in digests).encode())

    def _items(self, items: Iterator[Union[str, Damage]], piece: "_Piece") -> Iterator[Union[str, Damage]]:
        shown = f"{self.shown_name}/{printable(piece.below)}" if piece.below else self.shown_name
        try:
            yield from items
        except BuildError as error:
            raise BuildError(f"captions in {shown}: {error}") from error
        except DamagedFileError as error:
            kind, _, why = str(error).partition(": ")
            raise BuildError(f"captions in {shown}: {kind} after {self.captions:,} captions: {why}") from error
        except OSError as error:
            raise BuildError(f"captions in {shown} cannot be read: {error}") from error

    def _check_whole(self) -> None:
        if self.damaged > self.captions:
            raise BuildError(
                f"{self.shown_name}: {self.damaged:,} damaged lines, but only {self.captions:,} captions, read as "
                f"{self.format}; name its format with caption_format ({', '.join(FORMATS[1:])}). First: "
                + "; ".join(self.first_damaged)
            )
        if not self.captions:
            raise BuildError(f"{self.shown_name}: no caption in it, read as {self.format}")

    @contextmanager
    def _open(self, piece: "_Piece") -> Iterator[Any]:
        try:
            raw = piece.open()
        except Exception as error:  # a file system of fsspec fails in its own ways
            raise BuildError(f"captions in {printable(piece.name)} cannot be read: {error}") from error
        with raw:
            watched = Watched(raw)
            try:
                stream, head, self._packed = unpack(watched)
            except (BuildError, DamagedFileError) as error:
                raise BuildError(f"captions in {printable(piece.below or piece.name)}: {error}") from error
            except OSError as error:
                raise BuildError(f"captions in {printable(piece.name)} cannot be read: {error}") from error
            yield stream, watched, head

    def _reader(self, stream: BinaryIO, head: bytes, piece: "_Piece") -> Iterator[Union[str, Damage]]:
        if is_tar(head):
            return self._read_tar(stream)
        form = recognize_format(head, piece.name, self._field) if self._forced == "auto" else self._forced
        self._form = form
        self._formats[form] = None
        if form == "parquet":  # read from its end, so it is opened again; the first stream is for the digest
            if self.name == STANDARD_INPUT or self._packed or piece.open is _not_again:
                raise BuildError(
                    "Parquet is read from its end: it has to be a file, and not compressed or in an archive"
                )
            return _reopen(piece, form, self._field)
        return READERS[form](stream, self._field)

    def _read_tar(self, stream: BinaryIO) -> Iterator[Union[str, Damage]]:
        """The captions of an archive's files, those that would be read of a folder, in the archive's order."""
        found = 0
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() and _is_wanted(member.name) else None
                    if file is None:
                        continue
                    found += 1
                    try:
                        inner, head, self._packed = unpack(Ahead(file))
                    except (BuildError, DamagedFileError) as error:
                        raise BuildError(f"{printable(member.name)}: {error}") from error
                    piece = _Piece(Path(member.name).name, member.name, None, _not_again)
                    for item in self._reader(inner, head, piece):
                        yield item._replace(where=f"{member.name}, {item.where}") if isinstance(item, Damage) else item
        except tarfile.TarError as error:
            raise DamagedFileError(f"damaged tar: {error}") from error
        if not found:
            raise BuildError(f"no file in the archive ends in {' '.join(_EXTENSIONS)}")

    @property
    def shown_name(self) -> str:
        """What messages and the prior's record call it: its base name, never where it lay."""
        return "standard input" if self.name == STANDARD_INPUT else printable(self.name)

    def describe(self) -> Dict[str, Union[str, int]]:
        """What a prior records of this corpus."""
        if not self.sha256:
            raise RuntimeError("describe() comes after a whole pass over the captions")
        record: Dict[str, Union[str, int]] = {
            "file": self.shown_name,
            "format": self.format,
            "bytes": self.bytes_read,
            "sha256": self.sha256,
            "captions": self.captions,
            "damaged_lines": self.damaged,
        }
        if not self._one:
            record["files"] = self.files
        return record

    def summary(self) -> List[str]:
        """Lines for people."""
        files = "" if self._one else f" in {self.files:,} files"
        lines = [f"{self.shown_name}: {self.captions:,} captions{files} ({self.format})"]
        if self.ignored:
            lines.append(f"  {self.ignored:,} other files in the folder ignored")
        if self.mended:
            lines.append(f"  {self.mended:,} lines with a space for the tab, read as meant")
        if self.damaged:
            lines.append(f"  {self.damaged:,} damaged lines skipped, the first:")
            lines += [f"    {line}" for line in self.first_damaged]
        return lines


def open_captions(paths: Sequence[PathLike], caption_format: str = "auto", field: str = "caption") -> List[Captions]:
    """All corpora, checked before any is read."""
    if isinstance(paths, (str, os.PathLike)):
        raise BuildError(f"captions are {paths!r}; expected a list of paths")
    if not paths:
        raise BuildError("no captions given; name at least one file or folder")
    if [str(path) for path in paths].count(STANDARD_INPUT) > 1:
        raise BuildError("standard input (-) can be read only once")
    return [Captions(path, caption_format, field) for path in paths]


class _Piece(NamedTuple):
    """One file of a corpus."""

    name: str
    below: str  # its name inside the folder that was given, empty for a file given by itself
    size: Optional[int]  # bytes, if known
    open: Callable[[], BinaryIO]


def _pieces(path: PathLike) -> Tuple[str, List[_Piece], int]:
    """The corpus's name, its files, and how many files beside them are none of captions."""
    if str(path) == STANDARD_INPUT:
        return STANDARD_INPUT, [_Piece(STANDARD_INPUT, "", None, lambda: _without_close(sys.stdin.buffer))], 0
    if "://" in str(path):
        return _pieces_of_address(str(path))
    if not str(path).strip():  # or the folder that one happens to be in would be read
        raise BuildError("captions are an empty name; expected a file or folder")
    place = Path(path)
    try:
        if place.is_file():
            return place.name, [_Piece(place.name, "", place.stat().st_size, lambda: place.open("rb"))], 0
        if not place.is_dir():
            raise BuildError(f"captions in {printable(place)}: it does not exist")
        files = _files_below(place)
    except OSError as error:
        raise BuildError(f"captions in {printable(place)} cannot be read: {error}") from error
    return _of_folder(
        place.resolve().name,
        files,
        lambda below: _Piece(
            Path(below).name, below, (place / below).stat().st_size, lambda: (place / below).open("rb")
        ),
    )


def _pieces_of_address(address: str) -> Tuple[str, List[_Piece], int]:
    try:
        import fsspec
    except ImportError as error:
        raise BuildError(f"{error}; captions at an address need it: pip install 'vqct-plugin[dask]'") from error
    try:
        system, place = fsspec.core.url_to_fs(address)
        name = place.rstrip("/").rsplit("/", 1)[-1]
        if system.isfile(place):
            return name, [_Piece(name, "", system.size(place), lambda: system.open(place, "rb"))], 0
        if not system.isdir(place):
            raise BuildError(f"captions in {address}: it does not exist")
        files = sorted(file[len(place.rstrip("/")) + 1 :] for file in system.find(place))
    except BuildError:
        raise
    except Exception as error:  # each file system fails in its own ways
        raise BuildError(f"captions in {address} cannot be read: {type(error).__name__}: {error}") from error

    def piece(below: str) -> _Piece:
        whole = f"{place.rstrip('/')}/{below}"
        return _Piece(below.rsplit("/", 1)[-1], below, system.size(whole), lambda: system.open(whole, "rb"))

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


def _is_wanted(name: str) -> bool:
    """Whether a file of this name, below a folder, is one of captions."""
    if any(part.startswith(".") and part != "." for part in name.split("/")):
        return False
    name = name.lower()
    if name.endswith(TAR):
        return True
    packing = next((ending for ending in PACKED if name.endswith(ending)), "")
    return name[: len(name) - len(packing)].endswith((*_EXTENSIONS, ".tar"))


def _of_folder(name: str, files: List[str], piece: Callable[[str], _Piece]) -> Tuple[str, List[_Piece], int]:
    files = [file for file in files if not any(part.startswith(".") for part in file.split("/"))]
    wanted = [file for file in files if _is_wanted(file)]
    if any(re.match(r"captions_.*\.json", file.rsplit("/", 1)[-1]) for file in wanted):
        wanted = [file for file in wanted if not _NOT_CAPTIONS.fullmatch(file.rsplit("/", 1)[-1])]
    if not wanted:
        raise BuildError(
            f"captions in the folder {printable(name)}: none of its {len(files):,} files ends in "
            f"{' '.join(_EXTENSIONS)} (or one of these and {' '.join(PACKED)}, or .tar)"
        )
    return name, [piece(file) for file in wanted], len(files) - len(wanted)


def _not_again() -> BinaryIO:
    raise AssertionError("a file in an archive is read once")


def _reopen(piece: _Piece, form: str, field: str) -> Iterator[Union[str, Damage]]:
    with piece.open() as stream:
        yield from READERS[form](stream, field)


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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
