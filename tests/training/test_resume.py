"""A run killed at any time goes on to bitwise the same weights; two processes train what one does.

A run that was stopped, by ``max_steps`` or Ctrl-C, is in test_one_run.py.
"""

import signal
import subprocess
import time

import pytest
import torch

from tests.runs.tiny import COMMAND, config, environment, vqct_train, write

pytest.importorskip("taming")
from vqct_plugin import VQModel
from vqct_plugin.commands.train import main


@pytest.fixture
def one_thread():
    """As the processes have it: another number of threads adds in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def killed(folder, words, checkpoint):
    """Start ``vqct-train``, and kill it with SIGKILL as soon as this checkpoint is there."""
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen([*COMMAND, *map(str, words)], cwd=folder, env=environment(), stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not list(folder.glob(checkpoint)):
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return next(iter(folder.glob("logs/*")))


def assert_same(one, other):
    for key in ("epoch", "global_step"):
        assert one[key] == other[key]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    for a, b in zip(one["optimizer_states"], other["optimizer_states"]):
        for i, state in a["state"].items():
            assert all(torch.equal(value, b["state"][i][name]) for name, value in state.items()), (i, state.keys())


def last(folder):
    (file,) = folder.glob("logs/*/checkpoints/last.ckpt")
    return torch.load(file)


@pytest.mark.parametrize("where", ["at the end of an epoch", "inside an epoch"])
def test_a_killed_run_resumes_to_bitwise_the_same_weights(where, tmp_path, monkeypatch, capsys, one_thread):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    yaml = write(tmp_path, length=14)
    words = ["-b", yaml, "--max_epochs", 4]
    if where == "inside an epoch":  # seven batches make an epoch, and each fifth step a checkpoint
        words.append("lightning.modelcheckpoint.params.every_n_train_steps=5")
    folder = killed(broken, words, "logs/*/checkpoints/last.ckpt")
    steps = last(broken)["global_step"]
    monkeypatch.chdir(whole)
    assert main(list(map(str, words))) == 0
    monkeypatch.chdir(broken)
    assert main(["-r", str(folder.relative_to(broken))]) == 0
    assert "resuming from" in capsys.readouterr().out
    assert 0 < steps < 28
    assert last(whole)["global_step"] == 28
    assert_same(last(whole), last(broken))


def test_two_processes_train_what_one_does_with_twice_the_batch(tmp_path, monkeypatch, one_thread):
    """Reconstructions and the transfer agree to 1e-4 after six steps; a batch's sums are taken in another order.

    With the transfer's dropout of 0.5, which is the same on every process. Without dropout in the encoder, whose masks
    belong to images, and before the discriminator's first step, whose weight each process would find for its own
    images, as with taming.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    words = ["--max_steps", 6, "model.params.ddconfig.dropout=0.0", "model.base_learning_rate=1e-4"]
    words += ["model.params.transfer=graph"]  # averages start from the vectors of one process
    monkeypatch.chdir(one)
    alone = map(str, ["-b", write(one, batch_size=4, length=24, disc_start=100), *words])
    assert main(list(alone)) == 0
    done = vqct_train(
        two, "-b", write(two, batch_size=2, length=24, disc_start=100), *words, "--devices", 2, "--strategy", "ddp"
    )
    assert "4.00e-04 = 1 (accumulate_grad_batches) * 2 (processes) * 2 (batch_size)" in done.stdout
    assert len(list(two.glob("logs/*"))) == 1
    a, b = last(one), last(two)
    assert a["global_step"] == b["global_step"] == 6
    for name, value in a["state_dict"].items():
        if name.startswith("quantize."):
            assert torch.allclose(value.float(), b["state_dict"][name].float(), rtol=1e-4, atol=1e-5), name
    # A bias before a normalization that takes it off again has no gradient but rounding, which Adam makes steps of;
    # so the models are compared by what they do.
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    models = []
    for checkpoint in (a, b):
        params = config()["model"]["params"]
        params["ddconfig"]["dropout"] = 0.0
        model = VQModel(**params, transfer="graph").eval()
        model.load_state_dict(checkpoint["state_dict"])
        models.append(model)
    with torch.no_grad():
        (x, loss_x), (y, loss_y) = (model(images) for model in models)
    assert (x - y).abs().max() < 1e-4 * x.abs().max()
    assert float(loss_x) == pytest.approx(float(loss_y), rel=1e-4)
