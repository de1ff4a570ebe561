"""A run in two pieces is the run in one piece: weights to the bit, its table of figures, and its checkpoints."""

import csv
import os
import shutil
import signal
import sys

import pytest
import torch

from tests.conftest import make_prior
from tests.runs.tiny import write

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")
from pytorch_lightning.callbacks import Callback

from vqct_plugin.runs.checkpoints import find_checkpoint
from vqct_plugin.training.launcher import run

STEPS = 11
WORDS = [
    "model.params.monitor=val/rec_loss",
    "lightning.callbacks.codebook_usage_logger.params.every_n_batches=3",
    "lightning.callbacks.image_logger.params.max_images=0",
    "data.params.validation.params.size=100",
]


class Signal(Callback):
    """Sends this process a signal in the sixth batch, when the first of its two optimizers has made its step."""

    number = signal.SIGINT
    passes = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.passes += trainer.global_step == 5
        if self.passes == 2:
            os.kill(os.getpid(), self.number)


class Ask(Signal):
    number = signal.SIGUSR1


@pytest.fixture(scope="module")
def yaml(tmp_path_factory):
    return write(tmp_path_factory.mktemp("config"), length=8)  # four batches an epoch


@pytest.fixture(scope="module")
def whole(yaml, tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), yaml, STEPS)


def train(folder, yaml, steps, *words):
    trainer = {"max_steps": steps, "log_every_n_steps": 1}
    return run([yaml], [*WORDS, *words], trainer=trainer, logdir=folder).folder


@pytest.fixture
def sender(monkeypatch):
    module = type(sys)("sending")
    module.Signal, module.Ask = Signal, Ask
    monkeypatch.setitem(sys.modules, "sending", module)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def load(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt")


def rows_of(folder):
    """The rows of batches and of the codes' use; the means over an epoch are of the batches of one piece."""
    with (folder / "csv" / "metrics.csv").open(newline="") as stream:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(stream)]
    return [row for row in rows if not any(name.endswith("_epoch") for name in row)]


def assert_same(one, other):
    a, b = load(one), load(other)
    assert (a["epoch"], a["global_step"]) == (b["epoch"], b["global_step"])
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    for mine, its in zip(a["optimizer_states"], b["optimizer_states"]):
        for i, state in mine["state"].items():
            assert all(torch.equal(value, its["state"][i][name]) for name, value in state.items()), i
    assert rows_of(one) == rows_of(other)
    names = {file.name for file in (other / "checkpoints").iterdir()} - {"interrupted.ckpt"}
    # at a stop inside an epoch Lightning keeps a checkpoint by the validation of before, where there was one
    stop = {f"epoch={a['epoch']:06}.ckpt"}
    assert names - stop == {file.name for file in (one / "checkpoints").iterdir()} - stop
    assert find_checkpoint(other).path.name == "last.ckpt"


@pytest.mark.parametrize("steps", [6, 8])
def test_max_steps_inside_an_epoch_or_at_its_end_then_more_from_a_copy(steps, whole, yaml, tmp_path):
    first = train(tmp_path / "first", yaml, steps)
    assert load(first)["global_step"] == steps
    moved = tmp_path / "moved" / "somewhere"
    shutil.copytree(first, moved)
    shutil.rmtree(first)
    run(resume=moved, trainer={"max_steps": STEPS})
    assert_same(whole, moved)


def test_ctrl_c_inside_a_batch_waits_for_its_end(whole, yaml, tmp_path, sender):
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        train(tmp_path, yaml, STEPS, "lightning.callbacks.send.target=sending.Signal")
    (folder,) = tmp_path.iterdir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert find_checkpoint(folder) == (folder / "checkpoints" / "interrupted.ckpt", 6)
    run(resume=True, logdir=tmp_path, overrides=["lightning.callbacks.send=null"])  # the newest run
    assert_same(whole, folder)


def test_an_earlier_checkpoint_resumed_and_stopped_is_named_beside_the_last_one(whole, tmp_path, sender, caplog):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    caplog.set_level("INFO", "vqct_plugin")
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run(
            resume=folder / "checkpoints" / "epoch=000000.ckpt",
            overrides=["lightning.callbacks.send.target=sending.Signal"],
        )
    newer = folder / "checkpoints" / "interrupted.ckpt"
    assert f"wrote {newer} after 6 steps; resume {newer} to go on" in caplog.text
    assert find_checkpoint(folder).path.name == "last.ckpt"
    warning = caplog.records[-2].getMessage()
    assert "interrupted.ckpt is of step 6, last.ckpt of step 11" in warning
    assert warning.endswith(f"To take the other, give its path instead of the run's: {newer}")


def test_usr1_before_the_first_epoch_ends_leaves_one_last_checkpoint(whole, yaml, tmp_path, sender):
    words = ["lightning.callbacks.send.target=sending.Ask", "data.params.train.params.length=30"]
    folder = train(tmp_path, yaml, 9, *words)
    assert {file.name for file in (folder / "checkpoints").iterdir()} == {"last.ckpt"}
    assert load(folder)["global_step"] == 9


def test_a_run_resumes_where_its_prior_file_is_gone(tmp_path):
    file = tmp_path / "mine.safetensors"
    make_prior((40, 40)).save(file)
    trainer = {"max_steps": 2, "log_every_n_steps": 1}
    own = write(tmp_path, length=8, prior=str(file))
    folder = run([own], WORDS, trainer=trainer, logdir=tmp_path / "logs").folder
    file.unlink()
    resumed = run(resume=folder, trainer={"max_steps": 3})
    assert load(folder)["global_step"] == 3
    assert resumed.model.quantize.n_e == 64
    (configs,) = {f"prior: {file}" in path.read_text() for path in (folder / "configs").glob("*-project.yaml")}
    assert configs  # not the file that the prior was handed over in


def test_a_run_from_before_its_defaults_changed_goes_on_as_what_it_was(tmp_path):
    own = write(tmp_path, length=8, transfer="graph", combine="concat")
    folder = run([own], WORDS, trainer={"max_steps": 2}, logdir=tmp_path / "logs").folder
    (kept,) = (folder / "configs").glob("*-project.yaml")
    kept.write_text("".join(line for line in kept.open() if "transfer:" not in line and "combine:" not in line))
    resumed = run(resume=folder, trainer={"max_steps": 3})
    assert load(folder)["global_step"] == 3
    assert resumed.model.quantize.settings["transfer"] == "graph"
    newest = max((folder / "configs").glob("*-project.yaml"))
    assert "transfer: graph" in newest.read_text()
