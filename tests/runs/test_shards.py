"""Images in shards are those of a folder, in webdataset's sense of a sample; damage is left out up to a limit."""

import doctest
import gzip
import json
import logging
import os
import tarfile

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning")
pytest.importorskip("omegaconf")

from tests.runs.shards import photograph, write_folder, write_shard, write_shards
from vqct_plugin.evaluation.identity import identify_files
from vqct_plugin.runs import shards as module
from vqct_plugin.runs.batches import Items, Order
from vqct_plugin.runs.config import DataError
from vqct_plugin.runs.datasets import DataModuleFromConfig, Images
from vqct_plugin.runs.image_files import list_files
from vqct_plugin.runs.shards import ShardedImages, expand_braces, list_shards


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "shards")


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(module).failed == 0


def test_shards_hold_the_images_of_the_folder(folder, tmp_path):
    plain = Images(write_folder(tmp_path / "plain"), 16)
    sharded = ShardedImages(folder, 16)
    assert len(sharded) == len(plain) == 15
    for i in range(15):
        assert np.array_equal(sharded[i]["image"], plain[i]["image"])
    assert sharded[7]["file_path_"] == sharded.paths[7] == f"{folder}/train-001.tar/00007.png"
    assert list_files(sharded) == sharded.paths
    with pytest.raises(IndexError):
        sharded[15]


def test_a_sample_is_what_webdataset_takes_for_one(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    png = photograph(0)
    names = ["a/0.png", "a/0.json", "a.b/1.input.png", "a.b/1.PNG", "./2.txt", "./2.seg.png", "__meta__", "3/x.Jpg"]
    names += ["no_ending", ".hidden", "4.cls", "4.jpeg", "5.txt", "0.png"]
    shard = write_shard(tmp_path / "a.tar", [(name, png) for name in names])
    theirs = webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False)
    for image in ("jpg;jpeg;png", "input.png", "seg.png;png"):
        expected = []
        for sample in theirs:
            found = [ending for ending in image.split(";") if ending in sample]
            expected += [sample["__key__"] + "." + found[0]] if found else []
        ours = [path[len(str(shard)) + 1 :] for path in ShardedImages(shard, 16, image=image).paths]
        assert [name.lower() for name in ours] == [name.lower() for name in expected]


def test_patterns_are_webdatasets(tmp_path):
    urls = pytest.importorskip("webdataset.shardlists").expand_urls
    for pattern in ("a-{000..012}.tar", "{a,b}-{8..11}.tar", "a.tar", "{x,y}{0..1}/{3..1}.tar"):
        assert expand_braces(pattern) == list(urls(pattern))
    for name in ("b-1.tar", "b-0.tar", "sub/c.tar"):
        write_shard(tmp_path / name, [("0.png", b"")]) if "/" not in name else None
    (tmp_path / "sub").mkdir()
    write_shard(tmp_path / "sub" / "c.tar", [])
    assert [shard.name for shard in list_shards(tmp_path)] == ["b-0.tar", "b-1.tar", "c.tar"]
    assert [shard.name for shard in list_shards([f"{tmp_path}/b-?.tar", tmp_path / "sub"])] == [
        "b-0.tar", "b-1.tar", "c.tar"
    ]  # fmt: skip


def order(dataset, epoch=0, processes=1, rank=0):
    sampler = Order(Items(dataset, 23, "x"), processes, rank, shuffle=True, seed=23)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_mixes_some_shards_at_a_time_or_all(folder):
    first, counts = [0, 5, 9, 15], (5, 4, 6)
    all_mixed, by_one = ShardedImages(folder, 16), ShardedImages(folder, 16, shards_at_once=1)
    for dataset in (all_mixed, by_one):
        assert sorted(order(dataset)) == list(range(15))
        assert order(dataset) == order(dataset) != order(dataset, epoch=1)
        ranks = [order(dataset, processes=2, rank=rank) for rank in (0, 1)]  # 16 with one shown twice
        assert [i for pair in zip(*ranks) for i in pair][:15] == order(dataset)
    of = np.searchsorted(first, order(by_one), side="right") - 1
    assert sorted(len(run) for run in np.split(of, np.flatnonzero(np.diff(of)) + 1)) == sorted(counts)
    assert len(np.flatnonzero(np.diff(np.searchsorted(first, order(all_mixed), side="right")))) > 4
    starts = {order(by_one, epoch)[0] for epoch in range(20)}
    assert len(starts) > 5  # neither the shards nor the images in them are in their order


def cut(path):
    path.write_bytes(path.read_bytes()[:3000])  # inside of the second sample, 00006


def spoil(path):
    content = bytearray(path.read_bytes())
    at = content.index(b"00006.png")
    content[at : at + 400] = b"\xff" * 400
    path.write_bytes(content)


def drop_end(path):
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"00006.png")])


@pytest.mark.parametrize(
    ("damage", "kept", "sentence"),
    [
        (cut, [5], r"cannot be read to its end: unexpected end of data"),
        (spoil, [5], r"cannot be read beyond byte [\d,]+: it is damaged there"),
        (drop_end, [5], r"cannot be read beyond byte [\d,]+: it ends there, without the mark"),
        (lambda p: p.write_bytes(b"<html>not found</html>" * 99), [], r"cannot be read to its end"),
        (lambda p: p.write_bytes(b""), [], r"cannot be read to its end"),
    ],
)
def test_a_damaged_shard_is_left_out_from_the_damage_on(folder, damage, kept, sentence):
    damage(folder / "train-001.tar")
    with pytest.raises(DataError, match=rf"1 of 3 shards are damaged, and max_damaged_shards is 0: .*{sentence}"):
        ShardedImages(folder, 16)
    dataset = ShardedImages(folder, 16, max_damaged_shards=1)
    numbers = [int(path[-9:-4]) for path in dataset.paths]
    assert numbers == [*range(5), *kept, *range(9, 15)]
    assert all(item["image"].shape == (16, 16, 3) for item in dataset)
    assert list(dataset.damaged) == [str(folder / "train-001.tar")]


def test_a_shard_without_an_image_is_not_to_be_fetched_again(folder):
    empty = write_shard(folder / "train-001.tar", [("5.json", b"{}")])
    sentence = (
        r"1 of 3 shards have no image, and max_damaged_shards is 0: .*001\.tar holds no image of jpg.*; leave it out"
    )
    with pytest.raises(DataError, match=sentence) as caught:
        ShardedImages(folder, 16)
    assert "etch" not in str(caught.value)
    dataset = ShardedImages(folder, 16, max_damaged_shards=1)
    assert (len(dataset), list(dataset.damaged)) == (11, [str(empty)])
    cut(folder / "train-002.tar")
    with pytest.raises(DataError, match=r"2 of 3 shards are damaged, .*leave it out; .*Fetch the damaged ones again"):
        ShardedImages(folder, 16)


def test_the_ending_may_have_its_dot(folder):
    assert len(ShardedImages(folder, 16, image=".PNG")) == 15
    with pytest.raises(DataError, match=r"there is no image in 3 shards, .*looked for gif;jpg$"):
        ShardedImages(folder, 16, image=".gif; jpg")
    for image in ("", ".", 3):
        with pytest.raises(DataError, match=r"image is .*; expected an ending, such as 'png'"):
            ShardedImages(folder, 16, image=image)


def test_a_shard_that_is_not_there_is_a_damaged_one(folder):
    pattern = f"{folder}/train-{{000..003}}.tar"
    with pytest.raises(DataError, match=r"1 of 4 shards are damaged.*there is no shard .*train-003\.tar"):
        ShardedImages(pattern, 16)
    assert len(ShardedImages(pattern, 16, max_damaged_shards=1)) == 15


def test_what_is_no_shard_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(b"x" * 2000))
    for path, sentence in (
        (tmp_path / "a.tar", r"a\.tar is compressed \(gzip\).*unpack it first"),
        ("https://host/a-{0..9}.tar", "at an address, https://host.*copy them first"),
        ("pipe:aws s3 cp s3://b/a.tar -", "at an address, pipe:"),
        (str(tmp_path / "b-*.tar"), r"no file has the pattern .*b-\*\.tar"),
        ([], "the list of shards is empty"),
    ):
        with pytest.raises(DataError, match=sentence):
            ShardedImages(path, 16)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DataError, match="there is no shard in"):
        ShardedImages(tmp_path, 16)
    for name, value in (("shards_at_once", 0), ("max_damaged_shards", -1), ("max_damaged_shards", "3")):
        with pytest.raises(DataError, match=rf"{name} is {value!r}; expected an integer of [01] or more"):
            ShardedImages(tmp_path, 16, **{name: value})


def module_of(path, most, **params):
    target = {"target": "vqct_plugin.runs.shards.ShardedImages", "params": {"path": str(path), "size": 16, **params}}
    data = DataModuleFromConfig(4, target, target, num_workers=0, max_damaged=most)
    data.setup()
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_left_out_to_a_limit_and_said_once(folder, workers, caplog):
    files = [(f"{i:05}.png", b"not a picture" if i in (16, 17) else photograph(i)) for i in range(15, 19)]
    write_shard(folder / "train-003.tar", files)
    cut(folder / "train-001.tar")
    with pytest.raises(DataError, match=r"00016\.png cannot be read.*up to N such images, give data\.params\.max_da"):
        list(module_of(folder, 0, max_damaged_shards=1).val_dataloader())
    with pytest.raises(
        DataError, match=r"0001[67]\.png .*By now 2 images of data\.params\.validation cannot be loaded"
    ):
        list(module_of(folder, 1, max_damaged_shards=1).val_dataloader())
    data = module_of(folder, 2, max_damaged_shards=1)
    data.num_workers = workers
    batches = list(data.val_dataloader())
    names = [name[-9:-4] for batch in batches for name in batch["file_path_"]]
    assert names[-4:] == ["00015", "00018", "00018", "00018"]  # the next one in the place of each
    assert len(names) == 16
    list(data.val_dataloader())
    assert not caplog.records
    caplog.set_level(logging.WARNING, "vqct_plugin")
    data.teardown("fit")
    data.teardown("test")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3  # each set has a damaged shard
    assert "data.params.train: 1 damaged shards were left out from the damage on, such as: the shard " in said[0]
    assert "data.params.validation: 2 damaged images were left out, such as: the image " in said[2]


def test_a_check_passes_over_damaged_images(tmp_path):
    files = [("0.png", b"not a picture"), ("1.png", photograph(1))]
    write_shard(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=r"0\.png cannot be read: cannot identify image file\. To"):
        module_of(tmp_path, 0).check()
    module_of(tmp_path, 1).check()


def test_figures_of_other_shards_of_the_same_names_are_not_taken(folder):
    class Subset:
        def __init__(self):
            self.dataset, self.indices = ShardedImages(folder, 16), [0, 7]

    before = identify_files(Subset())
    assert before == identify_files(Subset())
    write_shard(folder / "train-000.tar", [(f"{i:05}.png", photograph(50 + i)) for i in range(5)])
    assert identify_files(Subset()) != before


def load_after(change, state, data, caplog):
    """What is said where these data are resumed after a change."""
    caplog.clear()
    change()
    again = DataModuleFromConfig(2, **data)
    again.setup()
    again.load_state_dict(state)
    return caplog.text


@pytest.mark.parametrize("kind", ["shards", "images"])
def test_a_checkpoint_knows_the_data_that_it_was_trained_on(kind, folder, tmp_path, caplog):
    if kind == "images":
        folder, target = write_folder(tmp_path / "plain"), "vqct_plugin.runs.datasets.Images"
    else:
        target = "vqct_plugin.runs.shards.ShardedImages"
    data = {"train": {"target": target, "params": {"path": str(folder), "size": 16}}}
    first = DataModuleFromConfig(2, **data)
    first.setup()
    state = json.loads(json.dumps(first.state_dict()))  # no more than what Lightning loads without running code
    assert str(tmp_path) not in json.dumps(state)
    names = sorted(file.name for file in folder.iterdir())

    def load(change=lambda: None):
        return load_after(change, state, data, caplog)

    assert load() == ""
    assert load(lambda: os.utime(folder / names[0], (0, 0))) == ""
    assert load_after(lambda: None, {}, data, caplog) == ""  # of an earlier version
    said = load(lambda: (folder / names[0]).rename(folder / f"a-{names[0]}"))
    assert f"other names of {kind}; the batches will not be those" in said
    (folder / f"a-{names[0]}").rename(folder / names[0])
    if kind == "shards":
        with tarfile.open(folder / names[0]) as archive:
            contents = [(member.name, archive.extractfile(member).read()) for member in archive]
        said = load(lambda: write_shard(folder / names[0], [(n, c + bytes(1024)) for n, c in contents]))
        assert "trained on: other sizes of shards; the batches" in said
    said = load(lambda: (folder / names[-1]).unlink())
    assert f"{9 if kind == 'shards' else 14} images and not 15" in said
    assert f"other names of {kind}" in said


def test_data_of_another_kind_are_told_by_their_number(folder, tmp_path, caplog):
    shards = DataModuleFromConfig(
        2, {"target": "vqct_plugin.runs.shards.ShardedImages", "params": {"path": str(folder), "size": 16}}
    )
    shards.setup()
    photographs = {"target": "vqct_plugin.runs.photographs.Photographs", "params": {"split": "train", "size": 8}}
    said = load_after(lambda: None, shards.state_dict(), {"train": photographs}, caplog)
    assert "1024 images and not 15, no shards and not 3, " in said
