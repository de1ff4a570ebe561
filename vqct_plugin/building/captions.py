"""Captions files, streamed: one caption after the other, and an account of what could not be read."""

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Iterator, List, Sequence, Union

FORMATS = ("auto", "text", "flickr")

# ``image.jpg#0<TAB>caption``. Flickr8k has lines with a space for the tab, which can only be read as meant where the
# image's name holds no space itself.
_FLICKR = re.compile(r"(?:[^\t]*#\d+(?P<tab>\t)|\S+#\d+ )\s*(?P<caption>.*)")
_LONGEST_LINE = 1 << 16  # bytes; no caption is that long, and a binary file may have no line end at all
_SAMPLE_LINES = 100  # looked at to tell the formats apart
_SHOWN = 3  # damaged lines kept to be shown

PathLike = Union[str, "os.PathLike[str]"]


class BuildError(ValueError):
    """A prior cannot be built from what was given."""


class _DamagedLine(ValueError):
    """Why one line is skipped."""


class CaptionsFile:
    """One file of captions; iterating over it reads it once, line by line, and gives the captions.

    Blank lines are passed over. A line that is damaged (not UTF-8, control characters, no letter, too long, or without
    the ``image#k`` of its format) is counted and skipped, and the first few are kept in ``first_damaged``. After a
    whole pass ``captions``, ``damaged``, ``spaces_for_tabs`` and ``sha256`` describe the file.

    Args:
        path: plain text with one caption a line, or a Flickr token file (``image.jpg#k<TAB>caption``).
        caption_format: ``"text"``, ``"flickr"``, or ``"auto"`` to tell from the first lines.

    Raises:
        BuildError: no such file, an unknown format, no caption in it, or more damaged lines than captions.
    """

    def __init__(self, path: PathLike, caption_format: str = "auto") -> None:
        if caption_format not in FORMATS:
            raise BuildError(f"caption format {caption_format!r} is not known; expected one of {', '.join(FORMATS)}")
        self.path = Path(path)
        if not self.path.is_file():
            what = "is a folder; name the files in it" if self.path.is_dir() else "does not exist"
            raise BuildError(f"captions file {self.path} {what}")
        self.size = self.path.stat().st_size
        try:
            with self.path.open("rb") as file:
                self.format = _recognised(self.path, file) if caption_format == "auto" else caption_format
        except OSError as error:
            raise BuildError(f"captions file {self.path} cannot be read: {error}") from error
        self._start_over()

    def _start_over(self) -> None:
        self.captions = self.damaged = self.spaces_for_tabs = self.bytes_read = 0
        self.first_damaged: List[str] = []
        self.sha256 = ""

    def __iter__(self) -> Iterator[str]:
        self._start_over()
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(_lines(file, digest.update), 1):
                    self.bytes_read = file.tell()
                    try:
                        caption = self._caption(line)
                    except _DamagedLine as reason:
                        self.damaged += 1
                        if len(self.first_damaged) < _SHOWN:
                            self.first_damaged.append(f"line {number}, {reason}: {line[:60]!r}")
                        continue
                    if caption:
                        self.captions += 1
                        yield caption
        except OSError as error:
            raise BuildError(f"captions file {self.path} cannot be read: {error}") from error
        self.sha256 = digest.hexdigest()
        if self.damaged > self.captions:
            raise BuildError(
                f"{self.path}: {self.damaged:,} damaged lines and only {self.captions:,} captions, read as "
                f"{self.format!r}; expected plain text with a caption a line, or image.jpg#k<TAB>caption. First: "
                + "; ".join(self.first_damaged)
            )
        if not self.captions:
            raise BuildError(f"{self.path}: no caption in it, read as {self.format!r}")

    def _caption(self, line: bytes) -> str:
        text = _text(line)
        if not text:
            return ""
        if self.format == "flickr":
            match = _FLICKR.fullmatch(text)
            if match is None:
                raise _DamagedLine("no image#k before the caption")
            text = match["caption"]
            self.spaces_for_tabs += match["tab"] is None
        if not any(map(str.isalpha, text)):
            raise _DamagedLine("no letter in the caption")
        return text

    def describe(self) -> Dict[str, Union[str, int]]:
        """What a prior records of this file: its base name, never where it lay."""
        if not self.sha256:
            raise RuntimeError("describe() comes after a whole pass over the captions")
        return {
            "file": self.path.name,
            "format": self.format,
            "bytes": self.bytes_read,
            "sha256": self.sha256,
            "captions": self.captions,
            "damaged_lines": self.damaged,
        }


def _text(line: bytes) -> str:
    if len(line) > _LONGEST_LINE:
        raise _DamagedLine(f"longer than {_LONGEST_LINE} bytes")
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise _DamagedLine(f"not UTF-8 at byte {error.start}") from error
    if any(character < " " and character != "\t" for character in text):
        raise _DamagedLine("control characters")
    return text


def _lines(file: BinaryIO, update: Callable[[bytes], None]) -> Iterator[bytes]:
    """The lines, of which an overlong one comes cut short; every byte of the file reaches the digest."""
    while True:
        line = file.readline(_LONGEST_LINE + 1)
        if not line:
            return
        update(line)
        rest = line
        while len(rest) > _LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST_LINE + 1)
            update(rest)
        yield line


def _recognised(path: Path, file: BinaryIO) -> str:
    texts: List[str] = []
    for _, line in zip(range(_SAMPLE_LINES), iter(lambda: file.readline(_LONGEST_LINE), b"")):
        text = line.decode("utf-8-sig", errors="replace").strip()
        if text:
            texts.append(text)
    if texts and texts[0][0] in "[{":
        raise BuildError(
            f"captions file {path} looks like JSON; expected plain text with a caption a line, or "
            "image.jpg#k<TAB>caption (to read it as plain text all the same, say --caption-format text)"
        )
    flickr = sum(_FLICKR.fullmatch(text) is not None for text in texts)
    return "flickr" if texts and flickr * 2 > len(texts) else "text"


def open_captions(paths: Sequence[PathLike], caption_format: str = "auto") -> List[CaptionsFile]:
    """All captions files, checked before any is read."""
    if not paths:
        raise BuildError("no captions file given; name at least one")
    return [CaptionsFile(path, caption_format) for path in paths]
