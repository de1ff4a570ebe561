"""What a training shows: one line on a terminal, a line every so many steps elsewhere, and little around it."""

import logging
import re
import time

import pytest

from tests.runs.tiny import write

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")
from vqct_plugin.commands.messages import show_messages
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.training import progress
from vqct_plugin.training.launcher import run
from vqct_plugin.training.progress import OneLine

ADVERTISED = ("Tip", "litlogger", "LitLogger", "FLOPs", "TPU", "HPU", "lightning.ai", "Sanity", "Working with z")


@pytest.fixture
def shown(tmp_path, capfd, monkeypatch):
    """A function that trains five batches of two epochs, and gives what was printed meanwhile."""
    monkeypatch.setenv("COLUMNS", "80")
    handlers = list(logging.getLogger("vqct_plugin").handlers)

    def train(terminal):
        monkeypatch.setattr(OneLine, "_on_terminal", terminal)
        monkeypatch.setattr(progress, "SECONDS", 0)
        show_messages()
        words = ["lightning.callbacks.progress_bar.params.every_n_steps=2"]
        yaml = write(tmp_path, length=6)
        run([yaml], words, trainer={"max_steps": 5, "enable_progress_bar": True}, logdir=tmp_path / "l")
        return "".join(capfd.readouterr())

    yield train
    logging.getLogger("vqct_plugin").handlers[:] = handlers


def test_a_terminal_has_one_line_drawn_anew(shown):
    text = shown(True)
    assert not any(word in text for word in ADVERTISED), text
    drawn = [line for line in re.split(r"[\r\n]", text) if line.startswith("epoch ")]
    assert len(drawn) > 5
    assert all(len(line.rstrip()) < 80 for line in drawn)
    assert any("validating" in line for line in drawn)
    assert "epoch 2" in drawn[-1]
    assert "step 5/5" in drawn[-1]
    ends = [line for line in text.split("\n") if "epoch " in line and "\r" in line]
    assert len(ends) == 1  # all of them on one line
    assert len([line for line in text.split("\n") if line.strip()]) < 15, text


def test_elsewhere_there_is_a_line_every_so_many_steps(shown):
    text = shown(False)
    assert "\r" not in text
    assert not any(word in text for word in ADVERTISED), text
    assert re.findall(r"^epoch \d.* step (\d)/5", text, re.M) == ["2", "4", "5"]
    assert len(text.strip().splitlines()) < 15, text


def test_a_line_is_cut_to_the_terminal_and_counts_what_is_left(monkeypatch):
    class Trainer:
        current_epoch, max_epochs, max_steps, global_step = 1, 3, -1, 10
        num_training_batches, accumulate_grad_batches = 8, 1
        progress_bar_metrics = {  # noqa: RUF012
            "train/aeloss_step": 0.123456, "train/aeloss_epoch": 5.0, "train/rec_loss": 0.25, "in_use/noun": 0.5, **{
                f"name{i}": i for i in range(20)
            }
        }  # fmt: skip

        class fit_loop:
            class epoch_loop:
                class batch_progress:
                    class current:
                        processed = 2

    bar = OneLine()
    bar._epoch, bar._done, bar._began = 1, 10, time.monotonic() - 20
    monkeypatch.setenv("COLUMNS", "200")
    line = bar.compose(Trainer)
    assert len(line) < 80
    assert line.startswith("epoch 2/3  batch 2/8  0.5/s  0:28 left  in use 50% nouns  rec_loss 0.25")
    monkeypatch.setenv("COLUMNS", "40")
    assert bar.compose(Trainer) == line[:39].rstrip()
    with pytest.raises(ConfigError, match="every_n_steps is 0; expected an integer of 1 or more"):
        OneLine(0)
