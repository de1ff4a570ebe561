"""``vqct_plugin.Quantizer`` as the one word that a taming YAML changes, on what taming's own configs ask for."""

import copy
import inspect
import pickle

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
pytest.importorskip("taming", reason="taming-transformers is not installed")

import vqct_plugin
from tests.conftest import make_prior
from tests.hosts.taming_configs import FIRST_STAGES, SECOND_STAGES, batches, config
from tests.hosts.test_other_models import SCHEDULE, gumbel, segmentation
from tests.hosts.toy import fit, vqct_params
from vqct_plugin.compat.lightning import for_installed_lightning
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.gumbel import GumbelTransferQuantizer
from vqct_plugin.hosts.llamagen import LlamaGenQuantizer
from vqct_plugin.hosts.quantizer_config import build_quantizer
from vqct_plugin.hosts.target import locate_model
from vqct_plugin.quantizer import CodebookTransferQuantizer

OURS = "vqct_plugin.Quantizer"
FIRST = "params__first_stage_config__target"
BLOCK_SIZE = "params__transformer_config__params__block_size"
JOINT = {"params__first_stage_config__params__parts_of_speech": "joint"}


def build(described):
    """As taming's ``instantiate_from_config``; a class of the host's is adapted to Lightning, as by ``vqct-train``."""
    module, _, name = described["target"].rpartition(".")
    import_taming(module) if module.startswith("taming.") else None
    cls = getattr(__import__(module, fromlist=[name]), name)
    cls = for_installed_lightning(cls) if module.startswith("taming.") else cls
    return cls(**copy.deepcopy(described["params"]))


def trains(model, learned):
    before = {name: value.detach().clone() for name, value in learned(model).state_dict().items()}
    fit(model, batches(1))
    after = learned(model).state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_one_word_of_each_first_stage_trains(name):
    described = config(name, target=OURS)
    model = build(described)
    assert type(model.quantize) is CodebookTransferQuantizer
    assert type(model).__name__ == FIRST_STAGES[name]["target"].rpartition(".")[2]
    trains(model, lambda model: model.quantize)


@pytest.mark.parametrize("name", SECOND_STAGES)
def test_one_word_of_each_second_stage_trains_over_a_joint_first_stage(name):
    """``first_stage_config.target``, with one token per position as the host's second stage was written for: drin's
    other VQGAN without ``sane_index_shape`` included."""
    model = build(config(name, **{FIRST: OURS}, **JOINT))
    assert model.first_stage_model.quantize.tokens_per_position == 1
    trains(model, lambda model: model.transformer)


@pytest.mark.parametrize("name", SECOND_STAGES)
def test_one_word_of_each_second_stage_says_what_block_size_it_needs_over_two_parts(name):
    """Two tokens per position are twice the sequence; with the number that it names, it trains."""
    conditions = 1 if "scene" in name else 64
    sentence = f"expected {conditions + 127} or more: .* conditioning token.* and 128 of an image .64 positions of 2"
    model = build(config(name, **{FIRST: OURS}))
    model.learning_rate = 1e-3
    with pytest.raises(ValueError, match=sentence):  # before the first step, under the host's own launcher
        model.configure_optimizers()
    enough = 64 + 127 if "scene" not in name else 23 + 127
    trains(build(config(name, **{FIRST: OURS, BLOCK_SIZE: enough})), lambda model: model.transformer)


@pytest.mark.parametrize("first", [OURS, "taming.models.vqgan.VQModel"])
@pytest.mark.parametrize("name", SECOND_STAGES)
def test_the_other_word_of_each_second_stage_trains(name, first):
    """``model.target: vqct_plugin.Net2NetTransformer``: an element a position, so nothing else has to change; and
    conditions that are no codes of a VQGAN share ``vocab_size``, as in the host."""
    model = build(config(name, target="vqct_plugin.Net2NetTransformer", **{FIRST: first}))
    trains(model, lambda model: model.transformer)


def test_ours_says_what_block_size_and_conditions_it_needs_when_it_is_built():
    name = "coco_scene_images_transformer"
    ours = {"target": "vqct_plugin.Net2NetTransformer", FIRST: OURS}
    with pytest.raises(
        ValueError, match="block_size is 60; expected 64 or more: at least 1 conditioning token and 64 pos"
    ):
        build(config(name, **ours, **{BLOCK_SIZE: 60}))
    described = config(name, **ours)
    del described["params"]["transformer_config"]["params"]["vocab_size"]
    with pytest.raises(
        ValueError, match=r"set transformer_config.params.cond_vocab_size .in taming's configs of scenes"
    ):
        build(described)


def test_vqct_train_says_it_when_it_builds_the_model():
    omegaconf = pytest.importorskip("omegaconf")
    runs = pytest.importorskip("vqct_plugin.runs.build")

    def made(name, **places):
        return runs.build_model(omegaconf.OmegaConf.create({"model": config(name, **places)}))

    with pytest.raises(runs.ConfigError, match="block_size of the transformer is 128; expected 191 or more"):
        made("faceshq_transformer", **{FIRST: OURS})
    assert type(made("custom_vqgan", target=OURS, params__reuse_forward=True)).__name__ == "VQModel"
    with pytest.raises(runs.ConfigError, match="takes no argument 'tpk'; close to it: topk"):
        made("custom_vqgan", target=OURS, params__tpk=2)
    with pytest.raises(runs.ConfigError, match="stands for a first stage"):
        made("drin_transformer", target=OURS)


class PatchedHost(import_taming().VQModel):
    """As the patch makes it."""

    __module__ = "taming.models.vqgan"  # what vqct-train goes by

    def __init__(self, ddconfig, lossconfig, n_embed, embed_dim, ckpt_path=None, quantizer_config=None):
        super().__init__(ddconfig, lossconfig, n_embed, embed_dim)
        self.quantize = build_quantizer(quantizer_config, n_e=n_embed, e_dim=embed_dim, sane_index_shape=False)


def test_vqct_train_takes_the_models_options_out_of_quantizer_config_and_refuses_an_unpatched_host():
    omegaconf = pytest.importorskip("omegaconf")
    runs = pytest.importorskip("vqct_plugin.runs.build")
    given = {"target": OURS, "params": {"reuse_forward": True, "topk": 2}}

    def made(target):
        described = config("custom_vqgan", target=target, params__quantizer_config=given)
        return runs.build_model(omegaconf.OmegaConf.create({"model": described}))

    model = made(f"{__name__}.PatchedHost")
    assert (model.reuse_forward, model.quantize.topk) == (True, 2)
    with pytest.raises(runs.ConfigError, match=r"taming.models.vqgan comes from .*vqgan.py, which is not patched"):
        made("taming.models.vqgan.VQModel")


def test_which_model_follows_from_the_params():
    assert type(CodebookTransferQuantizer(**vqct_params())) is vqct_plugin.VQModel
    assert type(CodebookTransferQuantizer(**segmentation())) is vqct_plugin.VQSegmentationModel
    model = CodebookTransferQuantizer(**gumbel())
    assert type(model) is vqct_plugin.GumbelVQ
    assert type(model.quantize) is GumbelTransferQuantizer
    assert SCHEDULE["target"]  # which is what told
    with pytest.raises(TypeError, match="was given ddconfig, as a host's model is, but no lossconfig and no n_embed"):
        CodebookTransferQuantizer(ddconfig={})
    with pytest.raises(TypeError, match="the quantizer by itself n_e and e_dim"):
        CodebookTransferQuantizer(n_embed=40, embed_dim=16)


def test_latent_diffusions_params_ask_for_its_own_model():
    for told in ({"lossconfig": {"target": "ldm.modules.losses.vqperceptual.L"}}, {"use_ema": True}):
        assert locate_model({**vqct_params(), **told}) == ("vqct_plugin.hosts.latent_diffusion", "VQModel")


#: latent-diffusion's shipped first stages at a506df5: what of their params could tell them from taming's
LATENT_DIFFUSIONS = {
    "vq-f4": {"embed_dim": 3, "n_embed": 8192, "monitor": "val/rec_loss", "ddconfig": {"attn_resolutions": []}},
    "vq-f4-noattn": {
        "embed_dim": 3, "n_embed": 8192, "monitor": "val/rec_loss",
        "ddconfig": {"attn_type": "none", "attn_resolutions": []},
    },
    "vq-f8": {"embed_dim": 4, "n_embed": 16384, "monitor": "val/rec_loss", "ddconfig": {"attn_resolutions": [32]}},
    "vq-f8-n256": {"embed_dim": 4, "n_embed": 256, "monitor": "val/rec_loss", "ddconfig": {"attn_resolutions": [32]}},
    "vq-f16": {"embed_dim": 8, "n_embed": 16384, "ddconfig": {"attn_resolutions": [16]}},
}  # fmt: skip


@pytest.mark.parametrize("name", LATENT_DIFFUSIONS)
def test_latent_diffusions_shipped_first_stages_get_the_encoder_that_obeys_them(name):
    """All have taming's loss. Where taming's encoder would swallow an argument, it is not taken."""
    from taming.modules.diffusionmodules.model import Encoder

    given = LATENT_DIFFUSIONS[name]
    loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"}
    module, cls = locate_model({**given, "lossconfig": loss})
    swallowed = set(given["ddconfig"]) - set(inspect.signature(Encoder.__init__).parameters)
    assert (module, cls) == (f"vqct_plugin.hosts.{'latent_diffusion' if swallowed else 'taming'}", "VQModel")
    linear = {**given, "lossconfig": loss, "ddconfig": {**given["ddconfig"], "use_linear_attn": True}}
    assert locate_model(linear) == ("vqct_plugin.hosts.latent_diffusion", "VQModel")


def test_it_stays_the_quantizers_class():
    assert vqct_plugin.Quantizer is CodebookTransferQuantizer
    quantizer = vqct_plugin.Quantizer(40, 16, prior=make_prior())
    assert type(quantizer) is CodebookTransferQuantizer
    for again in (pickle.loads(pickle.dumps(quantizer)), copy.deepcopy(quantizer)):
        assert type(again) is CodebookTransferQuantizer
        assert torch.equal(again.embedding.weight, quantizer.embedding.weight)
    assert next(iter(inspect.signature(vqct_plugin.Quantizer).parameters)) == "n_e"
    assert inspect.signature(LlamaGenQuantizer).parameters["legacy"].default is False

    class Mine(vqct_plugin.Quantizer):
        def __init__(self, n_embed, **options):
            super().__init__(n_embed, 16, **options)

    assert type(Mine(n_embed=40, prior=make_prior())) is Mine  # a subclass of yours takes what it takes


@pytest.mark.parametrize("name", ["VQModel", "VQSegmentationModel", "GumbelVQ", "Net2NetTransformer"])
def test_every_model_is_found_at_the_top(name):
    assert getattr(vqct_plugin, name).__name__ == name


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("GumbelTransferQuantizer", "it is vqct_plugin.gumbel.GumbelTransferQuantizer"),
        ("VQModelInterface", "it is vqct_plugin.hosts.latent_diffusion.VQModelInterface"),
        ("GumbelVq", "close to it: vqct_plugin.GumbelVQ"),
        ("VQSegmentationModle", "close to it: vqct_plugin.VQSegmentationModel"),
    ],
)
def test_what_is_elsewhere_is_said(name, sentence):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'.*{sentence}"):
        getattr(vqct_plugin, name)
