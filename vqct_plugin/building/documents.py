"""Captions in a JSON document: COCO's, Karpathy's, a list, or a mapping from images to captions.

Read piece by piece: COCO's files have a million captions. Undecodable bytes damage the captions that they stand in, no
others.
"""

import codecs
import io
from typing import Any, BinaryIO, Iterator, List, Optional, Tuple

from vqct_plugin.building.formats import HEAD, BuildError, Caption, Damage, DamagedError, list_captions, parse_values

#: keys of COCO's documents and of those that follow it; a document without them maps images to captions
_OF_COCO = {"annotations", "images", "info", "licenses", "categories", "type", "dataset", "videos"}
_OF_IMAGES = "sentences.raw"  # where Karpathy's images have their captions


def read_document(stream: BinaryIO, field: str) -> Iterator[Caption]:
    """The captions of a JSON document, whichever of these it is:

    - ``{"annotations": [{"caption": ...}, ...]}``, COCO's;
    - ``{"images": [{"sentences": [{"raw": ...}, ...]}, ...]}``, Karpathy's;
    - ``{"a.jpg": ["...", "..."], ...}``, or with one caption or a record for each image;
    - a list of records or of strings.
    """
    try:
        import ijson  # a JSON document as a stream
    except ImportError as error:
        raise BuildError(f"{error}; reading a JSON document needs it: pip install 'vqct-plugin[prior]'") from error
    document = _Decodable(stream)
    place, field = _find_records(document.peek(HEAD), field)
    number = 0
    try:
        records = ijson.kvitems(document, "") if place is None else ijson.items(document, place)
        for number, record in enumerate(records, 1):
            where = f"record {number}" if place is not None else f"key {record[0][:60]!r}"
            try:
                captions = list_captions(record if place is not None else record[1], field)
            except DamagedError as reason:
                yield Damage(where, str(reason), str(record)[:60])
            else:
                yield from parse_values(where, captions)
    except ijson.JSONError as error:
        raise BuildError(f"no whole JSON document, it breaks off after record {number:,}: {error}") from error
    if not number:
        raise BuildError(
            'a JSON document without captions; expected {"annotations": [...]} as COCO has it, {"images": [...]} as '
            'Karpathy has it, {"image": ["caption", ...]}, or a list'
        )


def _find_records(head: bytes, field: str) -> Tuple[Optional[str], str]:
    """Where the records of a document stand that begins so (ijson's prefix; None for a mapping), and their field."""
    import ijson

    if head.lstrip()[:1] == b"[":
        return "item", field
    keys: List[str] = []
    try:
        for prefix, event, value in ijson.parse(io.BytesIO(head)):
            if prefix == "" and event == "map_key":
                keys.append(value)
            elif prefix == "images.item.sentences":
                return "images.item", _OF_IMAGES if field == "caption" else field
    except ijson.JSONError:  # the head ends somewhere; what is damaged is told of by who reads it
        pass
    return ("annotations.item" if _OF_COCO & set(keys) or not keys else None), field


class _Decodable:
    """A stream whose undecodable bytes are replaced, for a parser that would stop at the first."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._kept = b""

    def peek(self, size: int) -> bytes:
        """The beginning; it is read again afterwards."""
        while len(self._kept) < size:
            piece = self._next(size)
            if not piece:
                break
            self._kept += piece
        return self._kept

    def read(self, size: int = -1) -> bytes:
        if size == 0:  # ijson asks so what kind of stream this is
            return b""
        kept, self._kept = self._kept, b""
        return kept or self._next(size)

    def _next(self, size: int) -> bytes:
        while True:
            piece: Any = self._stream.read(size)
            text = self._decoder.decode(piece, final=not piece).encode()
            if text or not piece:
                return text
