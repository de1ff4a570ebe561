"""Corpora, streamed: one caption after the other out of files, folders, addresses or standard input.

What cannot be read is counted and the first of it is kept to be shown; a corpus that is mostly damaged is an error.
"""

import gzip
import hashlib
import io
import os
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union, cast

from vqct_plugin.building.formats import FORMATS, HEAD, READERS, BuildError, Damage, Mended, recognize_format

STANDARD_INPUT = "-"
_EXTENSIONS = (".txt", ".token", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")  # and these with .gz
_SHOWN = 3  # damaged lines kept to be shown

PathLike = Union[str, "os.PathLike[str]"]


class Captions:
    """A corpus: a file, a folder of files, an address that fsspec opens, or standard input.

    Iterating over it reads it once and gives the captions. After a whole pass ``captions``, ``damaged``, ``mended``,
    ``files`` and ``sha256`` describe what was read. Gzip is recognized by its first bytes. In a folder every caption
    file below it is read (``.txt .token .json .jsonl .ndjson .csv .tsv .parquet``, each also with ``.gz``), in
    the order of their names; other files are counted in ``ignored``.

    Args:
        path: a path, ``"-"`` for standard input, or an address such as ``s3://bucket/captions.txt``.
        caption_format: one of ``FORMATS``; ``"auto"`` detects it from the first lines and the name.
        field: where captions stand in JSON records, and the column of CSV, TSV and Parquet.

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
        if self._one and self.name != STANDARD_INPUT:  # a wrong file is refused before the long work
            with self._open(self._pieces[0]) as (stream, _, head):
                self._start_over()
                next(self._items(self._reader(stream, head, self._pieces[0]), self._pieces[0]), None)
        self._start_over()

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
                            self.first_damaged.append(f"{where}{item}")
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
        shown = f"{self.shown_name}/{piece.below}" if piece.below else self.shown_name
        try:
            yield from items
        except BuildError as error:
            raise BuildError(f"captions in {shown}: {error}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BuildError(f"captions in {shown}: damaged gzip after {self.captions:,} captions: {error}") from error
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
            raise BuildError(f"captions in {piece.name} cannot be read: {error}") from error
        with raw:
            watched = _Watched(raw)
            head = watched.peek(HEAD)
            if head[:2] == b"\x1f\x8b":
                stream = cast(BinaryIO, gzip.GzipFile(fileobj=watched))
                try:
                    head = gzip.GzipFile(fileobj=io.BytesIO(head)).read1(HEAD)
                except (EOFError, zlib.error, OSError) as error:
                    raise BuildError(f"captions in {piece.name}: damaged gzip: {error}") from error
            else:
                stream = cast(BinaryIO, io.BufferedReader(watched, HEAD))
            yield stream, watched, head

    def _reader(self, stream: BinaryIO, head: bytes, piece: "_Piece") -> Iterator[Union[str, Damage]]:
        form = recognize_format(head, piece.name, self._field) if self._forced == "auto" else self._forced
        self._formats[form] = None
        if form == "parquet":  # read from its end, so it is opened again; the first stream is for the digest
            if self.name == STANDARD_INPUT or head[:2] == b"\x1f\x8b":
                raise BuildError("Parquet is read from its end: it has to be a file, and not in gzip")
            return _reopen(piece, form, self._field)
        return READERS[form](stream, self._field)

    @property
    def shown_name(self) -> str:
        """What messages and the prior's record call it: its base name, never where it lay."""
        return "standard input" if self.name == STANDARD_INPUT else self.name

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
        return STANDARD_INPUT, [_Piece(STANDARD_INPUT, "", None, lambda: _unclosed(sys.stdin.buffer))], 0
    if "://" in str(path):
        return _pieces_of_address(str(path))
    if not str(path).strip():  # or the folder that one happens to be in would be read
        raise BuildError("captions are an empty name; expected a file or folder")
    place = Path(path)
    try:
        if place.is_file():
            return place.name, [_Piece(place.name, "", place.stat().st_size, lambda: place.open("rb"))], 0
        if not place.is_dir():
            raise BuildError(f"captions in {place}: it does not exist")
        files = sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())
    except OSError as error:
        raise BuildError(f"captions in {place} cannot be read: {error}") from error
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


def _of_folder(name: str, files: List[str], piece: Callable[[str], _Piece]) -> Tuple[str, List[_Piece], int]:
    files = [file for file in files if not any(part.startswith(".") for part in file.split("/"))]
    wanted = [file for file in files if (file[:-3] if file.endswith(".gz") else file).lower().endswith(_EXTENSIONS)]
    if not wanted:
        raise BuildError(
            f"captions in the folder {name}: none of its {len(files):,} files ends in {' '.join(_EXTENSIONS)} "
            "(or one of these and .gz)"
        )
    return name, [piece(file) for file in wanted], len(files) - len(wanted)


def _reopen(piece: _Piece, form: str, field: str) -> Iterator[Union[str, Damage]]:
    with piece.open() as stream:
        yield from READERS[form](stream, field)


class _Watched(io.RawIOBase):
    """A stream whose bytes are counted and hashed as they pass."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._ahead = raw, b""
        self.seen = 0
        self.digest = hashlib.sha256()

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, or what there is; they are read again afterwards."""
        while len(self._ahead) < size:
            piece = self._raw.read(size - len(self._ahead))
            if not piece:
                break
            self._ahead += piece
        return self._ahead

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        piece = piece or self._raw.read(len(buffer))
        buffer[: len(piece)] = piece
        self.seen += len(piece)
        self.digest.update(piece)
        return len(piece)

    def drain(self) -> None:
        """Read to the end: the digest is of the whole file, also where a reader had no use for its last bytes."""
        while self.read(1 << 20):
            pass


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


def _unclosed(stream: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Unclosed(stream)))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
