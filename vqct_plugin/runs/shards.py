"""Images in shards as webdataset has them: tar files, of which an image is read where it lies.

Why not the package ``webdataset`` itself: it reads a shard from its beginning to its end, and mixes by a buffer that no
checkpoint holds. So it cannot go on inside an epoch with the batches that an uninterrupted run would see, and what
it shows depends on the number of workers and processes. Here each shard's headers are read once, when the data set is
built; from then on the images are a list as those of a folder are, and their order survives a restart. What is a
sample, and how shards are named, is as in ``webdataset``, and tests compare the two.
"""

import hashlib
import random
import re
import tarfile
from glob import glob
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from vqct_plugin.runs.batches import check_number
from vqct_plugin.runs.config import DataError
from vqct_plugin.runs.datasets import Images
from vqct_plugin.runs.image_files import BACKGROUND, hash_names, read_image_bytes

__all__ = ["ShardedImages"]

IMAGES = "jpg;jpeg;png;webp;bmp;tif;tiff;ppm"
_BLOCK = 512  # of a tar file
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class ShardedImages(Images):
    """Images of webdataset's shards: tar files in which the files of a sample lie together, ``0001.jpg 0001.json``.

    Args:
        path: a folder, whose ``.tar`` files are taken, and those of the folders in it; a shard; a pattern, with ``*``,
            or with braces, ``train-{000000..000146}.tar``; or a list of these.
        size, random_crop, flip, background: as for :class:`~vqct_plugin.runs.datasets.Images`.
        image: which file of a sample is the image, by its ending; the first that a sample has, of several. By default
            ``jpg;jpeg;png;webp;bmp;tif;tiff;ppm``.
        shards_at_once: from how many shards images are mixed at a time. By default from all; a disk that seeks slowly
            is faster with few, since then the others are not touched.
        max_damaged_shards: how many shards may be damaged, or without an image. Of a damaged one the images before the
            damage are used, and the rest is left out. The shards are counted, and logged at the end of the run.

    An item is that of ``Images``; its ``file_path_`` is the shard's path, and in it the image's.

    Raises:
        DataError: no shard, or no image in them; too many damaged shards; a compressed one; and when an item is asked
            for, an image that cannot be read.
    """

    def __init__(
        self,
        path: Union[str, Path, Sequence[Union[str, Path]]],
        size: int,
        random_crop: bool = False,
        flip: bool = False,
        background: str = BACKGROUND,
        image: Optional[str] = None,
        shards_at_once: Optional[int] = None,
        max_damaged_shards: int = 0,
    ) -> None:
        self._set_up(size, random_crop, flip, background)
        if shards_at_once is not None:
            check_number("shards_at_once", shards_at_once, 1)
        check_number("max_damaged_shards", max_damaged_shards)
        self.shards = list_shards(path)
        self.shards_at_once = shards_at_once
        #: shard -> what is wrong with it
        self.damaged: Dict[str, str] = {}
        endings = _read_endings(IMAGES if image is None else image)
        found: List[_Place] = []
        counts, seen, empty = [], hashlib.sha256(), 0
        self._sizes: List[int] = []
        for shard in self.shards:
            before = len(found)
            try:
                found.extend(_list_images(shard, endings))
            except _Damage as damage:
                found.extend(damage.before)
                self.damaged[str(shard)] = str(damage)
                empty += isinstance(damage, _Empty)
            counts.append(len(found) - before)
            self._sizes.append(shard.stat().st_size if shard.is_file() else -1)
            if shard.is_file():
                seen.update(f"{shard.name} {shard.stat().st_size} {shard.stat().st_mtime_ns}".encode())
        if not found and empty == len(self.damaged):
            looked = ";".join(endings)
            raise DataError(
                f"there is no image in {len(self.shards)} shards, {self.shards[0]} first; looked for {looked}"
            )
        if len(self.damaged) > max_damaged_shards:
            what = "are damaged" if empty < len(self.damaged) else "have no image"
            again = "Fetch the damaged ones again, or give" if empty < len(self.damaged) else "Or give"
            raise DataError(
                f"{len(self.damaged)} of {len(self.shards)} shards {what}, and max_damaged_shards is "
                f"{max_damaged_shards}: {'; '.join(list(self.damaged.values())[:3])}. {again} a higher number, by "
                "which they are left out"
            )
        if not found:
            raise DataError(f"there is no image in {len(self.shards)} shards, {self.shards[0]} first; all are damaged")
        #: of all shards, by which one can tell others of the same names
        self.fingerprint = seen.hexdigest()
        # Arrays, not lists: workers share them, where a list's counts of references are written by each
        self._first = np.cumsum([0, *counts])
        self._offset, self._length = (np.array([place[i] for place in found], dtype=np.int64) for i in (0, 1))
        self._name = np.array([place.name.encode() for place in found])

    def __len__(self) -> int:
        return len(self._name)

    def describe_files(self) -> Dict[str, Any]:
        """See :func:`vqct_plugin.runs.image_files.describe_files`."""
        sizes = hashlib.sha256(repr(self._sizes).encode()).hexdigest()
        names = {"names of shards": hash_names(self.shards), "sizes of shards": sizes}
        return {"images": len(self), "shards": len(self.shards), **names}

    @property
    def paths(self) -> List[str]:  # type: ignore[override]
        """The shard's path of each image, and in it the image's."""
        return [self._path(i)[1] for i in range(len(self))]

    def _path(self, index: int) -> Tuple[Path, str]:
        shard = self.shards[int(np.searchsorted(self._first, index, side="right")) - 1]
        return shard, f"{shard}/{self._name[index].decode()}"

    def __getitem__(self, index: int) -> Dict[str, Any]:
        index = range(len(self))[index]
        shard, name = self._path(index)
        try:
            with shard.open("rb") as file:
                file.seek(self._offset[index])
                content = file.read(int(self._length[index]))
        except OSError as error:
            raise DataError(f"the shard {shard} cannot be read: {error.strerror or error}") from error
        return self._make_item(read_image_bytes(content, name, self.background), name)

    def list_shuffled(self, seed: int, epoch: int) -> List[int]:
        """The images in the order of an epoch: shards in a random order, and mixed within so many of them at a time."""
        generator = random.Random(f"{seed} {epoch}")
        shards = list(range(len(self.shards)))
        generator.shuffle(shards)
        at_once = self.shards_at_once or len(shards)
        order: List[int] = []
        for begin in range(0, len(shards), at_once):
            some = [i for k in shards[begin : begin + at_once] for i in range(self._first[k], self._first[k + 1])]
            generator.shuffle(some)
            order += some
        return order


class _Place(NamedTuple):
    """Where an image lies in its shard, in bytes, and its name there."""

    offset: int
    length: int
    name: str


class _Damage(Exception):
    """A shard that cannot be read, or not to its end; with the images before the damage."""

    def __init__(self, sentence: str, before: Sequence[_Place] = ()) -> None:
        super().__init__(sentence)
        self.before = list(before)


class _Empty(_Damage):
    """A shard that can be read, and has no image."""


def list_shards(path: Any) -> List[Path]:
    """The shards that a path, a pattern, or a list of these names; sorted, those of a list in its order.

    >>> [str(shard) for shard in list_shards("a-{08..10}.tar")]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    if not isinstance(path, (str, Path)):
        shards = [shard for each in path for shard in list_shards(each)]
        if not shards:
            raise DataError("the list of shards is empty; expected a path or more")
        return shards
    text = str(path)
    if re.match(r"[a-z0-9]+://|pipe:", text):
        raise DataError(
            f"the shards are at an address, {text}; images are read from any place of a shard, so expected files on "
            "this machine: copy them first"
        )
    if Path(text).is_dir():
        shards = sorted(Path(text).rglob("*.tar"))
        if not shards:
            raise DataError(f"there is no shard in {text} or the folders in it; looked for .tar")
        return shards
    shards = []
    for each in expand_braces(text):
        found = [Path(file) for file in sorted(glob(each))] if re.search(r"[*?\[]", each) else [Path(each)]
        if not found:
            raise DataError(f"no file has the pattern {each}")
        shards += found
    return shards


def expand_braces(text: str) -> List[str]:
    """``{000..002}`` counted and ``{a,b}`` listed, as a shell does; webdataset's users name their shards so.

    >>> expand_braces("{train,val}-{0..1}.tar")
    ['train-0.tar', 'train-1.tar', 'val-0.tar', 'val-1.tar']
    """
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if match is None:
        return [text]
    first, last, listed = match.groups()
    if listed is not None:
        inside = listed.split(",")
    else:
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        inside = [str(n).zfill(width) for n in range(int(first), int(last) + step, step)]
    return [text[: match.start()] + each + rest for each in inside for rest in expand_braces(text[match.end() :])]


def _list_images(shard: Path, endings: Sequence[str]) -> List[_Place]:
    """The image of each sample of a shard that has one; raises _Damage, and DataError for what is no shard's fault."""
    found: List[_Place] = []
    try:
        with shard.open("rb") as file:
            start = file.read(8)
        packed = next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
        if packed:
            raise DataError(f"the shard {shard} is compressed ({packed}), where no image can be found; unpack it first")
        with tarfile.open(shard, "r:") as archive:
            _add_images(archive, shard.stat().st_size, endings, found)
            flaw = _find_flaw(archive, shard)
    except FileNotFoundError:
        raise _Damage(f"there is no shard {shard}") from None
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        raise _Damage(f"the shard {shard} cannot be read to its end: {error}", found) from error
    if flaw:
        raise _Damage(flaw, found)
    if not found:
        raise _Empty(f"the shard {shard} holds no image of {';'.join(endings)}; leave it out")
    return found


def _read_endings(image: Any) -> List[str]:
    """``jpg;png`` as a list; a dot before an ending is taken too."""
    given = image.lower().split(";") if isinstance(image, str) else []
    endings = [each for each in (ending.strip().lstrip(".") for ending in given) if each]
    if not endings:
        raise DataError(f"image is {image!r}; expected an ending, such as 'png', or several, 'jpg;png'")
    return endings


def _add_images(archive: tarfile.TarFile, size: int, endings: Sequence[str], found: List[_Place]) -> None:
    """Add each sample's image: a sample is the files in a row whose paths are alike up to the name's first dot."""
    key = ""
    sample: Dict[str, _Place] = {}  # by ending

    def finish() -> None:
        found.extend([sample[ending] for ending in endings if ending in sample][:1])

    try:
        for member in iter(archive.next, None):
            archive.members = []  # type: ignore[attr-defined]  # which it would keep, all of them
            name = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", member.name, flags=re.S)
            if name is None or not member.isreg() or re.fullmatch(r"__[^/]*__", member.name):
                continue
            if name.group(1) != key:
                finish()
                key, sample = name.group(1), {}
            if member.offset_data + member.size <= size:
                sample.setdefault(name.group(2).lower(), _Place(member.offset_data, member.size, member.name))
    finally:
        finish()


def _find_flaw(archive: tarfile.TarFile, shard: Path) -> Optional[str]:
    """What tarfile takes for an archive's end where it is none: a damaged header, or that the file is cut off."""
    with shard.open("rb") as file:
        file.seek(archive.offset)
        block = file.read(_BLOCK)
    if len(block) == _BLOCK and not any(block):
        return None
    what = "is damaged there" if block else "ends there, without the mark of an end"
    return f"the shard {shard} cannot be read beyond byte {archive.offset:,}: it {what}"
