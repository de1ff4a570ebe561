"""Caption formats: a stream of bytes in, captions out, and an account of every line or record that is damaged.

A reader yields a caption (``str``), a ``Mended`` one, or a ``Damage``; what to do with that is up to the caller.
Memory does not grow with the stream.
"""

import csv
import itertools
import json
import re
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Union

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


class DamagedError(ValueError):
    """Why one line or record is skipped."""


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
    name = re.sub(r"\.(gz|bz2|xz|zst)$", "", name)
    if name.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if re.match(r'\{\s*["}]', text):
        first, _, rest = text.partition("\n")
        record = _record(first)
        return "jsonl" if record is not None and (rest.strip() or _has_captions(record, field)) else "coco"
    if re.match(r'\[\s*[{"\]]', text):
        return "coco"
    lines = [line.strip() for line in text.splitlines()[:_SAMPLE_LINES] if line.strip()]
    if not lines:
        return "text"
    if name.endswith(".tsv") or (field.isdigit() and sum("\t" in line for line in lines) * 2 > len(lines)):
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


def _has_captions(record: Dict[str, Any], field: str) -> bool:
    try:
        return bool(list_captions(record, field))
    except DamagedError:
        return False


def _header(line: str, delimiter: str) -> List[str]:
    return [name.strip().strip('"').strip() for name in line.split(delimiter)]


def read_text(stream: BinaryIO, field: str = "") -> Iterator[Caption]:
    """One caption per line."""
    for number, line in enumerate(_lines(stream), 1):
        yield from _parse_line(number, line, lambda text: text)


def read_flickr(stream: BinaryIO, field: str = "", ids: Optional[Set[int]] = None) -> Iterator[Caption]:
    """``image.jpg#k<TAB>caption`` a line; hashes of what stands before the captions are put into ``ids``."""
    for number, line in enumerate(_lines(stream), 1):
        if ids is not None:
            ids.add(hash(line.partition(b"\t")[0]))
        yield from _parse_line(number, line, _strip_image)


def _strip_image(text: str) -> str:
    match = _FLICKR.fullmatch(text)
    if match is None:
        raise DamagedError("no image#k before the caption")
    return match["caption"] if match["tab"] else Mended(match["caption"])


def read_jsonl(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """One JSON object per line, with a caption or a list of captions under ``field``; or one JSON string per line."""
    for number, line in enumerate(_lines(stream), 1):
        try:
            text = _decode(line)
            if not text:
                continue
            captions = list_captions(json.loads(text), field)
        except DamagedError as reason:
            yield Damage(f"line {number}", str(reason), repr(line[:60]))
        except (ValueError, RecursionError):
            yield Damage(f"line {number}", "not JSON", repr(line[:60]))
        else:
            yield from parse_values(f"line {number}", captions)


def read_csv(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """Comma-separated values with a header that names ``field``; tab, semicolon and bar separate as well.

    Where ``field`` is a number and no column is called so, the table has no header, and it is the number of the column,
    from 1.
    """
    return _read_delimited(stream, field, "")


def read_tsv(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """Tab-separated values with a header that names ``field``, or without one, as ``read_csv``."""
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
    if not delimiter and field.isdigit():  # no header, so the first line tells
        delimiter = next((d for d in _DELIMITERS if d in header), ",")
    elif not delimiter:  # the one that makes the field a column; a comma where none does
        delimiter = next((d for d in _DELIMITERS if d in header and field in _header(header, d)), ",")
    names = [name.strip() for name in next(csv.reader([header.strip("\r\n")], delimiter=delimiter), [])]
    by_number = field.isdigit() and field not in names
    if by_number and not 1 <= int(field) <= len(names):
        raise BuildError(f"no column {field}; its first line has {len(names)} columns, the first of them is 1")
    if field not in names and not by_number:
        raise BuildError(
            f"no column {field!r}; its columns are {', '.join(map(repr, names)) or 'none'}: name one with "
            "caption_field (by its number, from 1, if the first line is not a header), or pass caption_format='text'"
        )
    column = int(field) - 1 if by_number else names.index(field)
    rows = csv.reader(itertools.chain([header], lines) if by_number else lines, delimiter=delimiter)
    headers = 0 if by_number else 1
    while True:
        first = rows.line_num + 1 + headers
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
        used = rows.line_num + 1 + headers - first
        if reason or used > _LINES_OF_A_ROW:  # a quote that is not closed has swallowed the lines after it
            for number in range(first, first + used):
                yield Damage(f"line {number}", reason or f"in a field of {used} lines, from line {first}", "")
            continue
        if not row:
            continue
        if len(row) != len(names):
            yield Damage(where, f"{len(row)} fields under a header of {len(names)}", repr(delimiter.join(row)[:60]))
            continue
        yield from parse_values(where, [row[column]])


def read_parquet(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """A column of strings, or of lists of strings, of a Parquet file."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise BuildError(f"{error}; reading Parquet needs it: pip install 'vqct-plugin[parquet]'") from error
    try:
        file = parquet.ParquetFile(stream)
        names = list(file.schema_arrow.names)
        column = field if field in names else field.split(".")[0]
        if column not in names:
            raise BuildError(
                f"no column {field!r}; its columns are {', '.join(map(repr, names))}: name one with caption_field"
            )
        row = 0
        for batch in file.iter_batches(batch_size=4096, columns=[column]):
            for value in batch.column(0).to_pylist():
                row += 1
                try:
                    captions = list_captions({column: value}, field)
                except DamagedError as reason:
                    yield Damage(f"row {row}", str(reason), repr(value)[:60])
                else:
                    yield from parse_values(f"row {row}", captions)
    except (ArrowInvalid, OSError) as error:
        raise BuildError(f"no whole Parquet file: {error}") from error


#: without "coco", a JSON document, which ``documents.py`` reads
READERS: Dict[str, Reader] = {
    "text": read_text,
    "flickr": read_flickr,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
}


def list_captions(record: Any, field: str) -> List[str]:
    """The captions of a record: a string, a mapping with captions under ``field``, or a list of these.

    ``field`` may name a field in a field, as in ``"sentences.raw"``; lists on the way are gone through.

    Raises:
        DamagedError: the field is not there, or what is there is not a string.
    """
    captions: List[str] = []
    for value in record if isinstance(record, list) else [record]:
        found = _descend(value, field) if isinstance(value, dict) else [value]
        for caption in found:
            if not isinstance(caption, str):
                raise DamagedError(f"a caption has to be a string, not {type(caption).__name__}")
            captions.append(caption)
    return captions


def _descend(record: Dict[str, Any], field: str) -> List[Any]:
    names = [field] if field in record else field.split(".")
    found: List[Any] = [record]
    for name in names:
        inner: List[Any] = []
        for value in found:
            if not isinstance(value, dict) or name not in value:
                raise DamagedError(f"no {field!r} in it")
            inner += value[name] if isinstance(value[name], list) else [value[name]]
        found = inner
    return found


def _parse_line(number: int, line: bytes, take: Callable[[str], str]) -> Iterable[Caption]:
    try:
        text = _decode(line)
        return [_check_text(take(text))] if text else []
    except DamagedError as reason:
        return [Damage(f"line {number}", str(reason), repr(line[:60]))]


def parse_values(where: str, values: Iterable[str]) -> Iterator[Caption]:
    """Captions out of what a record holds, or the damage in them."""
    for value in values:
        try:
            if any("\udc80" <= character <= "\udcff" for character in value):
                raise DamagedError("not UTF-8")
            if len(value) > _LONGEST:
                raise DamagedError(f"longer than {_LONGEST} characters")
            caption = " ".join(value.split())
            if caption:
                yield _check_text(caption)
        except DamagedError as reason:
            yield Damage(where, str(reason), repr(value[:60]))


def _decode(line: bytes) -> str:
    if len(line) > _LONGEST:
        raise DamagedError(f"longer than {_LONGEST} bytes")
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DamagedError(f"not UTF-8 at byte {error.start}") from error


def _check_text(text: str) -> str:
    if any(character < " " and character != "\t" for character in text):
        raise DamagedError("control characters")
    if "\ufffd" in text:
        raise DamagedError("undecodable bytes")
    if not any(map(str.isalpha, text)):
        raise DamagedError("no letter in the caption")
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
