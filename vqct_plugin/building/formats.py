"""Caption formats: a stream of bytes in, captions out, and an account of every line or record that is damaged.

A reader yields a caption (``str``), a ``Mended`` one, or a ``Damage``; what to do with that is up to the caller.
Memory does not grow with the stream.
"""

import codecs
import csv
import json
import re
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Union

__all__ = ["BuildError"]

FORMATS = ("auto", "text", "flickr", "coco", "jsonl", "csv", "tsv", "parquet")

# ``image.jpg#0<TAB>caption``. Flickr8k has lines with a space for the tab, which can only be read as meant where the
# image's name holds no space itself.
_FLICKR = re.compile(r"(?:[^\t]*#\d+(?P<tab>\t)|\S+#\d+ )\s*(?P<caption>.*)")
_LONGEST = 1 << 16  # bytes; no caption is that long, and a binary file may have no line end at all
_SAMPLE_LINES = 100  # looked at to tell the formats apart
HEAD = 1 << 16  # bytes looked at
_DELIMITERS = "\t,;|"
_LINES_OF_A_ROW = 20  # of a table, where a quoted caption may run over several


class BuildError(ValueError):
    """A prior cannot be built from what was given."""


class Damage(NamedTuple):
    """A line or record that holds no caption, and why."""

    where: str
    reason: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.where}, {self.reason}: {self.excerpt}"


class Mended(str):
    """A caption read as meant, although its line is not quite what the format says."""

    __slots__ = ()


Caption = Union[str, Damage]
Reader = Callable[[BinaryIO, str], Iterator[Caption]]


def recognize_format(head: bytes, name: str, field: str) -> str:
    """The format of a file that begins with ``head``."""
    if head.startswith(b"PAR1"):
        return "parquet"
    name = name.lower()
    if name.endswith(".gz"):
        name = name[:-3]
    if name.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if re.match(r'\{\s*["}]', text):
        first, _, rest = text.partition("\n")
        record = _record(first)
        return "jsonl" if record is not None and (rest.strip() or field in record) else "coco"
    if re.match(r'\[\s*[{"\]]', text):
        return "coco"
    lines = [line.strip() for line in text.splitlines()[:_SAMPLE_LINES] if line.strip()]
    if not lines:
        return "text"
    if name.endswith(".tsv"):
        return "tsv"
    if name.endswith(".csv") or any(
        len(names) > 1 and field in names for names in (_header(lines[0], delimiter) for delimiter in _DELIMITERS)
    ):
        return "csv"
    flickr = sum(_FLICKR.fullmatch(line) is not None for line in lines)
    return "flickr" if flickr * 2 > len(lines) else "text"


def _record(line: str) -> Optional[Dict[str, Any]]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _header(line: str, delimiter: str) -> List[str]:
    return [name.strip().strip('"').strip() for name in line.split(delimiter)]


def read_text(stream: BinaryIO, field: str = "") -> Iterator[Caption]:
    """A caption a line."""
    for number, line in enumerate(_lines(stream), 1):
        yield from _parse_line(number, line, lambda text: text)


def read_flickr(stream: BinaryIO, field: str = "") -> Iterator[Caption]:
    """``image.jpg#k<TAB>caption`` a line."""
    for number, line in enumerate(_lines(stream), 1):
        yield from _parse_line(number, line, _strip_image)


def _strip_image(text: str) -> str:
    match = _FLICKR.fullmatch(text)
    if match is None:
        raise _DamagedError("no image#k before the caption")
    return match["caption"] if match["tab"] else Mended(match["caption"])


def read_jsonl(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """A JSON object a line, with a caption or a list of captions under ``field``; or a JSON string a line."""
    for number, line in enumerate(_lines(stream), 1):
        try:
            text = _decode(line)
            if not text:
                continue
            captions = _list_captions(json.loads(text), field)
        except _DamagedError as reason:
            yield Damage(f"line {number}", str(reason), repr(line[:60]))
        except (ValueError, RecursionError):
            yield Damage(f"line {number}", "not JSON", repr(line[:60]))
        else:
            yield from _parse_values(f"line {number}", captions)


def read_coco(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """COCO's annotations, ``{"annotations": [{"caption": ...}, ...]}``; or a JSON list of such records or of strings.

    The document is read piece by piece. Undecodable bytes damage the captions that they stand in, no others.
    """
    try:
        import ijson  # a JSON document as a stream: COCO's files have a million captions
    except ImportError as error:
        raise BuildError(f"{error}; reading a JSON document needs it: pip install 'vqct-plugin[prior]'") from error
    document = _Decodable(stream)
    first = document.first()
    records = ijson.items(document, "item" if first == b"[" else "annotations.item")
    number = 0
    try:
        for number, record in enumerate(records, 1):
            try:
                captions = _list_captions(record, field)
            except _DamagedError as reason:
                yield Damage(f"record {number}", str(reason), str(record)[:60])
            else:
                yield from _parse_values(f"record {number}", captions)
    except ijson.JSONError as error:
        raise BuildError(f"no whole JSON document, it breaks off after record {number:,}: {error}") from error
    if not number:
        raise BuildError('a JSON document without captions; expected {"annotations": [...]} as COCO has it, or a list')


def read_csv(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """Comma-separated values with a header that names ``field``; tab, semicolon and bar separate as well."""
    return _read_delimited(stream, field, "")


def read_tsv(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """Tab-separated values with a header that names ``field``."""
    return _read_delimited(stream, field, "\t")


def _read_delimited(stream: BinaryIO, field: str, delimiter: str) -> Iterator[Caption]:
    too_long: List[int] = []  # numbers of lines

    def texts() -> Iterator[str]:
        for number, line in enumerate(_lines(stream), 1):
            if len(line) > _LONGEST:
                too_long.append(number)
                line = b"\n"
            yield line.decode("utf-8", errors="surrogateescape")

    lines = texts()
    header = next(lines, "").lstrip("\ufeff")
    if not delimiter:  # the one that makes the field a column; a comma where none does
        delimiter = next((d for d in _DELIMITERS if d in header and field in _header(header, d)), ",")
    names = [name.strip() for name in next(csv.reader([header.strip("\r\n")], delimiter=delimiter), [])]
    if field not in names:
        raise BuildError(
            f"no column {field!r}; its columns are {', '.join(map(repr, names)) or 'none'}: name one with "
            "caption_field, or pass caption_format='text'"
        )
    column = names.index(field)
    rows = csv.reader(lines, delimiter=delimiter)
    while True:
        first = rows.line_num + 2  # the header was the first line
        where, reason = f"line {first}", ""
        try:
            row = next(rows)
        except StopIteration:
            row, reason = [], "end"
        except csv.Error as error:
            row, reason = [], str(error)
        for number in too_long:
            yield Damage(f"line {number}", f"longer than {_LONGEST} bytes", "")
        too_long.clear()
        if reason == "end":
            return
        used = rows.line_num + 2 - first
        if reason or used > _LINES_OF_A_ROW:  # a quote that is not closed has swallowed the lines after it
            for number in range(first, first + used):
                yield Damage(f"line {number}", reason or f"in a field of {used} lines, from line {first}", "")
            continue
        if not row:
            continue
        if len(row) != len(names):
            yield Damage(where, f"{len(row)} fields under a header of {len(names)}", repr(delimiter.join(row)[:60]))
            continue
        yield from _parse_values(where, [row[column]])


def read_parquet(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """A column of strings, or of lists of strings, of a Parquet file."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise BuildError(f"{error}; reading Parquet needs it: pip install 'vqct-plugin[parquet]'") from error
    try:
        file = parquet.ParquetFile(stream)
        names = list(file.schema_arrow.names)
        if field not in names:
            raise BuildError(
                f"no column {field!r}; its columns are {', '.join(map(repr, names))}: name one with caption_field"
            )
        row = 0
        for batch in file.iter_batches(batch_size=4096, columns=[field]):
            for value in batch.column(0).to_pylist():
                row += 1
                try:
                    captions = _list_captions(value, field)
                except _DamagedError as reason:
                    yield Damage(f"row {row}", str(reason), repr(value)[:60])
                else:
                    yield from _parse_values(f"row {row}", captions)
    except (ArrowInvalid, OSError) as error:
        raise BuildError(f"no whole Parquet file: {error}") from error


READERS: Dict[str, Reader] = {
    "text": read_text,
    "flickr": read_flickr,
    "coco": read_coco,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
}


class _DamagedError(ValueError):
    """Why one line or record is skipped."""


def _list_captions(record: Any, field: str) -> List[Any]:
    """The captions of a record: a string, a list of strings, or a mapping with one of these under ``field``."""
    if isinstance(record, dict):
        if field not in record:
            raise _DamagedError(f"no {field!r} in it")
        record = record[field]
    values = record if isinstance(record, list) else [record]
    for value in values:
        if not isinstance(value, str):
            raise _DamagedError(f"a caption has to be a string, not {type(value).__name__}")
    return values


def _parse_line(number: int, line: bytes, take: Callable[[str], str]) -> Iterable[Caption]:
    try:
        text = _decode(line)
        return [_check_text(take(text))] if text else []
    except _DamagedError as reason:
        return [Damage(f"line {number}", str(reason), repr(line[:60]))]


def _parse_values(where: str, values: Iterable[str]) -> Iterator[Caption]:
    for value in values:
        try:
            if any("\udc80" <= character <= "\udcff" for character in value):
                raise _DamagedError("not UTF-8")
            if len(value) > _LONGEST:
                raise _DamagedError(f"longer than {_LONGEST} characters")
            caption = " ".join(value.split())
            if caption:
                yield _check_text(caption)
        except _DamagedError as reason:
            yield Damage(where, str(reason), repr(value[:60]))


def _decode(line: bytes) -> str:
    if len(line) > _LONGEST:
        raise _DamagedError(f"longer than {_LONGEST} bytes")
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise _DamagedError(f"not UTF-8 at byte {error.start}") from error


def _check_text(text: str) -> str:
    if any(character < " " and character != "\t" for character in text):
        raise _DamagedError("control characters")
    if "\ufffd" in text:
        raise _DamagedError("undecodable bytes")
    if not any(map(str.isalpha, text)):
        raise _DamagedError("no letter in the caption")
    return text


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines, of which an overlong one comes cut short."""
    while True:
        line = stream.readline(_LONGEST + 1)
        if not line:
            return
        rest = line
        while len(rest) > _LONGEST and not rest.endswith(b"\n"):
            rest = stream.readline(_LONGEST + 1)
        yield line


class _Decodable:
    """A stream whose undecodable bytes are replaced, for a parser that would stop at the first."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._kept = b""

    def first(self) -> bytes:
        """The first character of the document that is not a space."""
        while not self._kept.strip():
            piece = self._next(1 << 16)
            if not piece:
                return b""
            self._kept += piece
        return self._kept.strip()[:1]

    def read(self, size: int = -1) -> bytes:
        if size == 0:  # ijson asks so what kind of stream this is
            return b""
        kept, self._kept = self._kept, b""
        return kept or self._next(size)

    def _next(self, size: int) -> bytes:
        while True:
            piece = self._stream.read(size)
            text = self._decoder.decode(piece, final=not piece).encode()
            if text or not piece:
                return text
