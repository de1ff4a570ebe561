"""``vqct-train`` from end to end; what is refused is in test_refusals.py, what is stopped in test_stops.py."""

import re
import warnings

import numpy as np
import pytest
import torch
import yaml

from tests.runs.tiny import config as tiny
from tests.runs.tiny import write

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")

from vqct_plugin.runs.config import ConfigError
from vqct_plugin.training.launcher import run
from vqct_plugin.training.trainer import merge_trainer_options


def metrics(folder):
    lines = (folder / "csv" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [{n: float(v) for n, v in zip(names, line.split(",")) if v} for line in lines[1:]]


def test_a_run_leaves_what_tamings_does(here, caplog):
    caplog.set_level("INFO", "vqct_plugin")
    words = ["lightning.callbacks.codebook_usage_logger.params.every_n_batches=3"]
    done = run([write(here)], words, trainer={"max_epochs": 2, "log_every_n_steps": 1}, name="first", postfix="_a")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d_first_a", done.folder.name)
    assert done.folder.parent.name == "logs"
    assert {p.name for p in (done.folder / "checkpoints").iterdir()} == {"last.ckpt", "epoch=000001.ckpt"}
    now = done.folder.name[:19]
    project = yaml.safe_load((done.folder / "configs" / f"{now}-project.yaml").read_text())
    expected = tiny()
    expected["data"]["params"]["seed"] = 23
    assert project == {key: expected[key] for key in ("model", "data")}
    lightning = yaml.safe_load((done.folder / "configs" / f"{now}-lightning.yaml").read_text())
    assert lightning["lightning"]["trainer"]["max_epochs"] == 2
    pictures = {p.name for p in (done.folder / "images" / "train").iterdir()}
    assert {"inputs_gs-000001_e-000000_b-000000.png", "reconstructions_gs-000007_e-000001_b-000000.png"} <= pictures
    assert list((done.folder / "images" / "val").glob("reconstructions_gs-000006_*.png"))
    rows = metrics(done.folder)
    in_use = [row["train/in_use/noun"] for row in rows if "train/in_use/noun" in row]
    assert len(in_use) == 4  # twelve batches, one figure for three
    assert all(0 < share <= 1 for share in in_use)
    nouns = done.model.quantize.prior.sizes["noun"]
    assert [round(nouns * (1 - share)) for share in in_use] == rows_of(rows, "train/dead/noun")
    shown = done.trainer.progress_bar_metrics
    for part in ("adjective", "noun"):
        assert shown[f"dead/{part}"] == rows_of(rows, f"train/dead/{part}")[-1]
        assert shown[f"perplexity/{part}"] == pytest.approx(rows_of(rows, f"train/perplexity/{part}")[-1], rel=1e-5)
    last = [row for row in rows if "val/in_use/adjective" in row][-1]
    assert 1 <= last["val/perplexity/adjective"] <= done.model.quantize.prior.sizes["adjective"]
    assert any(f"lr-Adam{which}" in row for row in rows for which in ("", "-1"))
    assert list((done.folder / "tensorboard").glob("events*"))
    assert done.trainer.global_step == 12
    assert done.model.learning_rate == pytest.approx(2 * 5e-4)
    rule = "learning rate 1.00e-03 = 1 (accumulate_grad_batches) * 1 (processes) * 2 (batch_size)"
    assert rule in caplog.text


def rows_of(rows, name):
    return [row[name] for row in rows if name in row]


def test_a_collapse_is_warned_of_once_until_it_recovers():
    """Twice in a row below a tenth, by counts of our own; a part that is well is not named."""
    from vqct_plugin.training.callbacks import CodebookUsageLogger
    from vqct_plugin.usage import CodebookUsage

    def usage(adjectives):
        counter = CodebookUsage([0] * 50 + [1] * 10, ("adjective", "noun"))
        counter.update(torch.arange(adjectives).repeat(200))
        counter.update(torch.arange(50, 60))
        return counter.compute()

    logger = CodebookUsageLogger(7)
    told = []
    for adjectives in (3, 4, 2, 40, 4, 40, 4, 4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logger._warn(usage(adjectives), True)
        told.append([str(warning.message) for warning in caught])
    assert [len(of_one) for of_one in told] == [0, 1, 0, 0, 0, 0, 0, 1]
    text = told[1][0]
    assert text.startswith("over the last 7 batches, the codebook has collapsed: 4 of 50 adjectives are in use (8%)")
    assert "1 more than before" in text
    assert "Worth trying: a smaller n_embed" in text


def test_a_stock_codebook_that_collapses_is_told_of_while_it_trains(here):
    from vqct_plugin.training.callbacks import CodebookWarning

    words = ["lightning.callbacks.codebook_usage_logger.params.every_n_batches=2", "model.params.n_embed=4096"]
    target = "taming.models.vqgan.VQModel"
    changes = ["data.params.batch_size=6", "data.params.train.params.length=300", "data.params.train.params.size=64"]
    with pytest.warns(
        CodebookWarning, match=r"codebook has collapsed: \d+ of 4,096 codes are in use .* vqct_plugin.VQModel"
    ):
        run([write(here, target=target)], [*words, *changes], trainer={"max_steps": 6, "limit_val_batches": 0})


def test_the_stock_model_trains_too_and_its_codes_are_counted(here):
    target = "taming.models.vqgan.VQModel"
    done = run([write(here, target=target, monitor="val/rec_loss", length=4)], trainer={"max_epochs": 5})
    names = {p.name for p in (done.folder / "checkpoints").iterdir()}
    assert len(names) == 4  # the last one and the best three
    assert "last.ckpt" in names
    row = [row for row in metrics(done.folder) if "val/in_use/codes" in row][-1]
    assert 1 / 64 <= row["val/in_use/codes"] <= 1
    assert type(done.model.quantize).__name__ == "VectorQuantizer2"


def test_accumulation_and_clipping_go_to_the_model_and_into_the_rate(here):
    clip = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}
    done = run([write(here)], trainer={"max_epochs": 1, "accumulate_grad_batches": 3, **clip})
    assert done.model.accumulate_grad_batches == 3
    assert done.model.gradient_clip_val == 0.5
    assert done.model.gradient_clip_algorithm == "value"
    assert done.trainer.global_step == 2
    assert done.model.learning_rate == pytest.approx(3 * 2 * 5e-4)
    again = run(resume=done.folder, trainer={"max_epochs": 2})  # and a resumed run has them from the folder
    assert again.model.accumulate_grad_batches == 3
    assert again.model.gradient_clip_val == 0.5
    assert again.trainer.global_step == 4
    assert again.folder == done.folder


def test_a_resumed_run_keeps_its_seed(here, trained):
    again = run(resume=trained, trainer={"max_steps": 7})
    assert again.trainer.datamodule.seed == 7
    assert run([write(here)], trainer={"max_steps": 1}).trainer.datamodule.seed == 23


def test_the_pictures_are_the_models_reconstructions(here):
    from PIL import Image

    done = run([write(here)], ["data.params.validation.params.size=16"], trainer={"max_epochs": 1})
    batch = next(iter(done.trainer.datamodule.val_dataloader()))
    done.model.eval()
    (file,) = (done.folder / "images" / "val").glob("reconstructions_*.png")
    with Image.open(file) as picture:
        pixels = np.asarray(picture).astype(float)[2:18, 2:18]  # the first image, inside make_grid's margin
    with torch.no_grad():
        x, _ = done.model(done.model.get_input(batch, "image"))
    expected = (x[0].clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(pixels - expected).max() < 0.51


def test_logging_changes_nothing_of_training(here, monkeypatch):
    from vqct_plugin import VQModel

    plain = VQModel.log_images

    def drawing(self, batch, **keywords):  # as taming's segmentation model draws its colors
        torch.rand(3)
        return plain(self, batch, **keywords)

    monkeypatch.setattr(VQModel, "log_images", drawing)
    weights = []
    for callbacks in ("image_logger.params.batch_frequency=1", "image_logger.params.max_images=0"):
        words = [f"lightning.callbacks.{callbacks}"]
        done = run([write(here, length=6)], words, trainer={"max_epochs": 1}, name=callbacks[13:20])
        weights.append(done.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights)))


def test_gpus_are_taken_as_taming_takes_them():
    def devices(of_yaml, given, gpus=None):
        options = merge_trainer_options(of_yaml, given, gpus)
        return options.get("accelerator"), options["devices"]

    assert devices({}, {}) == (None, 1)
    assert devices({}, {}, "0,") == ("gpu", [0])
    assert devices({}, {}, "1") == ("gpu", [1])  # a list of one, not a number of GPUs
    assert devices({"gpus": "0,1"}, {}) == ("gpu", [0, 1])
    assert devices({"gpus": 2}, {}) == ("gpu", 2)
    assert devices({"gpus": "-1"}, {}) == ("gpu", -1)
    assert devices({"accelerator": "gpu", "devices": [0, 1]}, {}, "2,3") == ("gpu", [2, 3])
    assert devices({"gpus": "0,1"}, {"accelerator": "cpu", "devices": 2}) == ("cpu", 2)
    assert merge_trainer_options({"distributed_backend": "ddp"}, {}, None)["strategy"] == "ddp"
    with pytest.raises(ConfigError, match="gpus and devices mean the same; give only one of them"):
        devices({}, {"devices": 2}, "0,")
