"""``ckpt_path`` of the adapted models: what is kept, what is left out, what is refused."""

import os

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from tests.conftest import make_prior
from tests.hosts.toy import params, vqct_params
from vqct_plugin.compat.checkpoints import CheckpointError
from vqct_plugin.compat.lightning import for_installed_lightning
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.hosts.taming import VQModel
from vqct_plugin.prior import PriorError

vqgan = import_taming()
Stock = for_installed_lightning(vqgan.VQModel)


class NotThere:
    """Stands for what old Lightning put into checkpoints: classes that need not exist any more."""


@pytest.fixture
def stock(tmp_path):
    """A stock model and its checkpoint."""
    torch.manual_seed(1)
    model = vqgan.VQModel(**params())
    path = tmp_path / "stock.ckpt"
    torch.save({"state_dict": model.state_dict(), "epoch": 1, "callbacks": {NotThere: NotThere()}}, path)
    return model, path


@pytest.fixture
def ours(tmp_path):
    torch.manual_seed(2)
    model = VQModel(**vqct_params())
    torch.save({"state_dict": model.state_dict()}, tmp_path / "ours.ckpt")
    return model, tmp_path / "ours.ckpt"


def test_a_stock_vqgan_gives_all_but_its_codebook(stock, caplog):
    caplog.set_level("INFO", "vqct_plugin")
    model, path = stock
    loaded = VQModel(**vqct_params(ckpt_path=str(path)))
    printed = caplog.text
    for key, value in model.state_dict().items():
        if key != "quantize.embedding.weight":
            assert torch.equal(loaded.state_dict()[key], value), key
    number = len(model.state_dict()) - 1
    assert "Left out quantize.embedding.weight (40, 16), a learned codebook" in printed
    assert f"Restored {number} of the model's {len(loaded.state_dict())} tensors" in printed
    assert "Not in the checkpoint, as initialized: quantize." in printed


def test_a_stock_vqgan_gives_all_to_a_stock_model(stock):
    model, path = stock
    loaded = Stock(**params(ckpt_path=str(path)))
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))


def test_ours_gives_everything(ours, caplog):
    caplog.set_level("INFO", "vqct_plugin")
    model, path = ours
    loaded = VQModel(**vqct_params(ckpt_path=path))
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    assert "Left out" not in caplog.text


def test_ours_over_another_prior_is_refused_and_nothing_is_loaded(ours):
    _, path = ours
    other = VQModel(**vqct_params(prior=make_prior(seed=9)))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(PriorError, match="made from another prior"):
        other.init_from_ckpt(path)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_ignore_keys_leave_out_what_begins_with_them(stock, caplog):
    caplog.set_level("INFO", "vqct_plugin")
    _, path = stock
    torch.manual_seed(5)
    fresh = VQModel(**vqct_params())
    torch.manual_seed(5)
    loaded = VQModel(**vqct_params(ckpt_path=path, ignore_keys=["quant_conv", "loss."]))
    assert torch.equal(fresh.quant_conv.weight, loaded.quant_conv.weight)
    assert not torch.equal(fresh.post_quant_conv.weight, loaded.post_quant_conv.weight)
    assert "Left out quant_conv.weight, as ignore_keys says." in caplog.text


def test_other_shapes_are_refused_with_the_way_out(stock):
    _, path = stock
    sentence = r"quant_conv\.weight is \(16, 32, 1, 1\) there and \(24, 32, 1, 1\) in the model.*ignore_keys"
    with pytest.raises(CheckpointError, match=sentence):
        VQModel(**vqct_params(ckpt_path=path, embed_dim=24))
    VQModel(**vqct_params(ckpt_path=path, embed_dim=24, ignore_keys=["quant_conv", "post_quant_conv"]))
    with pytest.raises(CheckpointError, match=r"quantize\.embedding\.weight is \(40, 16\) there and \(50, 16\)"):
        Stock(**params(ckpt_path=path, n_embed=50))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {"net.weight": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="none of the 1 tensors"):
        VQModel(**vqct_params(ckpt_path=tmp_path / "other.ckpt"))


def test_a_checkpoint_of_lightning_1_0_8(stock, caplog):
    caplog.set_level("INFO", "vqct_plugin")
    path = os.environ.get("OLD_LIGHTNING_CHECKPOINT")
    if path is None:
        pytest.skip("OLD_LIGHTNING_CHECKPOINT names no checkpoint that Lightning 1.0.8 wrote of tests/hosts/toy.py")
    VQModel(**vqct_params(ckpt_path=path))
    assert "Left out quantize.embedding.weight" in caplog.text
