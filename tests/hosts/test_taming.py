"""``vqct_plugin.VQModel``: the host's model, its quantizer replaced, and nothing else."""

import inspect

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from tests.conftest import make_prior
from tests.hosts.toy import dd_config, images, params, vqct_params
from vqct_plugin import CodebookTransferQuantizer
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.hosts.taming import VQModel

vqgan = import_taming()


@pytest.mark.parametrize("colorize", [None, 5])
def test_everything_but_the_quantizer_is_bitwise_the_hosts_under_the_same_seed(colorize):
    torch.manual_seed(3)
    stock = vqgan.VQModel(**params(colorize_nlabels=colorize)).state_dict()
    torch.manual_seed(3)
    ours = VQModel(**vqct_params(colorize_nlabels=colorize)).state_dict()
    assert {k for k in stock if not k.startswith("quantize.")} == {k for k in ours if not k.startswith("quantize.")}
    for key in stock:
        if not key.startswith("quantize."):
            assert torch.equal(stock[key], ours[key]), key


def test_the_package_gives_the_model_by_name():
    import vqct_plugin

    assert vqct_plugin.VQModel is VQModel
    assert issubclass(VQModel, vqgan.VQModel)
    ours, hosts = (list(inspect.signature(cls.__init__).parameters) for cls in (VQModel, vqgan.VQModel))
    assert ours[: len(hosts)] == hosts


def test_images_go_in_and_come_out():
    model = VQModel(**vqct_params(n_embed=80, embed_dim=24)).eval()
    x = next(iter(images(1)))["image"].permute(0, 3, 1, 2)
    reconstruction, loss = model(x)
    assert reconstruction.shape == x.shape
    assert loss.shape == ()
    quantized, _, (_, _, indices) = model.encode(x)
    assert torch.equal(model.quantize.get_codebook_entry(indices, (2, 8, 8, 24)), quantized)
    assert torch.equal(model.decode_code(indices.view(2, -1)), reconstruction)


def test_every_option_of_the_quantizer_is_taken():
    options = {
        "prior": make_prior((20, 30)), "parts_of_speech": ["adjective", "noun"], "topk": 2, "transfer": "graph",
        "dropout": 0.25, "edge_weight": "log", "legacy": False, "beta": 0.5,
        "l2_normalize": True, "channels_last": False, "combine": "concat", "gradient": "rotation",
        "loss_terms": {"commitment": 0.1},
    }  # fmt: skip
    keywords = {
        name
        for name, p in inspect.signature(CodebookTransferQuantizer.__init__).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    assert keywords <= set(options)
    quantizer = VQModel(**params(**options)).quantize
    assert (quantizer.topk, quantizer.legacy, quantizer.beta) == (2, False, 0.5)
    assert quantizer.transfer.dropout.p == 0.25
    default = VQModel(**vqct_params()).quantize
    assert (default.n_e, default.e_dim, default.beta, default.legacy) == (40, 16, 0.25, True)


def test_codes_by_hand_and_yaml_containers_become_plain_python():
    omegaconf = pytest.importorskip("omegaconf")
    conf = omegaconf.OmegaConf.create(
        {
            **params(n_embed={"adjective": 10, "noun": 15}),
            "parts_of_speech": ["adjective", "noun"],
            "topk": {"adjective": 2},
        }
    )
    model = VQModel(**conf, prior=make_prior())
    assert model.quantize.n_e == 25
    assert model.quantize.tokens_per_position == 3
    assert isinstance(model.quantize.topk, dict)


@pytest.mark.parametrize(
    ("keyword", "sentence"),
    [
        ("top_k", "no argument 'top_k'; close to it: topk"),
        ("parts_of_speach", "close to it: parts_of_speech"),
        ("gradient_clip", "gradient_clip_val"),
        ("xyzzy", "it takes ddconfig, lossconfig, n_embed"),
    ],
)
def test_an_unknown_keyword_is_refused_with_those_that_are_close(keyword, sentence):
    with pytest.raises(TypeError, match=sentence):
        VQModel(**vqct_params(**{keyword: 1}))


def test_the_hosts_arguments_reach_the_quantizer():
    model = VQModel(**vqct_params(sane_index_shape=True, monitor="val/rec_loss"))
    x = next(iter(images(1)))["image"].permute(0, 3, 1, 2)
    assert model.encode(x)[2][2].shape == (2, 2, 8, 8)
    assert model.monitor == "val/rec_loss"
    with pytest.raises(ValueError, match="expected a positive multiple of 2"):
        VQModel(**vqct_params(embed_dim=15, combine="concat"))


def test_ddp_has_nothing_of_the_quantizer_to_send_round_but_averages():
    model = VQModel(**vqct_params())
    names = [f"quantize.transfer.{name}" for name in ("counts", "sums", "steps")]
    assert [name for name, _ in model.named_buffers() if name.startswith("quantize.")] == names
    model = VQModel(**vqct_params(transfer="graph"))
    assert not [name for name, _ in model.named_buffers() if name.startswith("quantize.")]


def test_both_optimizers_have_every_parameter_once():
    model = VQModel(**vqct_params())
    model.learning_rate = 1e-3
    optimizers, _ = model.configure_optimizers()
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_other_sizes():
    model = VQModel(**{**vqct_params(), "ddconfig": dd_config(resolution=32)})
    assert model(torch.zeros(1, 3, 32, 32))[0].shape == (1, 3, 32, 32)
