"""``vqct-train`` from end to end, and each thing that can be wrong, with nothing written then."""

import os
import re
import resource
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml

from tests.runs.tiny import config as tiny
from tests.runs.tiny import environment, vqct_train, write

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")

from vqct_plugin.runs.config import ConfigError, DataError
from vqct_plugin.training.launcher import check, run
from vqct_plugin.training.trainer import merge_trainer_options


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


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
    nouns = round(rows_of(rows, "train/dead/noun")[0] / (1 - in_use[0]))
    assert [round(nouns * (1 - share)) for share in in_use] == rows_of(rows, "train/dead/noun")
    shown = done.trainer.progress_bar_metrics
    for part in ("adjective", "noun"):
        assert shown[f"dead/{part}"] == rows_of(rows, f"train/dead/{part}")[-1]
        assert shown[f"perplexity/{part}"] == pytest.approx(rows_of(rows, f"train/perplexity/{part}")[-1], rel=1e-5)
    last = [row for row in rows if "val/in_use/adjective" in row][-1]
    assert 1 <= last["val/perplexity/adjective"] <= 14
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
        run([write(here, target=target)], [*words, *changes], trainer={"max_steps": 6})


def test_the_stock_model_trains_too_and_its_codes_are_counted(here):
    target = "taming.models.vqgan.VQModel"
    done = run([write(here, target=target, monitor="val/rec_loss")], trainer={"max_epochs": 5})
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


def test_a_resumed_run_keeps_its_seed(here):
    done = run([write(here)], trainer={"max_epochs": 1}, seed=7)
    again = run(resume=done.folder, trainer={"max_epochs": 2})
    assert done.trainer.datamodule.seed == again.trainer.datamodule.seed == 7
    assert run([here / "tiny.yaml"], trainer={"max_steps": 1}).trainer.datamodule.seed == 23


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
        done = run([write(here)], words, trainer={"max_epochs": 1}, name=callbacks[13:20])
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


def test_a_broken_checkpoint_is_refused_and_left(here):
    done = run([write(here)], trainer={"max_epochs": 1})
    last = done.folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"last\.ckpt is not a checkpoint .*name one of epoch=000000\.ckpt"):
        run(resume=done.folder, trainer={"max_epochs": 2})
    with pytest.raises(ConfigError, match=r"last\.ckpt cannot be resumed"):
        run(resume=last, trainer={"max_epochs": 2})
    assert last.stat().st_size == 1000


def test_code_in_a_checkpoint_is_not_run(here):
    done = run([write(here)], trainer={"max_epochs": 1})
    last = done.folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last)
    torch.save({**checkpoint, "more": Malicious()}, last)
    with pytest.raises(ConfigError, match=r"last\.ckpt cannot be resumed"):
        run(resume=done.folder, trainer={"max_epochs": 2})
    assert not (here / "was here").exists()


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was here",)


def test_a_run_is_never_overwritten(here, monkeypatch):
    import datetime

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("vqct_plugin.training.launcher.datetime.datetime", Stopped)
    done = run([write(here)], trainer={"max_epochs": 1})
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


def test_a_disk_that_is_full_leaves_the_earlier_checkpoint(here):
    """A limit on the size of files stands in for the end of the disk: writes fail, here with `File too large`."""
    first = run([write(here)], trainer={"max_epochs": 1})
    last = first.folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    script = here / "limited.py"
    script.write_text(
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, resource.RLIM_INFINITY))\n"
        "from vqct_plugin.commands.train import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    import subprocess

    words = [sys.executable, str(script), "-r", str(first.folder), "--max_epochs", "3"]
    done = subprocess.run(words, cwd=here, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert f"last.ckpt is the last good checkpoint; resume {first.folder}" in done.stderr
    assert "Traceback" not in done.stderr
    assert last.read_bytes() == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != len(before) // 2  # it was the other process's
    again = run(resume=first.folder, trainer={"max_epochs": 3})
    assert again.trainer.global_step == 18


def test_an_unreadable_image_ends_the_run_by_name(here):
    (here / "images").mkdir()
    (here / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    config = tiny()
    images = {"target": "vqct_plugin.runs.datasets.Images", "params": {"path": "images", "size": 16}}
    config["data"]["params"]["train"] = images
    (here / "a.yaml").write_text(yaml.safe_dump(config))
    done = vqct_train(here, "-b", "a.yaml", "--max_epochs", 1, check=False)
    assert done.returncode == 1
    assert "vqct-train: the image images/broken.jpg cannot be read" in done.stdout
    assert "Traceback" not in done.stdout


def test_kill_usr1_writes_a_checkpoint(here):
    import signal
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
