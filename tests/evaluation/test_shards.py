"""What is kept of an evaluation: by what it is known again, and what a broken file costs."""

import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
pytest.importorskip("taming", reason="taming-transformers is not installed")
pytest.importorskip("skimage", reason="the photographs are scikit-image's")

import torch
from PIL import Image

from tests.evaluation.conftest import quick
from vqct_plugin.commands import evaluate as command
from vqct_plugin.evaluation import identity, image_set, shards
from vqct_plugin.evaluation.image_set import take_readable
from vqct_plugin.evaluation.weights import INCEPTION, VGG
from vqct_plugin.runs.config import ConfigError, DataError
from vqct_plugin.runs.load import load_first_stage

pytestmark = pytest.mark.usefixtures("no_weights")


@pytest.fixture
def saved(monkeypatch):
    """The shards that are written, in their order."""
    files, save = [], shards._save
    monkeypatch.setattr(shards, "_save", lambda file, shard: files.append(file) or save(file, shard))
    return files


@pytest.fixture(scope="module")
def ours(trained):
    return load_first_stage(trained["vqct"])


def break_file(file):
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    return good


def test_a_broken_image_is_listed_and_loses_no_shard(ours, photographs, tmp_path, saved):
    its = {"output": tmp_path / "a", "images": photographs, "size": 32, "shard_size": 5}
    names = sorted(photographs.iterdir())
    good = break_file(names[6])
    Image.new("RGB", (1, 1)).save(photographs / "zdot.png")
    with pytest.raises(DataError) as error:
        quick([ours], **its)
    told = str(error.value)
    assert told.startswith(f"2 of 15 images cannot be used: the image {names[6]} cannot be read: ")
    assert "zdot.png is 1 x 1 pixels" in told
    assert told.endswith("All others are measured and kept: mend these, or leave them out with skip_broken=True")
    assert "\n" not in told
    assert not (tmp_path / "a" / "table.md").exists()
    assert len(saved) == 3

    (found,) = quick([ours], skip_broken=True, **its)
    assert len(saved) == 3  # nothing was measured again
    assert (found.images, len(found.values["psnr"])) == (13, 13)
    assert [Path(file) for file in found.files] == [file for file in names if file != names[6]]
    assert list(found.broken) == [str(names[6]), str(photographs / "zdot.png")]
    table = (tmp_path / "a" / "table.md").read_text()
    assert f"- left out: the image {names[6]} cannot be read" in table

    names[6].write_bytes(good)
    (photographs / "zdot.png").unlink()
    (mended,) = quick([ours], **its)
    assert [file.name[:6] for file in saved[3:]] == ["000001", "000002"]  # those two shards alone
    assert mended.images == 14
    assert mended.broken == {}
    whole = {file: value for file, value in zip(mended.files, mended.values["l1"])}
    assert found.values["l1"] == pytest.approx([whole[file] for file in found.files], rel=1e-5)


def test_what_was_broken_is_tried_again_though_no_file_has_changed(ours, photographs, tmp_path, saved, monkeypatch):
    """A drive that comes back, or permissions that are given, change neither a file's size nor its time."""
    its = {"output": tmp_path / "a", "images": photographs, "size": 32, "shard_size": 5, "limit": 10}
    names = sorted(photographs.iterdir())
    read, errors = image_set.Readable.__getitem__, {names[2]: OSError("gone"), names[7]: OSError("gone")}

    def read_or_fail(self, index):
        error = errors.get(Path(self.files[index]))
        return image_set.Broken(self.files[index], str(error), index) if error else read(self, index)

    monkeypatch.setattr(image_set.Readable, "__getitem__", read_or_fail)
    with pytest.raises(DataError, match="2 of 10 images cannot be used: gone; gone"):
        quick([ours], **its)
    errors[names[2]] = OSError("another reason")
    with pytest.raises(DataError, match="2 of 10 images cannot be used: another reason; gone"):
        quick([ours], **its)
    assert [file.name[:6] for file in saved] == ["000000", "000001", "000000"]
    del errors[names[7]]
    (found,) = quick([ours], skip_broken=True, **its)
    assert [file.name[:6] for file in saved[3:]] == ["000001"]  # that shard alone
    assert (found.images, found.broken) == (9, {str(names[2]): "another reason"})
    errors.clear()
    (mended,) = quick([ours], **its)
    assert (mended.images, mended.broken) == (10, {})
    assert [Path(file) for file in mended.files] == names[:10]


def test_what_has_no_file_name_is_tried_again_too(ours, tmp_path, saved, monkeypatch):
    its, broken, read = {"output": tmp_path / "a", "limit": 6, "shard_size": 3}, [4], shards.build_image_set

    class Nameless(torch.utils.data.Dataset):
        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, index):
            if index in broken:
                raise OSError("gone")
            return {key: value for key, value in self.items[index].items() if key == "image"}

    def build(*args):
        items = read(*args)
        return torch.utils.data.Subset(Nameless(items.dataset), items.indices)

    monkeypatch.setattr(shards, "build_image_set", build)
    with pytest.raises(DataError, match="1 of 6 images cannot be used: item 4 cannot be loaded: OSError: gone"):
        quick([ours], **its)
    broken.clear()
    (found,) = quick([ours], **its)
    assert (found.images, len(saved)) == (6, 3)


@pytest.mark.parametrize("settings", [{}, {"workers": 1}])
def test_where_all_are_broken_one_sentence_says_so(ours, photographs, tmp_path, settings):
    for file in photographs.iterdir():
        break_file(file)
    with pytest.raises(DataError, match=r"^14 of 14 images cannot be used: .*; and 9 more$") as error:
        quick([ours], tmp_path / "a", images=photographs, size=32, skip_broken=True, **settings)
    assert "Traceback" not in str(error.value)


def test_the_command_names_its_flag(trained, photographs, tmp_path, capsys):
    break_file(photographs / "5.png")
    words = [str(trained["vqct"]), "--images", str(photographs), "-o", str(tmp_path / "a"), "--quiet"]
    assert command.main(words) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("vqct-evaluate: 1 of 14 images cannot be used")
    assert told[-1].endswith("leave them out with --skip-broken")
    assert command.main([*words, "--skip-broken"]) == 0
    assert re.search(r"\| images +\| 13 ", capsys.readouterr().out)


def test_a_damaged_shard_is_made_again(ours, tmp_path, saved, caplog):
    its = {"output": tmp_path / "a", "limit": 9, "shard_size": 3}
    (before,) = quick([ours], **its)
    saved[0].write_bytes(saved[0].read_bytes()[:-40])
    saved[1].write_bytes(b"")
    np.savez(saved[2].open("wb"), counts=np.zeros(64))
    with caplog.at_level(logging.WARNING):
        (after,) = quick([ours], **its)
    assert [f"the shard {file} is damaged, and is made again" in caplog.text for file in saved[:3]] == [True] * 3
    assert saved[3:] == saved[:3]
    assert after.values == before.values


def test_a_full_disk_is_said_with_the_file(ours, tmp_path, monkeypatch):
    kept, write = [], shards.write_whole

    def full(file, data, overwrite):
        if kept:
            raise OSError(28, "No space left on device")
        kept.append(file)
        write(file, data, overwrite)

    monkeypatch.setattr(shards, "write_whole", full)
    with pytest.raises(DataError, match=r"the shard .*000001-\w+\.npz cannot be written: No space left on device"):
        quick([ours], tmp_path / "a", limit=6, shard_size=2)
    assert [file for file in (tmp_path / "a").rglob("*") if file.is_file()] == kept


def test_shards_are_of_these_weights(trained, tmp_path, saved):
    """Other weights in a file of the same name, size and time are another model; the same ones elsewhere are not."""
    run = tmp_path / "run"
    shutil.copytree(trained["vqct"], run)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    its = {"output": tmp_path / "a", "limit": 3}
    (before,) = quick([run], **its)
    moved = run.rename(tmp_path / "moved")
    file = moved / "checkpoints" / "last.ckpt"
    os.utime(file)
    (same,) = quick([moved], **its)
    assert len(saved) == 1
    assert same.values == before.values

    status = file.stat()
    checkpoint["state_dict"]["decoder.conv_out.bias"] += 0.5
    torch.save(checkpoint, file)
    assert file.stat().st_size == status.st_size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    (after,) = quick([moved], **its)
    assert len(saved) == 2
    assert after.values["l1"] != before.values["l1"]


def test_shards_are_of_this_config(trained, tmp_path):
    """With another topk, the figures and the bits are both of the new model."""
    run, concat = tmp_path / "run", "model.params.combine=concat"
    shutil.copytree(trained["vqct"], run)
    file = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint["state_dict"]["quantize.settings"]  # which would refuse it
    torch.save(checkpoint, file)
    both = [quick([run], tmp_path / "a", limit=3, overrides=(f"model.params.topk={k}", concat))[0] for k in (2, 1)]
    (alone,) = quick([run], tmp_path / "b", limit=3, overrides=("model.params.topk=1", concat))
    assert both[1].values == alone.values != both[0].values
    assert both[1].bits == alone.bits < both[0].bits


def test_shards_are_of_these_libraries_and_this_code(ours, tmp_path, saved, monkeypatch):
    its = {"output": tmp_path / "a", "limit": 2}
    quick([ours], **its)
    quick([ours], **its)
    assert len(saved) == 1
    version = identity.find_version
    monkeypatch.setattr(identity, "find_version", lambda name: "0.1" if name == "pillow" else version(name))
    quick([ours], **its)
    assert len(saved) == 2
    monkeypatch.setattr(identity, "_hash_package", lambda: "another")
    quick([ours], **its)
    assert len(saved) == 3
    assert identity.find_version("torch") == torch.__version__.split("+")[0] or identity.find_version("torch")
    assert identity.find_version("no-such-library") == ""


def test_more_images_keep_the_whole_shards(ours, tmp_path, saved):
    its = {"output": tmp_path / "a", "shard_size": 2}
    quick([ours], limit=5, **its)
    quick([ours], limit=7, **its)
    assert [file.name[:6] for file in saved] == ["000000", "000001", "000002", "000002", "000003"]


def test_a_model_that_no_checkpoint_holds_is_not_left_to_processes(trained, tmp_path):
    its = load_first_stage(trained["vqct"])
    with torch.no_grad():
        its.model.decoder.conv_out.bias += 1
    with pytest.raises(DataError, match=r"the model in memory is another than that of .*last\.ckpt; .*processes=1"):
        quick([its], tmp_path / "a", limit=2, processes=2)


def test_a_process_that_was_killed_is_told_of(ours, tmp_path, monkeypatch):
    def killed(*args, **keywords):
        raise torch.multiprocessing.ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 2, -9)

    monkeypatch.setattr(torch.multiprocessing, "spawn", killed)
    with pytest.raises(DataError, match=r"process 1 terminated with signal SIGKILL; .*fewer processes or a smaller"):
        quick([ours], tmp_path / "a", limit=2, processes=2)


def test_weights_that_are_not_there_are_refused(ours, tmp_path, monkeypatch):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match=rf"weights is .*nowhere, which is not a folder; expected one with {VGG} or"):
        quick([ours], tmp_path / "a", limit=1, weights=str(nowhere))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"weights is .*empty, which has neither {VGG} nor {INCEPTION}"):
        quick([ours], tmp_path / "a", limit=1, weights=str(tmp_path / "empty"))
    monkeypatch.setenv("VQCT_WEIGHTS", str(nowhere))
    with pytest.raises(ConfigError, match=r"VQCT_WEIGHTS is .*nowhere, which is not a folder"):
        quick([ours], tmp_path / "a", limit=1)


@pytest.mark.parametrize("name", [VGG, INCEPTION])
def test_damaged_weights_are_named(ours, tmp_path, name):
    for module in ("torchmetrics", "torch_fidelity"):
        pytest.importorskip(module)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / name).write_bytes(b"no weights at all")
    with pytest.raises(
        DataError, match=rf"{name} cannot be loaded, it may be damaged or of another network: "
    ) as error:
        quick([ours], tmp_path / "a", limit=1, weights=str(folder))
    assert "\n" not in str(error.value)


def test_runs_of_different_rates_are_warned_of(trained, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = quick(trained.values(), tmp_path / "a", limit=2)
    (line,) = [record.getMessage() for record in caplog.records if "rates" in record.getMessage()]
    assert line.startswith(f"the runs have different rates, in bits per image: {found[0].name}: 3,456; ")
    assert line in (tmp_path / "a" / "table.md").read_text()


def test_a_package_that_is_absent_is_one_sentence(trained, monkeypatch, tmp_path, capsys):
    def absent(**keywords):
        raise ImportError("the photographs come with scikit-image")

    from vqct_plugin.evaluation import runs

    monkeypatch.setattr(runs, "evaluate_runs", absent)
    assert command.main([str(trained["stock"]), "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "vqct-evaluate: the photographs come with scikit-image\n"


class Numbers(torch.utils.data.Dataset):
    """0 to 9, of which some cannot be read."""

    def __init__(self, broken):
        self.broken = broken

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index in self.broken:
            raise DataError(f"{index} is broken")
        return {"image": index}


def test_images_to_look_at_are_those_that_can_be_read():
    def take(broken, places, number=10):
        items = torch.utils.data.Subset(Numbers(broken), range(number))
        return [(place, item["image"]) for place, item in take_readable(items, places)]

    assert take((), [1, 5]) == [(1, 1), (5, 5)]
    assert take((1, 2), [1, 3]) == [(3, 3), (4, 4)]
    assert take((9,), [9]) == [(0, 0)]
    assert take((0, 1), [0, 1, 2], number=3) == [(2, 2)]
    with pytest.raises(DataError, match="2 is broken"):
        take((0, 1, 2), [0], number=3)
