"""A logger of another package that is not installed."""

import importlib.util

import pytest

pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from tests.runs.tiny import write
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.training.launcher import run


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_an_absent_wandb_is_one_sentence(tmp_path):
    logger = "lightning.logger.target=pytorch_lightning.loggers.WandbLogger"
    with pytest.raises(
        ConfigError, match=r"lightning\.logger is .*WandbLogger, which needs what is not installed: .*wandb"
    ):
        run([write(tmp_path)], [logger, "lightning.logger.params={}"], logdir=tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
