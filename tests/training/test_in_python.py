"""``vqct_plugin.train``: the config and the data as they are at hand, and what the launcher makes of them."""

import importlib.util
import os
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.runs.shards import make_table, write_folder, write_shards
from tests.runs.tiny import config as tiny
from tests.runs.tiny import write

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")
from PIL import Image

from vqct_plugin import train
from vqct_plugin.runs.build import build_data
from vqct_plugin.runs.config import ConfigError, DataError, load_config
from vqct_plugin.runs.given import GivenImages
from vqct_plugin.training import in_python

PIXELS = np.random.RandomState(0).randint(0, 256, (20, 24, 3), dtype=np.uint8)
MODEL = tiny()["model"]


@pytest.fixture
def prepared(monkeypatch):
    """What ``train`` hands to the launcher: the merged config, and the data built from it."""
    calls = []

    def prepare(base, overrides, given, **options):
        config = load_config(base, overrides)
        calls.append((config, build_data(config, given).datasets, options))

    monkeypatch.setattr(in_python, "run", prepare)

    def call(*arguments, **options):
        train(*arguments, **options)
        return calls[-1]

    return call


def test_the_config_may_be_a_file_a_mapping_or_omegaconfs(prepared, tmp_path):
    folder = write_folder(tmp_path / "images", 2)
    file = write(tmp_path)
    whole = tiny()
    before = str(whole)
    configs = [
        prepared(config, folder, batch_size=2, overrides=["model.params.beta=0.5"])
        for config in (file, str(file), whole, OmegaConf.create(whole), [file, {"lightning": {}}])
    ]
    assert [config for config, _, _ in configs] == [configs[0][0]] * 5
    assert configs[0][0].model.params.beta == 0.5
    assert configs[0][2] == {"name": "tiny"}
    assert configs[2][2] == {}
    assert str(whole) == before  # what was given is not changed
    alone, _, _ = prepared(MODEL, folder, batch_size=2)
    assert alone.model == load_config([whole]).model
    assert alone.data.params.batch_size == 2


def test_a_shipped_config_needs_no_more_than_data(prepared, tmp_path):
    folder = write_folder(tmp_path / "images", 2)
    config, sets, options = prepared("vqct:custom_vqct.yaml", folder, size=16, logdir=tmp_path)
    assert options == {"name": "custom_vqct", "logdir": tmp_path}
    assert config.model.params.monitor is None  # there is no validation to watch
    assert (sets["train"].size, sets["train"].random_crop, sets["train"].flip) == (16, True, True)
    config, sets, _ = prepared("vqct:custom_vqct.yaml", folder, folder)
    assert config.model.params.monitor == "val/rec_loss"
    validation = sets["validation"]
    assert (validation.size, validation.random_crop, validation.flip) == (256, False, False)


class Pairs(torch.utils.data.Dataset):
    """As torchvision's: an image of some kind, and its class."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.make(PIXELS), index


FLOATS = (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).float()


@pytest.mark.parametrize(
    "source",
    [
        [Image.fromarray(PIXELS)],
        [PIXELS],
        [torch.from_numpy(PIXELS).permute(2, 0, 1)],
        Pairs(Image.fromarray),
        Pairs(lambda pixels: FLOATS),
        [{"image": Image.fromarray(PIXELS), "label": 3}],
    ],
)
def test_any_data_set_of_images_is_read_as_a_file_of_them(source, tmp_path, prepared):
    Image.fromarray(PIXELS).save(tmp_path / "0.png")
    _, files, _ = prepared(MODEL, data=None, validation=[str(tmp_path / "0.png")], batch_size=1, overrides=[
        "data.params.train={target: vqct_plugin.runs.photographs.Photographs, params: {split: train, size: 16}}"
    ])  # fmt: skip
    _, given, _ = prepared(MODEL, source, source, batch_size=1)
    assert np.array_equal(given["validation"][0]["image"], files["validation"][0]["image"])
    assert given["train"][0]["image"].shape == (16, 16, 3)
    assert len(given["train"]) == len(source)


def test_data_is_told_by_what_it_is(prepared, tmp_path):
    folder, shards = write_folder(tmp_path / "images"), write_shards(tmp_path / "shards")
    sources = [folder, sorted(folder.iterdir()), shards, f"{shards}/train-{{000..002}}.tar", sorted(shards.iterdir())]
    sources.append({"target": "vqct_plugin.runs.datasets.Images", "params": {"path": str(folder), "size": 16}})
    if importlib.util.find_spec("datasets"):
        sources.append(make_table())
    kinds = []
    for source in sources:
        _, sets, _ = prepared(MODEL, source, batch_size=1)
        assert len(sets["train"]) == 15
        kinds.append(type(sets["train"]).__name__)
    assert kinds == [*["Images"] * 2, *["ShardedImages"] * 3, "Images", "HuggingFaceImages"][: len(sources)]


def test_a_folder_holds_images_or_shards(prepared, tmp_path):
    nested = tmp_path / "nested"
    write_shards(nested / "a" / "b")
    assert type(prepared(MODEL, nested, batch_size=1)[1]["train"]).__name__ == "ShardedImages"
    folder = write_folder(tmp_path / "images")
    (folder / "more.tar").mkdir()  # no shard
    assert type(prepared(MODEL, folder, batch_size=1)[1]["train"]).__name__ == "Images"
    (folder / "more.tar" / "backup.tar").touch()
    with pytest.raises(DataError, match=r"the folder .*images has images, such as .*\.png, and shards, .*backup\.tar"):
        prepared(MODEL, folder, batch_size=1)
    with pytest.raises(DataError, match=r"the list has images, such as .*00001\.png, and shards, such as x\.tar"):
        prepared(MODEL, ["x.tar", folder / "00001.png"], batch_size=1)
    named = {"target": "vqct_plugin.runs.datasets.Images", "params": {"path": str(folder), "size": 16}}
    assert len(prepared(MODEL, named, batch_size=1)[1]["train"]) == 15


def test_an_item_of_tamings_stays_as_it_is():
    item = {"image": np.full((8, 8, 3), -0.5, dtype=np.float32), "class": 3}
    (found,) = GivenImages([item], 16, random_crop=True, flip=True)
    assert np.array_equal(found["image"], item["image"])
    assert found["class"] == 3
    gray = GivenImages([np.full((9, 9), 255, dtype=np.uint8), torch.ones(1, 9, 9)], 8)
    assert all(item["image"].shape == (8, 8, 3) and item["image"].min() == 1 for item in gray)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (FLOATS * 2 - 1, r"item 0 is an array .*float32, from -1 to 1; expected floats from 0 to 1\."),
        (FLOATS * float("nan"), "from nan to nan; expected"),
        (np.zeros((4, 4, 7), dtype=np.uint8), r"is an array \(4, 4, 7\) of uint8; expected uint8 \(H, W, 3\)"),
        (np.zeros((4, 4, 3), dtype=np.int64), r"\(4, 4, 3\) of int64; expected uint8"),
        ({"picture": 1}, "item 0 has picture; expected the key image"),
        ("a.png", "item 0 is a str; expected an image"),
    ],
)
def test_an_item_that_is_no_image_is_refused(item, sentence):
    with pytest.raises(DataError, match=sentence):
        GivenImages([item, item], 8)[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((torch.nn.Linear(1, 1), []), "config is a model, a Linear; expected what it is made from"),
        ((3, []), "config is a int; expected the path of a YAML, a mapping"),
        (({"model": object()}, []), "holds what no YAML can"),
        (("nowhere.yaml", []), "there is no config nowhere.yaml"),
        ((MODEL, []), "the list that was given as data is empty"),
        ((MODEL, iter([1])), "a list_iterator was given as data; expected a data set with __len__"),
        ((MODEL, {"train": 1}), "data is a mapping with train; expected the key target"),
        ((MODEL, "nowhere"), "there is no folder or list file nowhere"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError), match=sentence):
        train(*arguments, batch_size=1, trainer={"accelerator": "cpu"})
    one_step = {"accelerator": "cpu", "max_steps": 1}  # had it been taken
    with pytest.raises(DataError, match="size is 0; expected the side"):
        train(MODEL, write_folder(tmp_path / "images", 1), size=0, batch_size=1, trainer=one_step)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(ConfigError, match="seed is 'a'; expected an integer from 0"):
        train(MODEL, [PIXELS], batch_size=1, seed="a", trainer=one_step)
    with pytest.raises(ConfigError, match="size is 3, but no data is given"):
        train(MODEL, size=3)
    assert os.listdir(tmp_path) == []


def test_a_run_over_pictures_goes_on_where_they_are_given_again(tmp_path):
    pictures = [np.asarray(Image.open(write_folder(tmp_path / "i", 4) / f"{i:05}.png")) for i in range(4)]
    options = {"trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False}}
    done = train(MODEL, pictures, batch_size=2, logdir=tmp_path / "logs", **options)
    assert done.trainer.global_step == 1
    options["trainer"]["max_steps"] = 3
    with pytest.raises(DataError, match=r"trained on data given in Python, a builtins\.list, .*give it again"):
        train(resume=done.folder, **options)
    again = train(data=pictures, resume=done.folder, **options)
    assert (again.folder, again.trainer.global_step) == (done.folder, 3)


def test_a_resumed_run_has_nothing_of_the_data_before_where_other_is_given(trained, tmp_path):
    """The run's own config has photographs of a split, and a validation set; a folder takes no split."""
    folder = write_folder(tmp_path / "images", 4)
    options = {"trainer": {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": -1}}
    file = sorted((trained / "configs").glob("*-project.yaml"))[-1]
    of_run = OmegaConf.load(file)
    of_run.model.params.monitor = "val/rec_loss"
    of_run.data.params.train.params.random_crop = False
    OmegaConf.save(of_run, file)
    options["trainer"]["max_steps"] = 7
    done = train(data=folder, resume=trained, **options)
    assert (done.folder, done.trainer.global_step) == (trained, 7)
    options["trainer"]["max_steps"] = 8
    again = train(resume=trained, **options)  # of the folder, as the run now has it
    for run in (done, again):
        (images,) = run.trainer.datamodule.datasets.values()
        assert (type(images).__name__, len(images), images.random_crop) == ("Images", 4, True)
        assert getattr(run.model, "monitor", None) is None
