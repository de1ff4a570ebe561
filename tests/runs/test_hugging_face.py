"""Images of Hugging Face's datasets are those of a folder, wherever the table is from."""

import io

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning")
pytest.importorskip("omegaconf")
pytest.importorskip("datasets")
import datasets
from PIL import Image

from tests.runs.shards import make_table, photograph, write_folder
from vqct_plugin.runs.config import DataError
from vqct_plugin.runs.datasets import Images
from vqct_plugin.runs.hugging_face import HuggingFaceImages
from vqct_plugin.runs.image_files import list_files


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def saved(folder):
    make_table().save_to_disk(folder)
    return {"path": str(folder)}


def saved_splits(folder):
    datasets.DatasetDict({"test": make_table(3), "train": make_table()}).save_to_disk(folder)
    return {"path": str(folder)}


def parquet(folder):
    folder.mkdir()
    make_table().to_parquet(folder / "train-00000-of-00001.parquet")
    return {"path": str(folder)}


def pictures(folder):
    """datasets' own ImageFolder: the table names files."""
    return {"path": str(write_folder(folder))}


@pytest.mark.parametrize("write", [saved, saved_splits, parquet, pictures, lambda folder: {"path": make_table()}])
def test_a_table_holds_the_images_of_the_folder(write, tmp_path):
    plain = Images(write_folder(tmp_path / "plain"), 16)
    table = HuggingFaceImages(**write(tmp_path / "table"), size=16)
    assert len(table) == 15
    for i in (0, 7, 14):
        assert np.array_equal(table[i]["image"], plain[i]["image"])
    assert table[7]["file_path_"] == table.paths[7]
    assert list_files(table) == table.paths
    with pytest.raises(IndexError):
        table[15]


def test_a_part_of_a_split(tmp_path):
    assert len(HuggingFaceImages(**parquet(tmp_path / "a"), size=16, split="train[:4]")) == 4
    assert len(HuggingFaceImages(**saved_splits(tmp_path / "b"), size=16, split="test")) == 3


def test_an_image_is_read_as_one_of_a_folder(tmp_path):
    """Turned upright, and over its background; datasets itself does neither."""
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[274] = 6

    def content(i):
        stream = io.BytesIO()
        turned = Image.fromarray(np.kron([[255, 0], [0, 0]], np.ones((10, 10))).astype(np.uint8))
        clear.save(stream, "PNG") if i == 0 else turned.save(stream, "PNG", exif=exif)
        return stream.getvalue()

    table = HuggingFaceImages(make_table(2, content), 20, background="#ff0000")
    assert np.allclose(table[0]["image"][3, 3], [1, -1, -1])
    assert np.allclose(table[1]["image"][2, 17], 1)  # what was at the left is at the right
    assert np.allclose(table[1]["image"][2, 2], -1)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    two = make_table(2).add_column("more", [0, 1])
    broken = HuggingFaceImages(make_table(2, lambda i: photograph(0)[: 60 if i else None]), 16)
    with pytest.raises(DataError, match="the image the data set/1 cannot be read"):
        broken[1]
    empty = two.map(lambda row: {"photo": None}, load_from_cache_file=False)
    with pytest.raises(DataError, match="the data set/0 holds no image"):
        HuggingFaceImages(empty, 16)[0]
    for given, more, sentence in (
        (two.remove_columns("photo"), {}, "has no column with images, of caption, more"),
        (two, {"image": "caption"}, "image is 'caption'; expected a column with images, one of photo"),
        (two.to_iterable_dataset(), {}, r"path is a IterableDataset; expected a datasets\.Dataset"),
        (datasets.DatasetDict({"a": two, "b": two}), {}, "path is a DatasetDict of a, b; choose one"),
        (two.select([]), {}, "the data set is empty"),
        (str(tmp_path / "nowhere"), {}, "datasets cannot load .*nowhere, split 'train'"),
        (saved(tmp_path / "saved")["path"], {"split": "test"}, "has to be a whole one, not 'test'"),
        (str(tmp_path), {"split": "test", "size": 0}, "size is 0"),
    ):
        with pytest.raises(DataError, match=sentence):
            HuggingFaceImages(given, **{"size": 16, **more})
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"user/name is read by Hugging Face's datasets: pip install"):
        HuggingFaceImages("user/name", 16)
