"""What a run leaves when it is stopped or broken, and what of it can be gone on from."""

import os
import resource
import signal
import sys

import pytest
import torch
import yaml

from tests.runs.tiny import config as tiny
from tests.runs.tiny import write

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")

from vqct_plugin.commands.train import main
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.training.launcher import run


def test_a_broken_checkpoint_is_refused_and_left(trained):
    last = trained / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"last\.ckpt is not a checkpoint .*name one of epoch=000000\.ckpt"):
        run(resume=trained, trainer={"max_epochs": 2})
    with pytest.raises(ConfigError, match=r"last\.ckpt cannot be resumed"):
        run(resume=last, trainer={"max_epochs": 2})
    assert last.stat().st_size == 1000


def test_code_in_a_checkpoint_is_not_run(here, trained):
    last = trained / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last)
    torch.save({**checkpoint, "more": Malicious()}, last)
    with pytest.raises(ConfigError, match=r"last\.ckpt cannot be resumed"):
        run(resume=trained, trainer={"max_epochs": 2})
    assert not (here / "was here").exists()


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was here",)


def test_a_disk_that_is_full_leaves_the_earlier_checkpoint(trained, capfd):
    """A limit on the size of files stands in for the end of the disk: writes fail, here with `File too large`."""
    last = trained / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        status = main(["-r", str(trained), "--max_epochs", "3"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    told = capfd.readouterr().err
    assert status == 1
    assert f"last.ckpt is the last good checkpoint; resume {trained}" in told
    assert "Traceback" not in told
    assert last.read_bytes() == before
    again = run(resume=trained, trainer={"max_epochs": 3})
    assert again.trainer.global_step == 18


def test_an_unreadable_image_ends_the_run_by_name(here, capfd):
    (here / "images").mkdir()
    (here / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    config = tiny()
    images = {"target": "vqct_plugin.runs.datasets.Images", "params": {"path": "images", "size": 16}}
    config["data"]["params"]["train"] = images
    (here / "a.yaml").write_text(yaml.safe_dump(config))
    assert main(["-b", "a.yaml", "--max_epochs", "1"]) == 1
    told = "".join(capfd.readouterr())
    assert "vqct-train: the image images/broken.jpg cannot be read" in told
    assert "Traceback" not in told


def test_kill_usr1_writes_a_checkpoint(here):
    import threading

    from pytorch_lightning.callbacks import Callback

    class Ask(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3 and threading.current_thread() is threading.main_thread():
                os.kill(os.getpid(), signal.SIGUSR1)

    sys.modules["asking"] = type(sys)("asking")
    sys.modules["asking"].Ask = Ask
    before = signal.getsignal(signal.SIGUSR1)
    try:
        words = ["lightning.callbacks.ask.target=asking.Ask", "lightning.modelcheckpoint.params.save_last=false"]
        done = run([write(here)], words, trainer={"max_epochs": 1})
    finally:
        signal.signal(signal.SIGUSR1, before)
        del sys.modules["asking"]
    assert torch.load(done.folder / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_an_exception_leaves_a_checkpoint_to_go_on_from(here):
    from pytorch_lightning.callbacks import Callback

    class Fail(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3:
                raise RuntimeError("the fourth batch")

    sys.modules["failing"] = type(sys)("failing")
    sys.modules["failing"].Fail = Fail
    try:
        with pytest.raises(RuntimeError, match="the fourth batch"):
            run([write(here)], ["lightning.callbacks.fail.target=failing.Fail"], trainer={"max_epochs": 1})
    finally:
        del sys.modules["failing"]
    (file,) = here.glob("logs/*/checkpoints/*.ckpt")
    assert file.name == "interrupted.ckpt"
    done = run(resume=file, overrides=["lightning.callbacks.fail=null"])
    assert done.trainer.global_step == 6
