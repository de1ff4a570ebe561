"""What a file of captions is packed in: compressed, in UTF-16, in a tar archive; and what is not a file of captions.

All of it is recognized by the first bytes, never by the name.
"""

import bz2
import codecs
import gzip
import hashlib
import importlib
import io
import lzma
import re
import zlib
from typing import Any, BinaryIO, Optional, Tuple, cast

from vqct_plugin.building.formats import HEAD, BuildError

#: endings of packed files, beside those of the captions in them
PACKED = (".gz", ".bz2", ".xz", ".zst")
TAR = (".tar", ".tgz", ".tbz2", ".txz")
_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))
_UNICODE = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_ELSE = (
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive: unpack it, and name the file or folder"),
    (rb"Rar!|7z\xbc\xaf\x27\x1c", "an archive: unpack it, and name the file or folder"),
    (rb"version https://git-lfs", "a Git LFS pointer and not the file: run 'git lfs pull' where it was cloned"),
    (rb"(?i)\s*<(!doctype|html|head>|body>|\?xml|!--)", "a web page and not captions: look at what was downloaded"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "an image"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"%PDF-", "a PDF"),
    (rb"\x93NUMPY", "an array of NumPy"),
    (rb"SQLite format 3", "a database"),
    (rb"\x80[\x02-\x05][\x95(}\])c]", "a pickle"),
    (rb"ARROW1|FEA1", "an Arrow file: convert it to Parquet"),
    (rb"\x7fELF|MZ\x90", "a program"),
)


class DamagedFileError(Exception):
    """A compressed file breaks off or is damaged."""


class Ahead(io.RawIOBase):
    """A stream whose first bytes can be looked at; damage of what it unpacks is a ``DamagedFileError``."""

    def __init__(self, raw: Any, kind: str = "") -> None:
        self._raw, self._ahead, self._kind = raw, b"", kind

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, or what there is; they are read again afterwards."""
        while len(self._ahead) < size:
            try:
                piece = self._more(size - len(self._ahead))
            except DamagedFileError:
                if not self._ahead:
                    raise
                break  # what comes before the damage is still read, and then the damage met again
            if not piece:
                break
            self._ahead += piece
        return self._ahead

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        piece = piece or self._more(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def _more(self, size: int) -> bytes:
        try:
            return bytes(getattr(self._raw, "read1", self._raw.read)(size) or b"")
        except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, RuntimeError) as error:
            if not self._kind:
                raise
            raise DamagedFileError(f"damaged {self._kind}: {error}") from error
        except Exception as error:  # zstandard's own
            if type(error).__name__ != "ZstdError":
                raise
            raise DamagedFileError(f"damaged {self._kind}: {error}") from error


class Watched(Ahead):
    """A stream whose bytes are counted and hashed as they pass."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(raw)
        self.seen = 0
        self.digest = hashlib.sha256()

    def readinto(self, buffer: Any) -> int:
        size = super().readinto(buffer)
        self.seen += size
        self.digest.update(buffer[:size])
        return size

    def drain(self) -> None:
        """Read to the end: the digest is of the whole file, also where a reader had no use for its last bytes."""
        while self.read(1 << 20):
            pass


class _Transcoded:
    """A stream of another Unicode encoding, as UTF-8; what cannot be decoded becomes U+FFFD, which is damage."""

    def __init__(self, raw: Any, encoding: str) -> None:
        self._raw, self._decoder = raw, codecs.getincrementaldecoder(encoding)(errors="replace")
        self._done = False

    def read(self, size: int) -> bytes:
        text = ""
        while not text and not self._done:
            piece = self._raw.read(max(size // 3, 4))  # no character becomes more than three times as long
            self._done = not piece
            text = self._decoder.decode(piece, final=self._done)
        return text.encode("utf-8", errors="replace")


def unpack(stream: Ahead) -> Tuple[BinaryIO, bytes, bool]:
    """The stream of UTF-8 or of a tar archive that stands in a stream, its first bytes, and whether it was packed.

    Raises:
        BuildError: it is nothing that holds captions, or a package is missing that unpacks it.
        DamagedFileError: it is compressed and damaged at its beginning.
    """
    head, packed = stream.peek(HEAD), False
    kind = next((kind for magic, kind in _COMPRESSED if head.startswith(magic)), None)
    if kind is not None:
        stream, packed = Ahead(_open_decompressor(stream, kind), kind), True
        head = stream.peek(HEAD)
    what = next((what for pattern, what in _ELSE if re.match(pattern, head, re.DOTALL)), None)
    if what is not None:
        raise BuildError(f"it is {what}")
    encoding = _encoding(head)
    if encoding is not None:
        stream, packed = Ahead(_Transcoded(stream, encoding)), True
        head = stream.peek(HEAD)
    return cast(BinaryIO, io.BufferedReader(stream, HEAD)), head, packed


def is_tar(head: bytes) -> bool:
    """Whether a stream that begins so is a tar archive."""
    return head[257:262] == b"ustar"


def _encoding(head: bytes) -> Optional[str]:
    named = next((encoding for mark, encoding in _UNICODE if head.startswith(mark)), None)
    if named is not None or len(head) < 8:
        return named
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):  # without a mark: every other byte of Latin is 0
        if head[first::2].count(0) > 0.9 * len(head[first::2]) and not head[1 - first :: 2].count(0):
            return encoding
    return None


def _open_decompressor(stream: Any, kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=stream)
    if kind == "bzip2":
        return bz2.BZ2File(stream)
    if kind == "xz":
        return lzma.LZMAFile(stream)
    try:
        return importlib.import_module("zstandard").ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    except ImportError:
        pass
    try:
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")
    except ImportError as error:
        raise BuildError(
            "it is compressed by zstd, and no package is there that reads it: pip install zstandard, or unpack it"
        ) from error
