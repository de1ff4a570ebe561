"""``vqct-sample`` on runs of ``vqct-train``: a small first stage on real photographs, and stages 2 on top of it."""

import numpy as np
import pytest
import yaml

pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
pytest.importorskip("taming", reason="taming-transformers is not installed")
pytest.importorskip("skimage", reason="the photographs are scikit-image's")

import torch
from PIL import Image

from tests.runs.tiny import config
from vqct_plugin.commands.sample import main
from vqct_plugin.compat.checkpoints import CheckpointError
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.load import load_run
from vqct_plugin.stage_2.samples import SampleError, draw_samples
from vqct_plugin.training.launcher import run

OURS = "vqct_plugin.Net2NetTransformer"
HOSTS = "taming.models.cond_transformer.Net2NetTransformer"


def second(first, target=OURS, cond="__is_unconditional__", **changes):
    """The config of a stage 2 on the first stage of a run."""
    whole = config(n_embed=128)
    stage = whole["model"]
    stage["params"]["ckpt_path"] = str(first / "checkpoints" / "last.ckpt")
    gpt = {"block_size": 200, "n_layer": 1, "n_head": 2, "n_embd": 16}
    transformer = {"params": gpt}
    if target == HOSTS:
        transformer = {"target": "taming.modules.transformer.mingpt.GPT", "params": {**gpt, "vocab_size": 128}}
    whole["model"] = {
        "base_learning_rate": 1e-3,
        "target": target,
        "params": {
            "transformer_config": transformer,
            "first_stage_config": {"target": stage["target"], "params": stage["params"]},
            "cond_stage_config": cond,
            "first_stage_key": "image",
            "cond_stage_key": "image",
            **changes,
        },
    }
    whole["data"]["params"]["validation"]["params"]["size"] = 16
    whole["lightning"]["callbacks"] = {"image_logger": {"params": {"batch_frequency": 10**6}}}
    return whole


def train(folder, name, whole):
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    trainer = {"max_steps": 3, "limit_val_batches": 1}
    return run([folder / f"{name}.yaml"], trainer=trainer, logdir=folder / "logs", test=False).folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a first stage, and of stages 2 on it: ours, taming's own, and one of classes."""
    folder = tmp_path_factory.mktemp("runs")
    first = train(folder, "first", config(n_embed=128))
    classes = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 3}}
    return {
        "first": first,
        "ours": train(folder, "ours", second(first)),
        "hosts": train(folder, "hosts", second(first, HOSTS)),
        "classes": _untrained(folder, second(first, cond=classes, cond_stage_key="class_label")),
    }


def _untrained(folder, whole):
    """A run's folder with the weights of the beginning: the photographs have no classes to train on."""
    from omegaconf import OmegaConf

    from vqct_plugin.runs.build import build_model

    run_folder = folder / "logs" / "classes"
    for name in ("checkpoints", "configs"):
        (run_folder / name).mkdir(parents=True)
    (run_folder / "configs" / "now-project.yaml").write_text(yaml.safe_dump({**whole, "lightning": {}}))
    torch.save({"state_dict": build_model(OmegaConf.create(whole)).state_dict()}, run_folder / "checkpoints/last.ckpt")
    return run_folder


def pixels(folder):
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("0*.png"))]


@pytest.mark.parametrize("kind", ["ours", "hosts"])
def test_images_of_a_run(runs, kind, tmp_path, capsys):
    words = [str(runs[kind]), "-n", "5", "--batch-size", "2", "-k", "20", "-p", "0.9", "-t", "1.1", "--device", "cpu"]
    assert main([*words, "-o", str(tmp_path / "a")]) == 0
    assert "5 images in" in capsys.readouterr().out
    drawn = pixels(tmp_path / "a")
    assert [image.shape for image in drawn] == [(16, 16, 3)] * 5
    assert any((image != drawn[0]).any() for image in drawn)
    grid = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    assert grid.shape == (16 * 2 + 2, 16 * 3 + 4, 3)
    for i, image in enumerate(drawn):
        assert (grid[i // 3 * 18 :, i % 3 * 18 :][:16, :16] == image).all()
    # the same seed gives the same images, in other batches too; another seed others
    assert main([*words, "--batch-size", "5", "--no-grid", "-o", str(tmp_path / "b")]) == 0
    assert not (tmp_path / "b" / "grid.png").exists()
    for one, other in zip(drawn, pixels(tmp_path / "b")):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert main([*words, "-s", "7", "-o", str(tmp_path / "c")]) == 0
    assert any((one != other).any() for one, other in zip(drawn, pixels(tmp_path / "c")))


def test_classes_and_sizes(runs, tmp_path, capsys):
    words = [str(runs["classes"]), "-n", "2", "--device", "cpu", "--size", "8x24"]
    assert main([*words, "-c", "0,2", "-q", "-o", str(tmp_path / "a")]) == 0
    assert "sampling" not in capsys.readouterr().err  # no progress bar
    assert [image.shape for image in pixels(tmp_path / "a")] == [(8, 24, 3)] * 4


def refused(capsys, sentence, *words):
    assert main([*map(str, words), "--device", "cpu"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("vqct-sample: ")
    assert sentence in told


def test_what_cannot_be_drawn_is_refused(runs, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    out = tmp_path / "out"
    refused(capsys, "exists and is not an empty folder; choose another", runs["ours"], "-o", tmp_path / "full")
    refused(capsys, "is a VQModel, a first stage; expected a stage 2", runs["first"], "-o", out)
    refused(capsys, "expected multiples of 2", runs["ours"], "--size", "7x8", "-o", out)
    refused(capsys, "--size is '8'; expected height and width", runs["ours"], "--size", "8", "-o", out)
    refused(capsys, "block_size is 200", runs["ours"], "--size", "64x64", "-o", out)
    refused(capsys, "the model is unconditional", runs["ours"], "-c", "1", "-o", out)
    refused(capsys, "no class was given; expected some of the model's classes, 0 to 2", runs["classes"], "-o", out)
    refused(capsys, "class 3 was asked for", runs["classes"], "-c", "3", "-o", out)
    refused(capsys, "--classes is 'a'", runs["classes"], "-c", "a", "-o", out)
    refused(capsys, "temperature is 0.0; expected", runs["ours"], "-t", "0", "-o", out)
    refused(capsys, "neither a checkpoint nor a run's folder", tmp_path / "none", "-o", out)
    refused(capsys, "number is 0 and --batch-size is 8", runs["ours"], "-n", "0", "-o", out)
    assert not out.exists()


def test_conditions_are_validation_items(runs, tmp_path):
    """With the first stage as conditioning, an image is drawn given an image."""
    trained = load_run(runs["ours"])
    model = trained.model
    model.be_unconditional, model.cond_stage_model = False, model.first_stage_model
    model.transformer.cond_emb = torch.nn.Embedding(128, 16)
    from vqct_plugin.runs.build import build_validation_set

    items = [build_validation_set(trained.config)[i] for i in range(2)]
    with pytest.raises(SampleError, match="conditioned on 'image'; pass conditions=ITEMS"):
        draw_samples(model, tmp_path / "a", 1, size=(8, 8), progress=False)
    model.transformer.block_size = 150
    with pytest.raises(ValueError, match="128 conditioning tokens and 64 to draw make a sequence of 191"):
        draw_samples(model, tmp_path / "a", 1, conditions=items, progress=False)
    model.transformer.block_size = 200
    samples = draw_samples(model, tmp_path / "a", 2, conditions=items, progress=False)
    assert len(samples.files) == 4


def test_a_checkpoint_and_a_config_that_disagree_are_refused(runs, tmp_path):
    with pytest.raises(CheckpointError, match="the checkpoint has no transformer"):
        load_run(runs["ours"], overrides=["model.params.transformer_config.params.n_layer=2"])
    with pytest.raises(CheckpointError, match="does not fit"):
        load_run(runs["ours"], overrides=["model.params.transformer_config.params.n_embd=8"])
    with pytest.raises(ConfigError, match="no config beside"):
        load_run(_copied(runs["ours"], tmp_path))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="there is no checkpoint in"):
        load_run(tmp_path / "empty")


def _copied(folder, to):
    (to / "checkpoints").mkdir()
    (to / "checkpoints" / "last.ckpt").write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    return to


def test_a_run_that_moved_with_its_first_stage_gone_still_loads(runs):
    """All weights are in the stage 2's own checkpoint: the first stage's file is not asked for."""
    override = "model.params.first_stage_config.params.ckpt_path=/nowhere/first.ckpt"
    assert load_run(runs["ours"], overrides=[override]).model.transformer.block_size == 200
