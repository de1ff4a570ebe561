"""A folder to run in, and a trained run to go on from, for all tests of training."""

import shutil

import pytest

from tests.runs.tiny import write


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    from vqct_plugin.training.launcher import run

    folder = tmp_path_factory.mktemp("trained")
    return run([write(folder)], trainer={"max_epochs": 1, "accelerator": "cpu"}, logdir=folder, seed=7).folder


@pytest.fixture
def trained(trained_once, here):
    """The folder, to change, of a run of an epoch, six steps, with the seed 7."""
    return shutil.copytree(trained_once, here / "logs" / trained_once.name)
