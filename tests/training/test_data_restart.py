"""A stopped run over shards, or over a table of Hugging Face's, goes on to the batches of an uninterrupted one."""

import os
import signal
import sys
import types

import numpy as np
import pytest
import yaml

from tests.runs.shards import make_table, write_shards
from tests.runs.tiny import config as tiny

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")
from pytorch_lightning.callbacks import Callback

from vqct_plugin.training.launcher import run

STEPS = 11  # 15 images in batches of two: eight an epoch


class Record(Callback):
    """What each step was shown, bitwise; Ctrl-C in the batch after which ``stop`` steps are made."""

    seen, stop = {}, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen[trainer.global_step] = (batch["file_path_"], np.asarray(batch["image"]).tobytes())
        if trainer.global_step + 1 == self.stop:
            os.kill(os.getpid(), signal.SIGINT)


def write(folder, kind, workers):
    config = tiny()
    if kind == "shards":
        write_shards(folder / "data")
        target, more = "vqct_plugin.runs.shards.ShardedImages", {"shards_at_once": 2}
    else:
        make_table().save_to_disk(folder / "data")
        target, more = "vqct_plugin.runs.hugging_face.HuggingFaceImages", {}
    params = {"path": str(folder / "data"), "size": 16, "random_crop": True, "flip": True, **more}
    config["data"]["params"].update(train={"target": target, "params": params}, num_workers=workers)
    del config["data"]["params"]["validation"]
    config["lightning"]["callbacks"] = {"record": {"target": "recording.Record"}, "image_logger": None}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


@pytest.fixture
def record(monkeypatch):
    module = types.ModuleType("recording")
    module.Record = Record
    monkeypatch.setitem(sys.modules, "recording", module)
    monkeypatch.setattr(Record, "seen", {})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Record
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("kind", "how", "workers"), [("shards", "max_steps", 0), ("shards", "ctrl-c", 1), ("datasets", "max_steps", 0)]
)
def test_a_run_in_two_pieces_sees_the_batches_of_one(kind, how, workers, tmp_path, record, monkeypatch):
    if kind == "datasets":
        pytest.importorskip("datasets")
    file = write(tmp_path, kind, workers)
    run([file], trainer={"max_steps": STEPS}, logdir=tmp_path / "whole")
    whole, record.seen = record.seen, {}
    if how == "max_steps":
        run([file], trainer={"max_steps": 5}, logdir=tmp_path / "logs")
    else:
        monkeypatch.setattr(record, "stop", 5)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run([file], trainer={"max_steps": STEPS}, logdir=tmp_path / "logs")
        monkeypatch.setattr(record, "stop", None)
    assert list(record.seen) == list(range(5))
    run(resume=True, trainer={"max_steps": STEPS}, logdir=tmp_path / "logs")
    assert list(record.seen) == list(range(STEPS))
    assert record.seen == whole
    assert len({images for _, images in whole.values()}) == STEPS


def test_other_data_at_a_resume_are_named_and_moved_data_are_not(tmp_path, record, caplog):
    folder = run([write(tmp_path, "shards", 0)], trainer={"max_steps": 1}, logdir=tmp_path / "logs").folder
    moved = tmp_path / "elsewhere"
    (tmp_path / "data").rename(moved)
    overrides = [f"data.params.train.params.path={moved}"]
    run(resume=folder, overrides=overrides, trainer={"max_steps": 2})
    assert "not the data" not in caplog.text
    write_shards(moved, (5, 4, 6, 1))
    run(resume=folder, overrides=overrides, trainer={"max_steps": 3})
    (warning,) = (text for text in caplog.messages if "not the data" in text)
    assert warning.startswith("data.params.train are not the data that this run was trained on: 16 images and not 15")
    run(resume=folder, overrides=overrides, trainer={"max_steps": 4})  # what it was trained on last
    assert sum("not the data" in text for text in caplog.messages) == 1
