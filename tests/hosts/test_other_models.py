"""taming's other models with a transferred codebook: label maps, Gumbel; and latent-diffusion's first stages."""

import importlib
import sys
import textwrap

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from tests.conftest import assert_close, make_prior
from tests.hosts.toy import dd_config, fit, images, params
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.gumbel import GumbelTransferQuantizer
from vqct_plugin.hosts.taming import GumbelVQ, VQSegmentationModel
from vqct_plugin.quantizer import CodebookTransferQuantizer

SCHEDULE = {
    "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
    "params": {"warm_up_steps": 0, "lr_min": 0.5, "lr_max": 1.0, "lr_start": 1.0, "max_decay_steps": 4},
}


def segmentation(**changes):
    loss = {"target": "taming.modules.losses.segmentation.BCELossWithQuant", "params": {"codebook_weight": 0.1}}
    common = {"ddconfig": dd_config(out_ch=5), "n_embed": 40, "embed_dim": 16, "prior": make_prior(), "dropout": 0.0}
    return {"n_labels": 5, "lossconfig": loss, **common, **changes}


def gumbel(**changes):
    return {**params(), "temperature_scheduler_config": SCHEDULE, "prior": make_prior(), "dropout": 0.0, **changes}


def moved(model, batches, **options):
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    fit(model, batches, **options)
    return {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}


def learned(model):
    """All of the model but the loss: the toy discriminator's last bias has no gradient."""
    return {name for name, _ in model.named_parameters() if not name.startswith("loss.")}


def label_maps(number):
    items = [item for batch in images(number, channels=5) for item in batch["image"]]
    return torch.utils.data.DataLoader([{"segmentation": item} for item in items], batch_size=2)


def test_label_maps_train_and_log_their_pictures():
    options = {"sane_index_shape": True, "monitor": "val/total_loss", "image_key": "segmentation"}
    model = VQSegmentationModel(**segmentation(**options))
    assert isinstance(model, import_taming().VQSegmentationModel)
    assert type(model.quantize) is CodebookTransferQuantizer
    assert moved(model, label_maps(3), val=label_maps(1)) == learned(model)
    batch = next(iter(label_maps(1)))
    _, _, (_, _, indices) = model.eval().encode(model.get_input(batch, "segmentation"))
    assert indices.shape == (2, 2, 8, 8)  # three dimensions or more: what stage 2 reshapes
    assert {picture.shape[1] for picture in model.log_images(batch).values()} == {3}


def test_the_gumbel_model_trains_at_the_hosts_temperature():
    model = GumbelVQ(**gumbel(kl_weight=1e-3))
    assert isinstance(model, import_taming().GumbelVQ)
    assert type(model.quantize) is GumbelTransferQuantizer
    assert model.quantize.kl_weight == 1e-3
    assert moved(model, images(4), val=images(1)) >= learned(model)
    assert model.quantize.temperature == pytest.approx(model.temperature_scheduler(3))
    assert model.quantize.temperature < 1
    x = model.get_input(next(iter(images(1))), "image")
    quantized, _, (_, _, indices) = model.eval().encode(x)
    assert_close(model.decode_code(indices), model.decode(quantized))


@pytest.mark.parametrize(("cls", "make"), [(VQSegmentationModel, segmentation), (GumbelVQ, gumbel)])
def test_a_checkpoint_comes_back_and_a_wrong_word_does_not(cls, make, tmp_path):
    torch.manual_seed(1)
    model = cls(**make())
    torch.save({"state_dict": model.state_dict()}, str(tmp_path / "model.ckpt"))
    again = cls(**make(ckpt_path=str(tmp_path / "model.ckpt")))
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(TypeError, match=rf"{cls.__name__} takes no argument 'priors'; close to it: prior"):
        cls(**make(priors="x"))


@pytest.mark.parametrize(("cls", "make"), [(VQSegmentationModel, segmentation), (GumbelVQ, gumbel)])
def test_codes_by_hand(cls, make):
    quantizer = cls(**make(n_embed={"adjective": 10, "noun": 20})).quantize
    assert (quantizer.part_of_speech == 0).sum() == 10
    assert quantizer.n_e == 30


AUTOENCODER = """
    import torch
    from vqct_plugin.compat.taming_imports import import_taming

    class VQModel(import_taming().VQModel):
        def __init__(self, ddconfig, lossconfig, n_embed, embed_dim, ckpt_path=None, ignore_keys=[], image_key="image",
                     colorize_nlabels=None, monitor=None, batch_resize_range=None, lr_g_factor=1.0, remap=None,
                     sane_index_shape=False, use_ema=False):
            super().__init__(ddconfig, lossconfig, n_embed, embed_dim, image_key=image_key, monitor=monitor)
            assert ckpt_path is None and not use_ema
            self.use_ema, self.lr_g_factor = use_ema, lr_g_factor

        def forward(self, input, return_pred_indices=False):
            quant, diff, (_, _, indices) = self.encode(input)
            return (self.decode(quant), diff, indices)[:2 + return_pred_indices]

        def get_input(self, batch, k):
            assert np and LambdaLR and LitEma  # what the host forgot to import
            return super().get_input(batch, k)

    class VQModelInterface(VQModel):
        def __init__(self, embed_dim, *args, **kwargs):
            super().__init__(embed_dim=embed_dim, *args, **kwargs)

        def encode(self, x):
            return self.quant_conv(self.encoder(x))

        def decode(self, h, force_not_quantize=False):
            return super().decode(h if force_not_quantize else self.quantize(h)[0])
"""
EMA = """
    import torch

    class LitEma(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.names = [name for name, p in model.named_parameters() if p.requires_grad]

        def forward(self, model):
            missing = {name for name, p in model.named_parameters() if p.requires_grad} - set(self.names)
            assert not missing, missing
"""


@pytest.fixture
def latent_diffusion(tmp_path, monkeypatch):
    """The module of our models on a host with latent-diffusion's interface (the real one is in test_real_hosts.py)."""
    for name, text in (("models/autoencoder.py", AUTOENCODER), ("modules/ema.py", EMA)):
        path = tmp_path / "ldm" / name
        path.parent.mkdir(parents=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name == "ldm" or name.startswith("ldm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "vqct_plugin.hosts.latent_diffusion", raising=False)
    yield importlib.import_module("vqct_plugin.hosts.latent_diffusion")
    for name in [name for name in sys.modules if name == "ldm" or name.startswith("ldm.")]:
        del sys.modules[name]
    sys.modules.pop("vqct_plugin.hosts.latent_diffusion", None)


def test_a_latent_diffusion_first_stage_trains_with_averages_of_our_weights(latent_diffusion, tmp_path):
    given = {
        **params(),
        "prior": make_prior(),
        "transfer": "graph",
        "dropout": 0.0,
        "lr_g_factor": 2.0,
        "use_ema": True,
    }
    model = latent_diffusion.VQModel(**given)
    assert model.lr_g_factor == 2.0
    assert any("transfer" in name for name in model.model_ema.names)
    assert moved(model, images(2)) >= learned(model)
    model.model_ema(model)
    torch.save({"state_dict": model.state_dict()}, str(tmp_path / "first.ckpt"))
    given.update(use_ema=False, ckpt_path=str(tmp_path / "first.ckpt"))
    stage_2 = latent_diffusion.VQModelInterface(**given).eval()
    model.eval()
    x = model.get_input(next(iter(images(1))), "image")
    h = stage_2.encode(x)
    assert torch.equal(stage_2.decode(h), model(x)[0])
    assert torch.equal(model(x, return_pred_indices=True)[2], stage_2.quantize(h)[2][2])
    assert isinstance(stage_2, importlib.import_module("ldm.models.autoencoder").VQModelInterface)


def test_latent_diffusions_unknown_words_are_refused(latent_diffusion):
    with pytest.raises(TypeError, match="VQModel takes no argument 'monitr'; close to it: monitor"):
        latent_diffusion.VQModel(**params(), prior=make_prior(), monitr="x")
    with pytest.raises(ValueError, match="e_dim is 3; expected a positive multiple of 2"):
        latent_diffusion.VQModel(**params(embed_dim=3), prior=make_prior(), combine="concat")


def test_without_the_checkout_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ldm", None)
    monkeypatch.delitem(sys.modules, "vqct_plugin.hosts.latent_diffusion", raising=False)
    with pytest.raises(ImportError, match="is for a checkout of CompVis/latent-diffusion"):
        importlib.import_module("vqct_plugin.hosts.latent_diffusion")
