"""A trained taming run as a model of diffusers, and back, with the same reconstructions."""

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
pytest.importorskip("diffusers", reason="diffusers is not installed")

import diffusers
import numpy as np

from tests.conftest import assert_close, make_prior
from tests.runs.test_load import make_run
from tests.runs.tiny import config
from vqct_plugin import Quantizer
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.hosts.diffusers import VQModel
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.diffusers import to_diffusers, to_run
from vqct_plugin.runs.load import load_run

DEEP = {"ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [8, 4], "resolution": 16}


def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ddconfig(**changes):
    return {**config()["model"]["params"]["ddconfig"], **changes}


def same(one, other):
    """Reconstructions and codes of a taming model and of one of diffusers."""
    x = images()
    with torch.no_grad():
        assert_close(one(x)[0], other(x).sample, rtol=1e-4, atol=1e-5)
        assert torch.equal(one.encode(x)[2][2], other.quantize(other.encode(x).latents)[2][2])


@pytest.mark.parametrize("options", [{"topk": 2}, {"parts_of_speech": "joint", "transfer": "table"}])
def test_a_run_goes_there_and_back(options, tmp_path):
    prior = tmp_path / "words.safetensors"
    make_prior((40, 60)).save(prior)
    run = make_run(tmp_path / "run", prior=str(prior), ddconfig=ddconfig(**DEEP), **options)
    prior.unlink()
    exported = to_diffusers(tmp_path / "run")
    same(run, exported)
    exported.save_pretrained(tmp_path / "model")
    model = VQModel.from_pretrained(tmp_path / "model")
    same(run, model)
    assert model.quantize.words == run.quantize.words
    assert model.config.quantizer_config["params"]["prior"] == prior.name
    back = load_run(to_run(tmp_path / "model", tmp_path / "back"))
    assert_close(back.model(images())[0], run(images())[0], rtol=0, atol=0)
    assert back.model.quantize.settings == run.quantize.settings
    assert dict(back.config.model.params.ddconfig) == ddconfig(**DEEP, dropout=0.0)
    assert back.config.model.params.prior == prior.name


def test_a_run_of_tamings_own_quantizer_is_a_stock_model(tmp_path):
    import_taming()
    run = make_run(tmp_path / "run", target="taming.models.vqgan.VQModel")
    model = to_diffusers(tmp_path / "run")
    assert type(model) is diffusers.VQModel
    same(run, model)
    back = load_run(to_run(model, tmp_path / "back"))
    assert_close(back.model(images())[0], run(images())[0], rtol=0, atol=0)


def test_a_model_of_diffusers_goes_on_as_a_run(tmp_path):
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64), latent_channels=8, num_vq_embeddings=40, quantizer_config={"prior": make_prior()},
    ).eval()  # fmt: skip
    run = load_run(to_run(model, tmp_path / "run", {"target": "tests.hosts.toy.ToyLoss"}, resolution=16))
    same(run.model, model)
    assert run.config.model.params.lossconfig.target == "tests.hosts.toy.ToyLoss"
    with pytest.raises(ConfigError, match="is not empty"):
        to_run(model, tmp_path / "run")


SMALL = {
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (32, 64), "latent_channels": 8, "num_vq_embeddings": 40, "sample_size": 16,
}  # fmt: skip


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("plain_line", [False, True])
def test_the_folder_of_a_stock_model_keeps_its_codebook(plain_line, safe, tmp_path):
    model = diffusers.VQModel(**SMALL).eval()
    if plain_line:
        model.quantize = Quantizer(40, 8, prior=make_prior()).eval()
    model.save_pretrained(tmp_path / "model", safe_serialization=safe)
    back = load_run(to_run(tmp_path / "model", tmp_path / "run", {"target": "tests.hosts.toy.ToyLoss"}))
    assert torch.equal(back.model.quantize.embedding.weight, model.quantize.embedding.weight)
    same(back.model, model)


def test_what_is_no_model_and_no_loss_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere is no folder; expected a model, or the folder"):
        to_run(tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"user/name is no folder"):
        to_run("user/name", tmp_path / "run")
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"model has no config\.json"):
        to_run(tmp_path / "model", tmp_path / "run")
    model = VQModel(**SMALL, quantizer_config={"prior": make_prior()})
    model.save_config(tmp_path / "model")
    with pytest.raises(ConfigError, match="cannot be loaded as a model of diffusers"):
        to_run(tmp_path / "model", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"lossconfig\.target is nowhere\.Loss, but there is no module nowhere"):
        to_run(model, tmp_path / "run", {"target": "nowhere.Loss"})
    with pytest.raises(ConfigError, match="expected a mapping with the key `target`"):
        to_run(model, tmp_path / "run", {"params": {}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ch_mult": [2, 2]}, r"ddconfig.ch_mult begins with 2; diffusers' VQModel can only have 1"),
        ({"resamp_with_conv": False}, r"ddconfig.resamp_with_conv is False"),
    ],
)
def test_a_run_that_diffusers_cannot_have_is_refused(changes, sentence, tmp_path):
    make_run(tmp_path / "run", prior=write_prior(tmp_path), ddconfig=ddconfig(**changes))
    with pytest.raises(ConfigError, match=sentence):
        to_diffusers(tmp_path / "run")


def test_a_quantizer_that_diffusers_cannot_have_is_refused(tmp_path):
    schedule = {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler", "params": {
        "warm_up_steps": 0, "lr_min": 1.0, "lr_max": 1.0, "lr_start": 1.0, "max_decay_steps": 1}}  # fmt: skip
    make_run(
        tmp_path / "run",
        target="vqct_plugin.GumbelVQ",
        prior=write_prior(tmp_path),
        temperature_scheduler_config=schedule,
    )
    with pytest.raises(ConfigError, match="has a GumbelTransferQuantizer as its quantizer"):
        to_diffusers(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"norm_type": "spatial"}, "norm_type is 'spatial'; taming's VQGAN can only have 'group'"),
        ({"block_out_channels": (64, 96)}, "multiples of the first"),
        ({"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")}, "in reverse"),
        ({"sample_size": 33}, "expected a multiple of 2"),
    ],
)
def test_a_model_that_taming_cannot_have_is_refused(changes, sentence, tmp_path):
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (32, 32), "latent_channels": 8, "num_vq_embeddings": 40, **changes,
    }  # fmt: skip
    model = VQModel(**sizes, quantizer_config={"prior": make_prior()})
    with pytest.raises(ConfigError, match=sentence):
        to_run(model, tmp_path / "run")


class Cut(torch.nn.Module):
    def forward(self, vectors, edges, edge_weight):
        return vectors[:, :4]


def test_a_quantizer_that_a_run_cannot_have_is_refused(tmp_path):
    def model(**options):
        sizes = {"norm_num_groups": 32, "block_out_channels": (32,), "latent_channels": 8, "num_vq_embeddings": 40}
        return VQModel(**sizes, quantizer_config={"prior": make_prior(), **options})

    np.save(tmp_path / "used.npy", np.arange(10))
    with pytest.raises(ConfigError, match="has a remap"):
        to_run(model(parts_of_speech="joint", remap=str(tmp_path / "used.npy")), tmp_path / "run")
    other = model()
    other.quantize = Quantizer(40, 8, prior=make_prior(), transfer=Cut())
    with pytest.raises(ConfigError, match="an object as its transfer, tests"):
        to_run(other, tmp_path / "run")
    other.quantize = torch.nn.Identity()
    other.quantize.n_e = 40
    with pytest.raises(ConfigError, match="quantizer is a Identity"):
        to_run(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def write_prior(folder):
    make_prior((40, 60)).save(folder / "words.safetensors")
    return str(folder / "words.safetensors")
