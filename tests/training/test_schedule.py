"""``AnnealRate``: the rate over a run, and a stopped run that goes on along the same curve."""

import math

import pytest
import torch

from tests.runs.tiny import write

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")

from vqct_plugin.runs.config import ConfigError
from vqct_plugin.training.launcher import run
from vqct_plugin.training.schedule import AnnealRate

CALLBACK = "lightning.callbacks.anneal_rate"
WORDS = [f"{CALLBACK}.target=vqct_plugin.training.schedule.AnnealRate", f"{CALLBACK}.params.warmup_steps=2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def train(yaml, steps, **others):
    return run(
        yaml, [] if "resume" in others else WORDS, trainer={"max_steps": steps, "log_every_n_steps": 1}, **others
    )


def state_of(done):
    return torch.load(done.folder / "checkpoints" / "last.ckpt", weights_only=False)


def test_the_rate_rises_and_falls_as_the_formula_says(here):
    done = train([write(here)], 6)
    lines = (done.folder / "csv" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","))) for line in lines[1:]]
    (name,) = (name for name in names if name.startswith("lr-") and not name.endswith("-1"))
    own = state_of(done)["optimizer_states"][0]["param_groups"][0]["initial_lr"]
    rates = [float(row[name]) / own for row in rows if row[name]]
    cosine = [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert rates == pytest.approx([0.5, 1.0, *cosine], abs=1e-6)


def test_a_run_that_was_stopped_goes_on_along_the_same_curve(here):
    """``steps`` says where the curve ends, so that a run stopped on the way there is the same run."""
    words = [*WORDS, f"{CALLBACK}.params.steps=6"]
    whole = run([write(here)], words, trainer={"max_steps": 6}, name="whole")
    part = run([write(here)], words, trainer={"max_steps": 4}, name="part")
    on = run(trainer={"max_steps": 6}, resume=part.folder)
    one, other = state_of(whole), state_of(on)
    assert one["global_step"] == other["global_step"] == 6
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


@pytest.mark.parametrize("params", [{"warmup_steps": -1}, {"last": 1.5}, {"steps": 0}, {"last": True}])
def test_what_makes_no_curve_is_refused(params):
    with pytest.raises(ConfigError, match=f"{next(iter(params))} is .*; expected"):
        AnnealRate(**params)


def test_a_training_without_an_end_is_refused():
    class Endless:
        max_steps, max_epochs, num_training_batches, accumulate_grad_batches = -1, -1, 5, 1
        lr_scheduler_configs, optimizers = [], []

    with pytest.raises(ConfigError, match="set max_steps or max_epochs, or its steps"):
        AnnealRate().on_train_start(Endless(), None)
    Endless.lr_scheduler_configs = [object()]
    with pytest.raises(ConfigError, match="a schedule of its own"):
        AnnealRate().on_train_start(Endless(), None)
