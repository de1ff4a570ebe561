"""Each thing that can be wrong with a config or a folder is said before anything is written."""

import os
import re

import pytest
import yaml

from tests.runs.tiny import config as tiny
from tests.runs.tiny import write

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")

from vqct_plugin.runs.config import ConfigError, DataError
from vqct_plugin.training.launcher import check, run

REFUSED = [
    ({"target": "vqct_plugin.VQModl"}, [], {}, "did you mean VQModel"),
    ({"n_embd": 3}, [], {}, "takes no argument 'n_embd'; close to it: n_embed"),
    ({"n_embed": 999_999}, [], {}, "the model cannot be built: .*999,?999"),
    ({"topk": 0}, [], {}, "the model cannot be built: .*topk"),
    ({"prior": "nowhere.safetensors"}, [], {}, r"nowhere\.safetensors"),
    ({"ckpt_path": "nowhere.ckpt"}, [], {}, r"nowhere\.ckpt"),
    ({}, ["data.params.train=null"], {}, r"there is nothing to train on; expected data\.params\.train"),
    ({"length": 0}, [], {}, r"data\.params\.train .* is empty"),
    ({}, ["data.params.train.target=taming.data.custom.CustomTrain"], {}, r"takes no data\.params\.train\.params\."),
    ({}, ["data.params.batch_siez=2"], {}, r"takes no data\.params\.batch_siez; did you mean batch_size"),
    ({}, [], {"max_epoch": 3}, "has no argument 'max_epoch'; did you mean max_epochs"),
    ({}, ["model.params.ddconfig.ch_mul=[1]"], {}, r"takes no model\.params\.ddconfig\.ch_mul; did you mean ch_mult"),
    ({}, ["data.params.train.params.size=4000"], {}, "size is 4000; expected 1 to"),
    ({}, [], {"gpus": "0,"}, "asks for a GPU .* sees none on this machine"),
    ({}, [], {"precision": "17"}, "Lightning's Trainer refuses its arguments"),
    ({}, [], {"gpus": "zero"}, "gpus is 'zero'; expected the numbers of GPUs"),
    ({}, [], {"logger": False}, r"lightning\.trainer\.logger is not supported; use lightning\.logger instead"),
    ({}, ["lightning.callbacks.mine.target=no.where.Callback"], {}, "there is no module no"),
    ({}, ["lightning.modelcheckpoint.params.save_topk=1"], {}, "did you mean save_top_k"),
    ({}, ["lightning.callbacks.image_logger.params.batch_frequency=0"], {}, "batch_frequency is 0"),
]


@pytest.mark.parametrize(("changes", "overrides", "trainer", "sentence"), REFUSED)
def test_what_is_wrong_is_said_before_anything_is_written(here, changes, overrides, trainer, sentence):
    with pytest.raises((ConfigError, DataError), match=sentence):
        run([write(here, **changes)], overrides, trainer={"max_epochs": 1, **trainer})
    assert [p.name for p in here.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize("what", ["data", "first image", "ddconfig", "gpus"])
def test_it_is_said_before_the_model_is_built(here, monkeypatch, what):
    """The model is what downloads (LPIPS) and takes its time."""
    from vqct_plugin.training import launcher

    monkeypatch.setattr(launcher, "build_model", lambda *_: pytest.fail("the model was built"))
    images = {"target": "vqct_plugin.runs.datasets.Images", "params": {"path": "list.txt", "size": 16}}
    words, trainer, sentence = [], {}, "there is no image gone.jpg"
    config = tiny()
    if what == "data":
        config["data"]["params"]["train"] = {**images, "params": {"path": "nowhere", "size": 16}}
        sentence = "there is no folder or list file nowhere"
    elif what == "first image":
        config["data"]["params"]["validation"] = images
        (here / "list.txt").write_text("gone.jpg")
    elif what == "ddconfig":
        words, sentence = ["model.params.ddconfig.resolutions=16"], "did you mean resolution"
    else:
        trainer, sentence = {"gpus": 1}, "sees none on this machine"
    (here / "a.yaml").write_text(yaml.safe_dump(config))
    for function in (run, check):
        with pytest.raises((ConfigError, DataError), match=sentence):
            function(["a.yaml"], words, trainer=trainer)
    assert not (here / "logs").exists()


def test_a_check_builds_the_model_without_its_loss_and_writes_nothing(here):
    """taming's loss downloads LPIPS: here it names a class that is not even there."""
    words = ["model.params.lossconfig.target=no.such.Loss"]
    said = check([write(here)], words)
    assert re.match(r"VQModel: [\d,]+ parameters, [\d,]+ of them trained\n", said)
    assert "12 items in data.params.train, " in said
    assert "nothing written" in said
    with pytest.raises(ConfigError, match=r"the model cannot be built: .*999,?999"):
        check([here / "tiny.yaml"], ["model.params.n_embed=999999"])
    with pytest.raises(ConfigError, match="did you mean save_top_k"):
        check([here / "tiny.yaml"], ["lightning.modelcheckpoint.params.save_topk=1"])
    for logger, sentence in (
        ("=wandbb", r"lightning\.logger is 'wandbb'; expected tensorboard, wandb"),
        ("=[tensorboard,trakio]", r"lightning\.logger is 'trakio'"),
        (".target=pytorch_lightning.loggers.CVSLogger", r"has no CVSLogger; did you mean CSVLogger"),
        ("={target: no.such.Logger}", "there is no module no"),
        ("=5", r"lightning\.logger is 5; expected tensorboard, wandb, trackio, a list of these, or a mapping"),
        ("={target: tensorboard, parms: {}}", r"lightning\.logger has the key parms; expected target and params"),
        ("={target: tensorboard, params: 3}", r"lightning\.logger\.params is 3; expected a mapping"),
        ("={target: pytorch_lightning.loggers.CSVLogger, params: {nam: x}}", r"params\.nam; did you mean name"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            check([here / "tiny.yaml"], [f"lightning.logger{logger}"])
    assert [p.name for p in here.iterdir()] == ["tiny.yaml"]


def test_a_list_of_images_that_is_not_there_is_refused(here):
    config = tiny()
    params = {"size": 16, "training_images_list_file": "some/training.txt"}
    config["data"]["params"]["train"] = {"target": "taming.data.custom.CustomTrain", "params": params}
    (here / "a.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"the data cannot be built: .*some/training\.txt"):
        run([here / "a.yaml"], trainer={"max_epochs": 1})
    assert [p.name for p in here.iterdir()] == ["a.yaml"]


def test_lpips_without_internet_says_what_to_do(here, monkeypatch):
    import urllib.error

    from taming.modules.losses import vqperceptual

    def offline(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(vqperceptual, "LPIPS", offline)
    words = ["model.params.lossconfig.target=taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"]
    with pytest.raises(ConfigError, match=r"vgg16-397923af\.pth to .*VQPixelWithDiscriminator"):
        run([write(here)], words, trainer={"max_epochs": 1})
    assert [p.name for p in here.iterdir()] == ["tiny.yaml"]


def test_resuming_what_is_not_there_is_refused(here):
    with pytest.raises(ConfigError, match="there is nothing to resume at nowhere"):
        run(resume="nowhere")
    with pytest.raises(ConfigError, match="there is no config; give base=YAML, or resume=RUN"):
        run()
    (here / "logs" / "old" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="it stopped before its first checkpoint"):
        run(resume=here / "logs" / "old")
    (here / "logs" / "old" / "checkpoints" / "epoch=000003.ckpt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"epoch=000003\.ckpt is not a checkpoint"):
        run(resume=here / "logs" / "old")
    with pytest.raises(ConfigError, match="there are no configs in"):
        run(resume=here / "logs" / "old" / "checkpoints" / "epoch=000003.ckpt")
    with pytest.raises(ConfigError, match="exclude each other"):
        run(resume=here / "logs" / "old", name="new")


def test_a_run_is_never_overwritten(here, monkeypatch):
    import datetime

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("vqct_plugin.training.launcher.datetime.datetime", Stopped)
    done = run([write(here, length=2)], trainer={"max_epochs": 1})
    before = {p: p.read_bytes() for p in done.folder.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=r"there is a run in .* already; resume it"):
        run([here / "tiny.yaml"], trainer={"max_epochs": 1})
    assert before == {p: p.read_bytes() for p in done.folder.rglob("*") if p.is_file()}


def test_a_log_folder_that_cannot_be_written_is_refused(here):
    (here / "logs").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match=r"the log folder logs/.* cannot be written: .*choose another logdir"):
        run([write(here)], trainer={"max_epochs": 1})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_log_folder_is_refused(here):
    (here / "logs").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match=r"cannot be written: .*Permission denied"):
        run([write(here)], trainer={"max_epochs": 1})


def test_a_stage_2_whose_permuter_would_drop_tokens_is_refused(tmp_path):
    first = tiny()["model"]
    gpt = {"vocab_size": 64, "block_size": 200, "n_layer": 1, "n_head": 1, "n_embd": 8}
    whole = tiny()
    whole["model"] = {
        "base_learning_rate": 1e-3,
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {
            "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt},
            "first_stage_config": {"target": first["target"], "params": first["params"]},
            "cond_stage_config": "__is_unconditional__",
            "permuter_config": {"target": "taming.modules.transformer.permuter.Subsample", "params": {"H": 8, "W": 8}},
        },
    }
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(whole))
    with pytest.raises(ConfigError, match="would leave out all but the first of a position's 2 tokens"):
        run([tmp_path / "second.yaml"], logdir=tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_null_takes_an_option_back_that_the_target_does_not_have():
    from omegaconf import OmegaConf

    from vqct_plugin.runs.build import build_model

    stock = tiny("taming.models.vqgan.VQModel", topk=None, prior=None)
    assert type(build_model(OmegaConf.create(stock)).quantize).__name__ == "VectorQuantizer2"
    assert build_model(OmegaConf.create(tiny(topk=None))).quantize.topk == 1
    with pytest.raises(ConfigError, match="topk"):
        build_model(OmegaConf.create(tiny("taming.models.vqgan.VQModel", topk=2)))
