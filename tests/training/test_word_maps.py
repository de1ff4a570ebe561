"""Word maps while training: the same images each time, what is drawn is what was chosen, and training is left alone."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from omegaconf import OmegaConf

from tests.runs.tiny import config
from vqct_plugin.runs.build import build_data, build_model
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.training import word_maps
from vqct_plugin.training.trainer import build_callbacks
from vqct_plugin.training.word_maps import CELL, WordMapLogger, draw_word_maps


def make(target="vqct_plugin.VQModel", **params):
    whole = OmegaConf.create(config(target, **params))
    whole.data.params.validation.params.size = 32
    return build_model(whole), build_data(whole)


def pretend(data, folder, step=0):
    return SimpleNamespace(
        datamodule=data,
        val_dataloaders=None,
        is_global_zero=True,
        global_step=step,
        loggers=[],
        default_root_dir=folder,
    )


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, as the arguments of the function that draws."""
    calls, draw = [], word_maps.draw_word_maps
    monkeypatch.setattr(word_maps, "draw_word_maps", lambda *args: calls.append(args) or draw(*args))
    return calls


def test_the_same_images_and_what_is_chosen_of_them_now(tmp_path, drawn):
    model, data = make(topk={"adjective": 2, "noun": 1})
    model.train()
    callback, trainer = WordMapLogger(every_n_batches=10), pretend(data, tmp_path)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    modes = [module.training for module in model.modules()]
    callback.on_train_start(trainer, model)
    with torch.no_grad():
        model.encoder.conv_out.weight.add_(0.5)
    for step in (5, 10, 10, 11):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, model, None, None, 0)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert [module.training for module in model.modules()] == modes
    assert sorted(p.name for p in (tmp_path / "images/words").iterdir()) == ["maps_gs-000000.png", "maps_gs-000010.png"]
    (first, _, names, words, colors), (then, codes, *_, again) = drawn
    assert names == ["adjective", "adjective", "noun"]
    assert [name for name, _ in first] == ["inputs", "reconstructions"]
    assert torch.equal(first[0][1], then[0][1])
    assert not torch.equal(first[1][1], then[1][1])
    assert colors == again
    # by hand: the four images, evenly spaced, and their codes
    items = data.datasets["validation"]
    places = [i * len(items) // 4 for i in range(4)]
    x = torch.stack([torch.from_numpy(items[i]["image"]) for i in places]).permute(0, 3, 1, 2)
    assert torch.equal(first[0][1], x)
    model.eval()
    with torch.no_grad():
        _, _, (_, _, indices) = model.encode(x)
    assert torch.equal(codes.reshape(-1), indices)
    assert words == model.quantize.words


def test_a_cell_has_its_words_color_and_text():
    codes = torch.tensor([[[[0, 1]], [[2, 2]]]])  # an image, two tokens, one row of two positions
    picture = torch.ones(1, 3, 4, 8)
    colors = ["#ff0000", "#00ff00", "#0000ff"]
    found = draw_word_maps([("inputs", picture)], codes, ["adjective", "noun"], ["", "red", "bird"], colors)
    assert found.shape == (CELL + 16, 3 * (2 * CELL + 4) - 4, 3)
    assert (found[16:, : 2 * CELL] == 255).all()  # the picture, white
    left = 2 * CELL + 4
    assert (found[16:, left : left + CELL] == [255, 0, 0]).all()  # a word without letters
    cell = found[16:, left + CELL : left + 2 * CELL].reshape(-1, 3)
    assert (cell[-1] == [0, 255, 0]).all()
    assert ((cell != [0, 255, 0]).any(axis=1)).any()  # letters


@pytest.mark.parametrize("target", ["taming.models.vqgan.VQModel", "taming.models.vqgan.GumbelVQ"])
def test_stock_quantizers_codes_have_numbers(tmp_path, drawn, target):
    more = {} if "Gumbel" not in target else {
        "embed_dim": 32,
        "temperature_scheduler_config": {
            "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
            "params": {"warm_up_steps": 0, "max_decay_steps": 9, "lr_start": 1, "lr_max": 1, "lr_min": 1},
        }
    }  # fmt: skip
    model, data = make(target, **more)
    WordMapLogger(images=2).on_train_start(pretend(data, tmp_path), model)
    ((shown, codes, names, words, colors),) = drawn
    assert shown[0][1].shape[0] == codes.shape[0] == 2
    assert names == ["code"]
    assert words[3] == "code 3"
    assert len(set(colors)) == len(words) == 64


def test_nothing_to_draw_is_left_alone(tmp_path, caplog):
    model, data = make()
    callback = WordMapLogger()
    callback.on_train_start(pretend(data, tmp_path), torch.nn.Identity())  # no codebook
    with caplog.at_level(logging.WARNING, "vqct_plugin"):
        callback.on_train_start(pretend(None, tmp_path), model)
    assert "no word maps: the data has no validation set" in caplog.text
    callback.on_train_batch_end(pretend(data, tmp_path, step=500), model, None, None, 0)
    assert not (tmp_path / "images").exists()


def test_one_line_of_a_yaml_is_enough(tmp_path):
    def build(callbacks):
        found = build_callbacks(OmegaConf.create({"callbacks": callbacks}), None, tmp_path)
        return [each for each in found if isinstance(each, WordMapLogger)]

    (callback,) = build({"word_maps": {}})
    assert (callback.every_n_batches, callback.images, callback.folder) == (500, 4, tmp_path)
    assert build({"word_maps": {"params": {"images": 2}}})[0].images == 2
    assert build({}) == build({"word_maps": None}) == []
    with pytest.raises(ConfigError, match="images is 0; expected an integer of 1 or more"):
        build({"word_maps": {"params": {"images": 0}}})
    with pytest.raises(ConfigError, match="every_n_batches is True; expected"):
        WordMapLogger(every_n_batches=True)
