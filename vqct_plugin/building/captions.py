"""Corpora, streamed: one caption after the other out of files, folders, addresses or standard input.

What cannot be read is counted and the first of it is kept to be shown; a corpus that is mostly damaged is an error.
"""

import hashlib
import itertools
import logging
import os
import tarfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union, cast

from vqct_plugin._files import printable
from vqct_plugin.building import formats
from vqct_plugin.building.documents import read_document
from vqct_plugin.building.formats import FORMATS, BuildError, Caption, Damage, Mended, recognize_format
from vqct_plugin.building.heads import (
    FEWEST,
    IDENTIFIED,
    LOOKED_AT,
    LOOKED_AT_MORE,
    Flaw,
    Head,
    find_flaw,
    find_repeats,
    make_head,
)
from vqct_plugin.building.languages import LanguageCheck, find_foreign
from vqct_plugin.building.opening import Ahead, DamagedFileError, Watched, is_tar, unpack
from vqct_plugin.building.places import (
    EXTENSIONS,
    STANDARD_INPUT,
    PathLike,
    Piece,
    describe_passed_over,
    find_pieces,
    is_beside_captions,
    is_wanted,
    not_again,
    tell_by_name,
)

_SHOWN = 3  # damaged lines kept to be shown
_log = logging.getLogger(__name__)

READERS = {**formats.READERS, "coco": read_document}


class _Part(NamedTuple):
    """A file of captions, or one in an archive, being read."""

    member: str  # its name in the archive, empty for a file by itself
    size: Optional[int]
    items: Iterator[Caption]
    form: str
    packed: bool
    ids: Optional[Set[int]]  # of the images, as they are read, where the format has them; only while looking


class Captions:
    """A corpus: a file, a folder of files, an address that fsspec opens, or standard input.

    Iterating over it reads it once and gives the captions. After a whole pass ``captions``, ``damaged``, ``mended``,
    ``files`` and ``sha256`` describe what was read. Gzip, bzip2, xz, zstd, UTF-16 and tar are recognized by their first
    bytes. In a folder every caption file below it is read (``.txt .token .json .jsonl .ndjson .csv .tsv .parquet``,
    each also with ``.gz .bz2 .xz .zst``, and ``.tar``), in the order of their names, links to folders followed; other
    files are counted in ``ignored``. The beginning of every file, of those in an archive too, is read when the corpus
    is opened: one that is none of captions, or of another language, is refused before the long work. Among other files
    are passed over, named in ``passed_over``: lists of images, of numbers, and a ``readme.txt``; what COCO's
    ``annotations/`` has beside its captions; and captions of the same images that a tool rewrote, by their name.
    Standard input is looked at as it comes.

    Args:
        path: a path, ``"-"`` for standard input, or an address such as ``s3://bucket/captions.txt``.
        caption_format: one of ``FORMATS``; ``"auto"`` detects it from the first lines and the name.
        field: where captions stand in JSON records (a field in a field as ``"sentences.raw"``), and the column of CSV,
            TSV and Parquet; a number, from 1, for CSV and TSV without a header.

    Raises:
        BuildError: nothing is there, the format is unknown or not what it is said to be, there is no caption, there are
            more damaged lines than captions, or they are in another language.
    """

    def __init__(self, path: PathLike, caption_format: str = "auto", field: str = "caption") -> None:
        if caption_format not in FORMATS:
            raise BuildError(f"caption format {caption_format!r} is not known; expected one of {', '.join(FORMATS)}")
        self._forced, self._field = caption_format, field
        found = find_pieces(path)
        self.name, self._pieces, self.passed_over = found.name, found.pieces, dict(found.passed_over)
        self.ignored = found.others + len(self.passed_over)
        self._one = len(self._pieces) == 1 and not self._pieces[0].below
        self._formats: Dict[str, None] = {}  # in the order they were met
        self._packed = False  # the file being read
        self._is_looking = True  # and not yet reading
        self._start_over()
        self._language = LanguageCheck(self.shown_name)
        self.heads: List[Head] = []  # of the files that are read, for open_captions
        if self.name != STANDARD_INPUT:
            self._look()
        sizes = [piece.size for piece in self._pieces]
        self.size: Optional[int] = None if None in sizes else sum(cast(List[int], sizes))  # bytes
        self._formats.clear()
        self._is_looking = False

    def _look(self) -> None:
        """Refuse what is none of captions, by the beginnings of all files; pass over what plainly is none."""
        heads = []
        remain = 0
        for piece in self._pieces:
            with self._open(piece) as (stream, _, head), self._explain(piece), self._seekable(piece, head) as archive:
                for part in self._parts(archive or stream, head, piece):
                    name = _join(piece.below, part.member)
                    items, what = self._look_at(name, part)
                    if part.form == "flickr":
                        for _ in itertools.islice(part.items, IDENTIFIED):  # for the ids alone
                            pass
                    if what:
                        self._pass_over(name, what)
                        continue
                    remain += 1
                    if len(items) >= FEWEST:  # or a million small files of an archive would take memory
                        heads.append(make_head(name or piece.name, items, part.ids or ()))
        for repeat in find_repeats(heads):
            if repeat.is_sure:
                again, first = heads[repeat.again].name, heads[repeat.first].name
                self._pass_over(again, f"the captions of {printable(first)} again")
        self.heads = [head for head in heads if head.name not in self.passed_over]
        if self.passed_over and not remain:
            raise BuildError(f"captions in {self.shown_name}: none in it, but {describe_passed_over(self.passed_over)}")
        if self.passed_over:
            _log.info("captions in %s: passed over %s", self.shown_name, describe_passed_over(self.passed_over))
        self._pieces = [piece for piece in self._pieces if piece.below not in self.passed_over]
        self._language.report()

    @contextmanager
    def _seekable(self, piece: Piece, head: bytes) -> Iterator[Optional[BinaryIO]]:
        """An archive that is not compressed, opened once more: its files need not be read to their ends."""
        if not is_tar(head) or self._packed:
            yield None
            return
        with piece.open() as stream:
            yield stream if stream.seekable() else None

    def _pass_over(self, name: str, what: str) -> None:
        self.passed_over[name] = what
        self.ignored += 1

    def _look_at(self, name: str, part: _Part) -> Tuple[List[Caption], str]:
        """The beginning of a file, more of it where that is none of captions or of another language; and what it holds
        that is to be passed over, if anything. Refuses one that is none of captions."""
        items = list(itertools.islice(part.items, LOOKED_AT))
        flaw, captions, foreign = self._doubt(items, name, part.form)
        if flaw or foreign:
            items += itertools.islice(part.items, LOOKED_AT_MORE)
            flaw, captions, foreign = self._doubt(items, name, part.form)
        before = f"{printable(part.member)}: " if part.member else ""
        if flaw is not None:
            if name and (flaw.is_plain or (not flaw.what and is_beside_captions(name))):
                return items, flaw.what or "no captions"
            what = f"no captions but {flaw.what}" if flaw.what else "no caption"
            raise BuildError(
                f"{before}{what} in its first {len(items)} lines or records, read as {part.form}: "
                f"{printable(items[0], 200)}. Is it a file of captions? If so, name the field or column "
                "(caption_field) or the format (caption_format)"
            )
        self._language.judge(name, before, captions, foreign)
        return items, ""

    def _doubt(self, items: List[Caption], name: str, form: str) -> Tuple[Optional[Flaw], List[str], Optional[str]]:
        flaw = find_flaw(items, form, is_sure=self._forced != "auto", is_alone=not name)
        captions = [str(item) for item in items if not isinstance(item, Damage)]
        return flaw, captions, find_foreign(captions)

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
            with self._open(piece) as (stream, watched, head), self._explain(piece):
                for part in self._parts(stream, head, piece):
                    name, items = _join(piece.below, part.member), part.items
                    if self.name == STANDARD_INPUT:
                        first, what = self._look_at(name, part)
                        if what:
                            self._pass_over(name, what)
                        items = itertools.chain(first, items)
                    if name in self.passed_over:
                        continue
                    for item in items:
                        self.bytes_read = before + watched.seen
                        if isinstance(item, Damage):
                            self.damaged += 1
                            if len(self.first_damaged) < _SHOWN:
                                self.first_damaged.append(printable(f"{name}, {item}" if name else item, 1000))
                            continue
                        self.captions += 1
                        self.mended += isinstance(item, Mended)
                        yield str(item)
                watched.drain()
            self.bytes_read = before + watched.seen
            self.files += 1
            digests.append((piece.below, watched.digest.hexdigest()))
        if self.name == STANDARD_INPUT:
            self._language.report()
        self._check_whole()
        self.sha256 = digests[0][1] if self._one else _digest("".join(f"{n}\0{d}\n" for n, d in digests).encode())

    @contextmanager
    def _explain(self, piece: Piece) -> Iterator[None]:
        shown = f"{self.shown_name}/{printable(piece.below)}" if piece.below else self.shown_name
        try:
            yield
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
    def _open(self, piece: Piece) -> Iterator[Any]:
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

    def _parts(self, stream: BinaryIO, head: bytes, piece: Piece, above: str = "") -> Iterator[_Part]:
        """The file, or each of an archive's that would be read of a folder, in the archive's order."""
        if not is_tar(head):
            yield self._reader(stream, head, piece, above)
            return
        found = 0
        try:
            with tarfile.open(fileobj=stream, mode="r:" if stream.seekable() else "r|") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() and is_wanted(member.name) else None
                    if file is None:
                        continue
                    found += 1
                    name = _join(above, member.name)
                    what = tell_by_name(name)
                    if what:
                        if _join(piece.below, name) not in self.passed_over:
                            self._pass_over(_join(piece.below, name), what)
                        continue
                    try:
                        inner, its_head, self._packed = unpack(Ahead(file))
                    except (BuildError, DamagedFileError) as error:
                        raise BuildError(f"{printable(name)}: {error}") from error
                    inside = Piece(Path(name).name, piece.below, member.size, not_again)
                    yield from self._parts(inner, its_head, inside, name)
        except tarfile.TarError as error:
            raise DamagedFileError(f"damaged tar: {error}") from error
        if not found:
            raise BuildError(f"no file in the archive ends in {' '.join(EXTENSIONS)}")

    def _reader(self, stream: BinaryIO, head: bytes, piece: Piece, member: str) -> _Part:
        form = recognize_format(head, piece.name, self._field) if self._forced == "auto" else self._forced
        self._formats[form] = None
        ids: Optional[Set[int]] = set() if self._is_looking else None
        if form == "parquet":  # read from its end, so it is opened again; the first stream is for the digest
            if self.name == STANDARD_INPUT or self._packed or piece.open is not_again:
                raise BuildError(
                    "Parquet is read from its end: it has to be a file, and not compressed or in an archive"
                )
            items = _reopen(piece, form, self._field)
        elif form == "flickr":
            items = formats.read_flickr(stream, ids=ids)
        else:
            items = READERS[form](stream, self._field)
        if member:
            items = _name_member(items, member)
        return _Part(member, piece.size, items, form, self._packed, ids)

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
        if self.passed_over:
            record["passed_over"] = len(self.passed_over)
        return record

    def summary(self) -> List[str]:
        """Lines for people."""
        files = "" if self._one else f" in {self.files:,} files"
        lines = [f"{self.shown_name}: {self.captions:,} captions{files} ({self.format})"]
        if self.ignored:
            named = describe_passed_over(
                self.passed_over, ", among them " if self.ignored > len(self.passed_over) else ": "
            )
            where = "archive" if self._one else "folder"
            lines.append(f"  {self.ignored:,} other files in the {where} ignored{named}")
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
    corpora = [Captions(path, caption_format, field) for path in paths]
    heads = [(corpus, head) for corpus in corpora for head in corpus.heads]
    for repeat in find_repeats([head for _, head in heads]):
        a, b = (
            corpus.shown_name if head.name == corpus.name else f"{corpus.shown_name}/{printable(head.name)}"
            for corpus, head in (heads[repeat.first], heads[repeat.again])
        )
        _log.warning(
            "captions in %s and %s begin alike. If they are the same, each is counted twice: leave one out", a, b
        )
    for corpus in corpora:
        corpus.heads.clear()
    return corpora


def _name_member(items: Iterator[Caption], member: str) -> Iterator[Caption]:
    try:
        yield from items
    except BuildError as error:
        raise BuildError(f"{printable(member)}: {error}") from error


def _join(above: str, name: str) -> str:
    return f"{above}/{name}" if above and name else above or name


def _reopen(piece: Piece, form: str, field: str) -> Iterator[Caption]:
    with piece.open() as stream:
        yield from READERS[form](stream, field)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
