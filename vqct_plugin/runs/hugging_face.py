"""Images of a data set of Hugging Face ``datasets``: of the hub, of local files that it reads, or saved by it."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from vqct_plugin.runs.config import DataError
from vqct_plugin.runs.datasets import Images
from vqct_plugin.runs.image_files import BACKGROUND, read_image, read_image_bytes

__all__ = ["HuggingFaceImages"]


class HuggingFaceImages(Images):
    """The images of a data set of Hugging Face ``datasets`` (``pip install datasets``).

    It is read as a table, of which any row can be asked for: its order is this library's own, as that of a folder, and
    survives a restart. A stream (``streaming=True``) has no such order, and is refused. An image is read as one of a
    folder is, from its bytes, and not by ``datasets``.

    Args:
        path: a name on the hub (``user/name``); a folder that ``load_dataset`` or ``load_from_disk`` reads; or, in
            Python, a ``datasets.Dataset``.
        size, random_crop, flip, background: as for :class:`~vqct_plugin.runs.datasets.Images`.
        split: of the data set: ``train``, ``train[:90%]``.
        image: the column; by default the only one that holds images.
        name: of the data set's configuration, where it has several.
        revision: a branch, tag or commit on the hub.

    An item is that of ``Images``; its ``file_path_`` is the data set's name and the row.

    Raises:
        DataError: ``datasets`` is not installed, or cannot load it; no such column, or no image in it; and when an
            item is asked for, an image that cannot be read.
    """

    def __init__(
        self,
        path: Any,
        size: int,
        random_crop: bool = False,
        flip: bool = False,
        background: str = BACKGROUND,
        split: str = "train",
        image: Optional[str] = None,
        name: Optional[str] = None,
        revision: Optional[str] = None,
    ) -> None:
        self._set_up(size, random_crop, flip, background)
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"{path} is read by Hugging Face's datasets: pip install 'vqct-plugin[datasets]'"
            ) from error
        given = not isinstance(path, (str, Path))
        table = path if given else _load(datasets, path, split, name, revision)
        if not isinstance(table, datasets.Dataset):
            what = type(table).__name__
            more = f" of {', '.join(table)}; choose one" if isinstance(table, dict) else ""
            raise DataError(f"path is a {what}{more}; expected a datasets.Dataset, or its name or folder")
        column = _find_column(table, image, datasets.Image)
        self.name = "the data set" if given else f"{path}[{split}]"
        #: of the table, by which one can tell another of the same name
        self.fingerprint = str(table._fingerprint)
        table = table.select_columns([column]).with_format(None)
        self.table, self.column = table.cast_column(column, datasets.Image(decode=False)), column
        if len(self.table) == 0:
            raise DataError(f"{self.name} is empty; expected rows with an image")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def paths(self) -> List[str]:  # type: ignore[override]
        """A name for each row."""
        return [self._name_row(i) for i in range(len(self))]

    def _name_row(self, index: int) -> str:
        return f"{self.name}/{index}"

    def __getitem__(self, index: int) -> Dict[str, Any]:
        index = range(len(self))[index]
        row, name = self.table[index][self.column], self._name_row(index)
        if row is None:
            raise DataError(f"{name} holds no image")
        if row.get("bytes") is not None:
            return self._make_item(read_image_bytes(row["bytes"], name, self.background), name)
        return self._make_item(read_image(row["path"], self.background), name)


def _load(datasets: Any, path: Union[str, Path], split: str, name: Optional[str], revision: Optional[str]) -> Any:
    """The split of a data set, from wherever ``datasets`` finds it."""
    folder = Path(path)
    saved = [file for file in ("dataset_dict.json", "state.json") if (folder / file).is_file()]
    try:
        if not saved:
            return datasets.load_dataset(str(path), name, split=split, revision=revision)
        if split.isidentifier() and saved == ["dataset_dict.json"]:
            return datasets.load_from_disk(str(folder / split))
        table = datasets.load_from_disk(str(folder))
    except Exception as error:  # of the hub's client, of arrow, of a builder: of every kind
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"datasets cannot load {path}, split {split!r}: {what}") from error
    if split != "train":
        raise DataError(f"{path} was saved by save_to_disk, of which split has to be a whole one, not {split!r}")
    return table


def _find_column(table: Any, image: Optional[str], kind: Any) -> str:
    columns = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    if image is None and len(columns) == 1:
        return columns[0]
    if image in columns:
        return str(image)
    if image is None:
        which = f"has the columns {', '.join(columns)} with images" if columns else "has no column with images"
        raise DataError(f"the data set {which}, of {', '.join(table.column_names)}; expected image to name one")
    raise DataError(f"image is {image!r}; expected a column with images, one of {', '.join(columns) or 'none'}")
