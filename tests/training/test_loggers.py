"""Loggers that a YAML names in a word: each gets figures and pictures of a real run, on this machine alone; and what is
said where one is not installed."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from omegaconf import OmegaConf
from PIL import Image

from tests.runs.tiny import environment, write
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.training import loggers
from vqct_plugin.training.launcher import run
from vqct_plugin.training.table import MetricsTable
from vqct_plugin.training.trainer import build_loggers, check_loggers

TWO_STEPS = {
    "lightning.callbacks.codebook_usage_logger.params.every_n_batches": 1,
    "lightning.callbacks.image_logger.params.batch_frequency": 1,
    "lightning.callbacks.word_maps": "{}",
    "lightning.trainer.max_epochs": 1,
    "data.params.train.params.length": 4,  # two batches
    "data.params.validation.params.size": 32,
    "lightning.trainer.log_every_n_steps": 1,
}
CURVES = {f"{split}/{name}/{part}" for split in ("train", "val") for name in ("in_use", "perplexity", "dead")
          for part in ("adjective", "noun")}  # fmt: skip
PICTURES = {"train/inputs", "train/reconstructions", "val/reconstructions", "words/maps"}


def train(folder, logger):
    words = [f"{key}={value}" for key, value in {**TWO_STEPS, "lightning.logger": logger}.items()]
    return run([write(folder)], words, logdir=folder / "logs", test=False).folder


def test_tensorboard_has_curves_and_pictures(here):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = train(here, "tensorboard")
    found = event.EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    tags = found.Tags()
    assert set(tags["scalars"]) >= CURVES
    assert set(tags["images"]) >= PICTURES
    assert [each.step for each in found.Images("words/maps")] == [0]
    assert len(found.Scalars("train/in_use/noun")) == 2
    assert (folder / "csv" / "metrics.csv").is_file()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The folder of a run with both, offline, in a process of its own: what they start there outlives a run."""
    pytest.importorskip("wandb")
    pytest.importorskip("trackio")
    here = tmp_path_factory.mktemp("tracked")
    words = [f"{key}={value}" for key, value in {**TWO_STEPS, "lightning.logger": "[wandb,trackio]"}.items()]
    code = f"""
from vqct_plugin.training.launcher import run
folder = run({[str(write(here))]}, {words}, test=False).folder
import json, wandb, trackio.sqlite_storage
assert wandb.run is None  # it has ended: the next one in this process is another
print(json.dumps(trackio.sqlite_storage.SQLiteStorage.get_logs("vqct", folder.name)))
"""
    offline = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(here / "kept"),
        "HF_HUB_OFFLINE": "1",
    }
    environ = {**environment(), **offline}
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return here, done.stdout


def test_wandb_has_curves_and_pictures_offline(tracked):
    (folder,) = (tracked[0] / "logs").iterdir()
    (record,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert record.name == f"run-{folder.name}.wandb"  # so that a resumed run goes on with it
    written = record.read_bytes()
    assert [name for name in CURVES if name.encode() not in written] == []
    images = record.parent / "files" / "media" / "images"
    media = {file.relative_to(images).as_posix().rsplit("_", 2)[0] for file in images.rglob("*.png")}
    assert media >= PICTURES


def test_trackio_has_curves_and_pictures_on_this_machine(tracked):
    here, told = tracked
    assert told.count("\n") == 1  # trackio's own lines are not shown
    logged = [row for row in json.loads(told) if "words/maps" in row or "train/in_use/noun" in row]
    assert {name for row in json.loads(told) for name in row} >= CURVES | PICTURES
    assert [row["step"] for row in logged if "words/maps" in row] == [0]
    assert sum("train/in_use/noun" in row for row in logged) == 2
    assert list((here / "kept").rglob("*.png"))


def test_several_loggers_and_their_own_params(tmp_path):
    pytest.importorskip("wandb")
    folder = tmp_path / "2026-11-25T10-00-00_a:b"
    config = [{"target": "wandb", "params": {"project": "mine"}}, "tensorboard"]
    first, second, table = build_loggers(OmegaConf.create({"logger": config}), folder)
    assert (first.name, first.version, first.save_dir) == ("mine", "2026-11-25T10-00-00_a-b", str(folder))
    assert second.log_dir == str(folder / "tensorboard")
    assert isinstance(table, MetricsTable)
    # and as taming's users have written it
    whole = {"target": "pytorch_lightning.loggers.TestTubeLogger", "params": {"name": "testtube", "debug": False}}
    assert build_loggers(OmegaConf.create({"logger": whole}), folder)[0].log_dir.endswith("testtube/tensorboard")
    assert build_loggers(OmegaConf.create(), folder)[0].log_dir == str(folder / "tensorboard")
    other = {"target": "pytorch_lightning.loggers.CSVLogger", "params": {"name": "mine"}}
    assert build_loggers(OmegaConf.create({"logger": other}), folder)[0].save_dir == str(folder)


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
@pytest.mark.parametrize("by_target", [False, True])
def test_an_absent_package_is_one_sentence(here, monkeypatch, name, by_target):
    monkeypatch.setitem(sys.modules, name, None)
    target = loggers.LOGGERS[name].target if by_target else name
    logger = f"lightning.logger.target={target}" if by_target else f"lightning.logger={name}"
    sentence = rf"lightning\.logger is {target}, which needs what is not installed: pip install 'vqct-plugin\[{name}\]'"
    with pytest.raises(ConfigError, match=sentence):
        build_loggers(OmegaConf.from_dotlist([logger]).lightning, here)


def test_another_name_is_refused(here):
    with pytest.raises(ConfigError, match=r"lightning\.logger is 'wandbb'; expected tensorboard, wandb, trackio, or a"):
        build_loggers(OmegaConf.create({"logger": "wandbb"}), here)


class WandbLogger:
    """One of a user's own, which does with further params what it likes."""

    def __init__(self, **options):
        self.options = options


@pytest.mark.parametrize(
    ("name", "wrong", "meant", "right"),
    [
        ("tensorboard", "flush_sec", "flush_secs", {"flush_secs": 5, "log_graph": False}),
        ("tensorboard", "log_dir", "", {"max_queue": 3}),
        ("wandb", "projct", "project", {"tags": ["birds"], "offline": True}),
        ("trackio", "space", "space_id", {"group": "birds"}),
    ],
)
def test_params_that_no_logger_takes_are_refused(here, name, wrong, meant, right):
    pytest.importorskip(name)
    for target in (name, loggers.LOGGERS[name].target):
        sentence = rf"{target} takes no lightning\.logger\.params\.{wrong}; (did you mean {meant}|expected one of)"
        for call in (check_loggers, lambda section: build_loggers(section, here)):
            with pytest.raises(ConfigError, match=sentence):
                call(OmegaConf.create({"logger": {"target": target, "params": {wrong: "x"}}}))
            call(OmegaConf.create({"logger": {"target": target, "params": right}}))
    assert list(here.iterdir()) == []


def test_params_of_a_users_own_logger_are_its_own(here):
    pytest.importorskip("wandb")
    config = {"logger": {"target": "tests.training.test_loggers.WandbLogger", "params": {"projct": "x"}}}
    assert build_loggers(OmegaConf.create(config), here)[0].options["projct"] == "x"


class Takes:
    def __init__(self):
        self.taken = []

    def log_image(self, key, images, step):
        self.taken.append((key, images[0].shape, step))


def test_a_picture_goes_to_the_file_and_to_those_who_take_it(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("the disk is full")

    takes, table = Takes(), MetricsTable(tmp_path / "metrics.csv")
    trainer = SimpleNamespace(loggers=[table, takes], global_step=7)
    loggers.show_picture(trainer, "a/b", np.zeros((4, 6, 3), dtype=np.uint8), tmp_path / "a" / "b.png")
    assert takes.taken == [("a/b", (4, 6, 3), 7)]
    assert (tmp_path / "a" / "b.png").is_file()
    monkeypatch.setattr(loggers, "write_whole", full)
    with pytest.raises(OSError, match=r"the image .* cannot be written: the disk is full"):
        loggers.show_picture(trainer, "a/b", np.ones((4, 6, 3), dtype=np.uint8), tmp_path / "a" / "b.png")
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.png"]
    assert not np.asarray(Image.open(tmp_path / "a" / "b.png")).any()  # still the one before
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"the image .*c\.png cannot be written"):
        loggers.show_picture(trainer, "c", np.zeros((4, 6, 3), dtype=np.uint8), tmp_path / "file" / "c.png")


def test_a_tracked_run_of_the_users_own_is_left_open(monkeypatch):
    ended = []
    own, ours = (SimpleNamespace(finish=lambda n=n: ended.append(n)) for n in ("own", "ours"))
    wandb = SimpleNamespace(run=own)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with loggers.end_tracked_run():
        pass
    assert ended == []
    with loggers.end_tracked_run():
        wandb.run = ours
    assert ended == ["ours"]
