"""What an epoch shows depends on seed, epoch and item alone; bad data is named."""

import random
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

pytest.importorskip("pytorch_lightning")
pytest.importorskip("omegaconf")
from PIL import Image

from vqct_plugin.runs.batches import Batches, Items
from vqct_plugin.runs.config import ConfigError, DataError
from vqct_plugin.runs.datasets import CUB, DataModuleFromConfig, Images, LabeledImages
from vqct_plugin.runs.photographs import FILES, Photographs


class Noise(torch.utils.data.Dataset):
    """Items that draw from each generator a data set may use."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return {"index": index, "draws": np.array([random.random(), np.random.rand(), float(torch.rand(()))])}


def batches(epoch=0, begin=0, workers=0, processes=1, rank=0, batch_size=3, dataset=None, shuffle=True):
    items = Items(dataset if dataset is not None else Noise(), 23, "data.params.train")
    sampler = DistributedSampler(items, processes, rank, shuffle=shuffle, seed=23)
    return Batches(items, sampler, batch_size, workers, lambda: (epoch, begin))


def content(some):
    return [(int(i), tuple(d.tolist())) for batch in some for i, d in zip(batch["index"], batch["draws"])]


def test_an_epoch_shows_every_item_once_and_again_the_same():
    first = content(batches())
    assert sorted(i for i, _ in first) == list(range(11))
    assert content(batches()) == first
    assert len(batches()) == 4
    assert [i for i, _ in content(batches(epoch=1))] != [i for i, _ in first]
    draws = [d for epoch in range(2) for _, d in content(batches(epoch=epoch))]
    assert len(set(draws)) == 22  # new numbers for each item and epoch


def test_an_epoch_goes_on_from_any_batch():
    whole = content(batches(epoch=3))
    for begin in range(5):
        assert content(batches(epoch=3, begin=begin)) == whole[3 * begin :]


def test_workers_change_nothing():
    assert content(batches(workers=2)) == content(batches())


def test_workers_leave_ctrl_c_to_the_training():
    class Handlers(Noise):
        def __getitem__(self, index):
            return {"ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN}

    assert all(bool(batch["ignored"].all()) for batch in batches(workers=1, dataset=Handlers()))


def test_a_check_loads_the_first_item_of_each_set(tmp_path):
    (tmp_path / "list.txt").write_text("gone.jpg")
    gone = {"target": "vqct_plugin.runs.datasets.Images", "params": {"path": str(tmp_path / "list.txt"), "size": 8}}
    there = {"target": "vqct_plugin.runs.photographs.Photographs", "params": {"split": "train", "size": 8}}
    for sets, sentence in (
        ({"train": there}, None),
        ({"train": there, "test": gone}, r"there is no image .*gone\.jpg"),
    ):
        data = DataModuleFromConfig(2, **sets)
        data.setup()
        if sentence is None:
            data.check()
            continue
        with pytest.raises(DataError, match=sentence):
            data.check()


def test_processes_share_each_batch():
    one = content(batches(batch_size=4))
    ranks = [content(batches(processes=2, rank=rank, batch_size=2)) for rank in range(2)]
    for step in range(2):  # the last one is filled up to even shares
        of_step = ranks[0][2 * step : 2 * step + 2] + ranks[1][2 * step : 2 * step + 2]
        assert sorted(of_step) == sorted(one[4 * step : 4 * step + 4])


def test_reading_takes_no_random_number_of_the_training():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    content(batches())
    after = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert after == (random.random(), np.random.rand(), float(torch.rand(())))


def test_the_crops_of_tamings_own_data_set_come_back_too(photographs_on_disk):
    pytest.importorskip("taming")
    base = pytest.importorskip("taming.data.base")
    paths = sorted(map(str, photographs_on_disk.rglob("*.png")))
    dataset = base.ImagePaths(paths=paths, size=24, random_crop=True)
    runs = [[b["image"] for b in batches(epoch=e, dataset=dataset, shuffle=False)] for e in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1]))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2]))


@pytest.fixture(scope="module")
def photographs_on_disk(tmp_path_factory):
    """Four crops of scikit-image's photographs, 40 x 32 and 32 x 40, as files in two folders."""
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("photographs")
    for i, tile in enumerate(Photographs("validation", 64)[j]["image"] for j in (0, 9, 20, 40)):
        pixels = ((tile + 1) * 127.5).round().astype(np.uint8)[: 40 if i % 2 else 32, : 32 if i % 2 else 40]
        (folder / "abc"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "abc"[i % 2] / f"{i}.png")
    return folder


def test_images_of_a_folder_and_of_a_list_are_the_same(photographs_on_disk, tmp_path):
    folder = Images(photographs_on_disk, 32)
    assert len(folder) == 4
    names = photographs_on_disk / "list.txt"
    names.write_text("\n".join(str(p.relative_to(photographs_on_disk)) for p in folder.paths) + "\n\n")
    listed = Images(str(names), 32)
    assert [i["file_path_"] for i in listed] == [i["file_path_"] for i in folder]
    for a, b in zip(folder, listed):
        assert np.array_equal(a["image"], b["image"])
        assert a["image"].shape == (32, 32, 3)
        assert a["image"].dtype == np.float32
        assert -1 <= a["image"].min() < 0 < a["image"].max() <= 1


def test_the_crop_is_the_middle_or_anywhere_and_flips_are_mirrors(photographs_on_disk):
    with Image.open(photographs_on_disk / "a" / "0.png") as file:  # 40 wide, 32 high: nothing is scaled
        pixels = np.asarray(file).astype(np.float32) / 127.5 - 1
    middle = Images(photographs_on_disk, 32)[0]["image"]
    assert np.allclose(middle, pixels[:, 4:36], atol=1e-6)
    crops, flipped = set(), 0
    data = Images(photographs_on_disk, 32, random_crop=True, flip=True)
    for seed in range(60):
        random.seed(seed)
        crop = data[0]["image"]
        places = [x for x in range(9) if np.allclose(crop, pixels[:, x : x + 32], atol=1e-6)]
        mirrored = [x for x in range(9) if np.allclose(crop[:, ::-1], pixels[:, x : x + 32], atol=1e-6)]
        assert len(places) + len(mirrored) == 1
        flipped += len(mirrored)
        crops.update(places + mirrored)
    assert crops == set(range(9))
    assert 15 < flipped < 45


def test_larger_images_are_scaled_to_their_shorter_side(tmp_path):
    Image.new("L", (90, 61), 255).save(tmp_path / "gray.png")  # and a gray one becomes RGB
    item = Images(tmp_path, 30)[0]["image"]
    assert item.shape == (30, 30, 3)
    assert np.all(item == 1)


def test_data_that_is_missing_or_empty_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder or list file .*nowhere"):
        Images(tmp_path / "nowhere", 32)
    with pytest.raises(DataError, match=r"there is no image in .*looked for \.jpg"):
        Images(tmp_path, 32)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt names no image"):
        Images(tmp_path / "empty.txt", 32)
    with pytest.raises(DataError, match="size is 0"):
        Images(tmp_path, 0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("whose", ["ours", "taming's"])
def test_an_image_that_cannot_be_read_is_named(whose, workers, photographs_on_disk, tmp_path):
    good = (photographs_on_disk / "a" / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    if whose == "ours":
        dataset = Images(tmp_path, 32)
    else:
        pytest.importorskip("taming")
        dataset = pytest.importorskip("taming.data.base").ImagePaths(paths=[str(tmp_path / "cut.png")], size=32)
    with pytest.raises(DataError, match=r"cut\.png.* cannot be (read|loaded)"):
        list(batches(dataset=dataset, workers=workers))


def test_a_listed_image_that_is_not_there_is_named(tmp_path):
    (tmp_path / "list.txt").write_text("gone.png\n")
    with pytest.raises(DataError, match=r"there is no image .*gone\.png"):
        Images(tmp_path / "list.txt", 32)[0]


def photographs(split="train", **params):
    target = "vqct_plugin.runs.photographs.Photographs"
    return {"target": target, "params": {"split": split, "size": 32, **params}}


def test_the_data_module_builds_what_the_yaml_names():
    data = DataModuleFromConfig(4, photographs(length=10), photographs("validation"), num_workers=0)
    data.setup()
    assert {name: len(d) for name, d in data.datasets.items()} == {
        "train": 10, "validation": len(Photographs("validation", 32))
    }  # fmt: skip
    assert next(iter(data.val_dataloader()))["image"].shape == (4, 32, 32, 3)


def test_the_data_module_refuses_what_it_cannot_use():
    with pytest.raises(DataError, match="batch_size is 0"):
        DataModuleFromConfig(0, photographs())
    with pytest.raises(DataError, match=r"data\.params\.train \(.*\) is empty"):
        DataModuleFromConfig(2, photographs(length=0)).setup()
    with pytest.raises(ConfigError, match=r"takes no data\.params\.train\.params\.lenght; did you mean length\?"):
        DataModuleFromConfig(2, photographs(lenght=3)).setup()


@pytest.mark.parametrize("name", ["batch_size", "num_workers", "seed", "max_damaged"])
@pytest.mark.parametrize("value", [-1, "3", True, 1.5])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(DataError, match=rf"{name} is {value!r}; expected an integer of [01] or more"):
        DataModuleFromConfig(**{"batch_size": 2, name: value})


def test_workers_are_at_most_one_a_core(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert DataModuleFromConfig(2).num_workers == 4
    assert DataModuleFromConfig(8).num_workers == 6
    assert DataModuleFromConfig(8, num_workers=0).num_workers == 0


def test_photographs_held_out_are_never_trained_on():
    """Each pixel is made to tell where it stands: its photograph, its row, its column."""
    pytest.importorskip("skimage")
    train, validation = Photographs("train", 64), Photographs("validation", 64)
    for data in (train, validation):
        assert len(data.photographs) == len(FILES)
        data.photographs = [
            np.stack([*np.indices(p.shape[:2]), np.full(p.shape[:2], i)], -1) for i, p in enumerate(data.photographs)
        ]
    random.seed(0)
    seen = [((train[0]["image"] + 1) * 127.5).round().astype(int) for _ in range(2000)]
    furthest = {i: max(s[..., 1].max() for s in seen if s[0, 0, 2] == i) for i in range(len(FILES))}
    tiles = [((validation[j]["image"] + 1) * 127.5).round().astype(int) for j in range(len(validation))]
    nearest = {i: min(t[..., 1].min() for t in tiles if t[0, 0, 2] == i) for i in range(len(FILES))}
    for i, border in enumerate(train.borders):
        assert furthest[i] < border <= nearest[i]
        assert furthest[i] > border - 8  # and training uses all that it may
    assert len({(t[0, 0, 2], t[0, 0, 0], t[0, 0, 1]) for t in tiles}) == len(tiles)


def test_photographs_refuse_what_they_cannot_be():
    pytest.importorskip("skimage")
    with pytest.raises(ValueError, match="split is 'test'"):
        Photographs("test")
    with pytest.raises(ValueError, match=r"size is 150; expected 1 to \d+, the shorter side"):
        Photographs("train", 150)


def picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


@pytest.fixture
def labeled(tmp_path):
    """Images whose red is their label times ten, and the label maps."""
    rng = np.random.RandomState(0)
    for i in range(3):
        blocks = np.kron(rng.randint(0, 5, (6, 8)), np.ones((8, 8)))
        picture(tmp_path / "labels" / "a" / f"{i}.png", blocks)
        picture(tmp_path / "images" / "a" / f"{i}.png", np.stack([blocks * 10, blocks * 0, blocks * 0], axis=-1))
    return tmp_path


@pytest.mark.parametrize("how", [{}, {"random_crop": True, "flip": True}])
def test_an_image_and_its_labels_are_cropped_and_flipped_alike(labeled, how):
    data = LabeledImages(labeled / "images", labeled / "labels", 5, 48, **how)  # the shorter side: no resizing
    random.seed(0)
    seen = set()
    for _ in range(20):
        item = data[1]
        assert item["segmentation"].shape == (48, 48, 5)
        assert (item["segmentation"].sum(-1) == 1).all()
        labels = item["segmentation"].argmax(-1)
        assert np.allclose(np.round((item["image"][..., 0] + 1) * 12.75), labels)
        seen.add(labels.tobytes())
    assert len(seen) > 5 if how else len(seen) == 1


def test_labels_are_never_mixed_by_resizing(labeled):
    picture(labeled / "labels" / "a" / "0.png", np.kron([[0, 4], [4, 0]], np.ones((24, 32))))
    item = LabeledImages(labeled / "images", labeled / "labels", 5, 20)[0]
    assert set(np.unique(item["segmentation"].argmax(-1))) == {0, 4}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "labels/a/0.png").unlink(), "there is no image .*labels/a/0.png"),
        (lambda f: picture(f / "labels/a/0.png", np.zeros((9, 9))), r"is \(9, 9\), and its image \(64, 48\) pixels"),
        (lambda f: picture(f / "labels/a/0.png", np.full((48, 64), 5)), "has the label 5; expected 0 to 4"),
        (lambda f: picture(f / "labels/a/0.png", np.zeros((48, 64, 3))), "has 3 channels; expected one"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(labeled, change, sentence):
    change(labeled)
    with pytest.raises(DataError, match=sentence):
        LabeledImages(labeled / "images", labeled / "labels", 5, 48)[0]


def test_label_sets_that_cannot_be_are_refused(labeled):
    with pytest.raises(DataError, match="there is no folder of label maps"):
        LabeledImages(labeled / "images", labeled / "none", 5, 48)
    with pytest.raises(DataError, match="n_labels is 1; expected an integer of 2 or more"):
        LabeledImages(labeled / "images", labeled / "labels", 1, 48)


def test_a_list_file_is_looked_up_in_its_root(labeled):
    (labeled / "lists").mkdir()
    (labeled / "lists" / "val.txt").write_text("a/2.png\na/0.png\n")
    data = Images(labeled / "lists" / "val.txt", 48, root=labeled / "images")
    assert [path.name for path in data.paths] == ["2.png", "0.png"]
    assert data[1]["image"].shape == (48, 48, 3)
    data = LabeledImages(labeled / "lists" / "val.txt", labeled / "labels", 5, 48, root=labeled / "images")
    assert data[0]["file_path_"].endswith("a/2.png")
    assert data[0]["segmentation"].shape == (48, 48, 5)


@pytest.fixture
def cub(tmp_path):
    names = ["001.Wren/a.png", "001.Wren/b.png", "002.Jay/c.png"]
    for name in names:
        picture(tmp_path / "images" / name, np.zeros((20, 20, 3)))
    (tmp_path / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (tmp_path / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n")
    return tmp_path


def test_cub_has_its_owners_split(cub):
    assert [path.name for path in CUB(cub, "train", 16).paths] == ["a.png", "c.png"]
    assert [path.name for path in CUB(cub, "test", 16).paths] == ["b.png"]
    assert CUB(cub, "train", 16, random_crop=True, flip=True)[1]["image"].shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "images.txt").unlink(), "cannot read .*images.txt"),
        (lambda f: (f / "train_test_split.txt").write_text("1 1\n2 0\n"), "number other images"),
        (lambda f: (f / "train_test_split.txt").write_text("1 1\n2 1\n3 1\n"), "has no image for test"),
        (lambda f: (f / "images.txt").write_text("1 a b\n"), "has the line '1 a b'; expected a number and a value"),
    ],
)
def test_a_cub_that_is_not_as_published_is_refused(cub, change, sentence):
    change(cub)
    with pytest.raises(DataError, match=sentence):
        CUB(cub, "test", 16)


def test_cub_has_two_splits(cub):
    with pytest.raises(DataError, match="split is 'val'; expected 'train' or 'test'"):
        CUB(cub, "val", 16)
