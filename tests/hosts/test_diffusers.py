"""diffusers' VQModel with a transferred codebook, through all that diffusers and accelerate do with a model."""

import argparse
import copy
import doctest
import json
import pickle
import shutil
import sys
import types

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import accelerate
import diffusers
from diffusers.training_utils import EMAModel

import vqct_plugin
import vqct_plugin.hosts.diffusers
from tests.conftest import assert_close, make_prior
from vqct_plugin.compat.hub import HubError
from vqct_plugin.hosts.diffusers import VQModel
from vqct_plugin.prior import PriorError

SIZES = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 8,
    "num_vq_embeddings": 40,
}
AVERAGES = {"transfer": {"target": "averages", "relatives": 4}}
TABLE = {"transfer": "table", "parts_of_speech": "joint"}


def images(seed=0):
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def make(tmp_path=None, seed=0, **options):
    """A small model; with a folder, over a prior file there."""
    sizes = {**SIZES, **{name: options.pop(name) for name in list(options) if name in (*SIZES, "norm_type")}}
    sizes.update({name: options.pop(name) for name in ("lookup_from_codebook",) if name in options})
    prior = make_prior()
    if tmp_path is not None:
        prior.save(tmp_path / "words.safetensors")
        prior = tmp_path / "words.safetensors"
    torch.manual_seed(seed)
    return VQModel(**sizes, quantizer_config={"prior": prior, **options})


def train(model, steps=2):
    """Some steps of the loss of diffusers' script, without its discriminator."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for step in range(steps):
        x = images(step)
        fmap, commit_loss = model(x, return_dict=False)
        loss = torch.nn.functional.mse_loss(x, fmap) + commit_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def reconstruct(model):
    return model.eval()(images()).sample


@pytest.fixture(params=["graph", "averages", "spatial", "joint"])
def trained(request, tmp_path):
    """A trained model whose prior file is gone."""
    options = {"averages": AVERAGES, "spatial": {"norm_type": "spatial", "topk": 2}, "joint": TABLE}
    model = train(make(tmp_path, **options.get(request.param, {"transfer": "graph"})))
    (tmp_path / "words.safetensors").unlink()
    return model


def test_all_but_the_quantizer_is_the_hosts():
    torch.manual_seed(3)
    stock = diffusers.VQModel(**SIZES)
    after = torch.rand(3)
    ours = make(seed=3)
    assert torch.equal(torch.rand(3), after)
    theirs = {name: value for name, value in stock.state_dict().items() if not name.startswith("quantize.")}
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.items())
    assert type(ours.quantize) is vqct_plugin.Quantizer


def test_a_table_is_the_hosts_quantizer():
    torch.manual_seed(3)
    stock = diffusers.VQModel(**SIZES)
    ours = make(seed=3, **TABLE)
    for one, other in zip(stock(images(), return_dict=False), ours(images(), return_dict=False)):
        assert_close(one, other)


@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_a_folder_stands_alone(trained, shards, tmp_path, caplog):
    trained.save_pretrained(tmp_path / "model", max_shard_size=shards)
    assert (len(list((tmp_path / "model").glob("*.safetensors"))) > 1) == (shards == "20KB")
    back, report = VQModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert "not expected" not in caplog.text  # of config.json
    assert not back.training
    assert not back.quantize.training
    assert torch.equal(reconstruct(back), reconstruct(trained))
    assert back.quantize.words == trained.quantize.words
    its = trained.config.quantizer_config
    assert back.config.quantizer_config == {**its, "params": {**its["params"], "prior": "words.safetensors"}}
    again = VQModel.from_config(back.config)  # its prior is known as long as the model is there
    assert again.quantize.prior.fingerprint == back.quantize.prior.fingerprint
    train(back)


def test_the_hub_gets_the_folder(trained, tmp_path, monkeypatch):
    from diffusers.utils import hub_utils

    def upload(repo_id, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / repo_id)

    monkeypatch.setattr(hub_utils, "create_repo", lambda repo_id, **_: argparse.Namespace(repo_id=repo_id))
    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    trained.push_to_hub("user/name", subfolder="tokenizer")  # of a folder at the top the hub is asked for its card
    assert torch.equal(reconstruct(VQModel.from_pretrained(tmp_path / "user/name")), reconstruct(trained))


def test_the_file_that_stands_there_now_is_not_asked(tmp_path):
    model = make(tmp_path)
    model.save_pretrained(tmp_path / "model")
    make_prior(seed=1).save(tmp_path / "words.safetensors", overwrite=True)
    assert torch.equal(reconstruct(VQModel.from_pretrained(tmp_path / "model")), reconstruct(model))


def test_the_prior_that_the_caller_names_is_that_of_the_weights(tmp_path):
    model = make(tmp_path, topk=2)
    model.save_pretrained(tmp_path / "model")
    for same in (make_prior(), str(tmp_path / "words.safetensors")):
        back = VQModel.from_pretrained(tmp_path / "model", quantizer_config={"prior": same, "topk": 2})
        assert torch.equal(reconstruct(back), reconstruct(model))
    back = VQModel.from_pretrained(tmp_path / "model", quantizer_config=model.config.quantizer_config)
    assert torch.equal(reconstruct(back), reconstruct(model))
    with pytest.raises(PriorError, match="made from another prior"):
        VQModel.from_pretrained(tmp_path / "model", quantizer_config={"prior": make_prior(seed=1), "topk": 2})
    with pytest.raises(PriorError, match="gone"):
        VQModel.from_pretrained(tmp_path / "model", quantizer_config={"prior": "gone.safetensors", "topk": 2})


@pytest.mark.parametrize(
    "options", [{"transfer": "graph", "dropout": 0.1}, {"transfer": "averages", "combine": "concat"}]
)
def test_a_folder_that_was_written_under_earlier_defaults(options, tmp_path):
    """Its config names what the user wrote, and the rest was the default then."""
    model = train(make(tmp_path, **options))
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    for name in ("transfer", "combine"):
        del config["quantizer_config"]["params"][name]
    file.write_text(json.dumps(config))
    back = VQModel.from_pretrained(tmp_path / "model")
    assert torch.equal(reconstruct(back), reconstruct(model))
    assert VQModel.from_config(back.config).quantize.settings == model.quantize.settings


def test_the_config_says_which_transfer_it_is(tmp_path):
    make(tmp_path).save_pretrained(tmp_path / "model")
    params = json.loads((tmp_path / "model" / "config.json").read_text())["quantizer_config"]["params"]
    assert params == {"transfer": "averages", "combine": "sum", "prior": "words.safetensors"}


def test_the_config_names_no_folder_of_this_machine(tmp_path):
    model = make(tmp_path)
    model.save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
    assert model.config.quantizer_config["params"]["prior"] == str(tmp_path / "words.safetensors")  # while it lives
    make().save_pretrained(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    assert "prior" not in config["quantizer_config"]["params"]
    assert torch.equal(reconstruct(VQModel.from_pretrained(tmp_path / "other")), reconstruct(make()))


def test_bfloat16(trained, tmp_path):
    trained.save_pretrained(tmp_path / "model")
    half = VQModel.from_pretrained(tmp_path / "model", torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.quantize.embedding.weight, trained.quantize.embedding.weight)
    fmap, loss = half(images().bfloat16(), return_dict=False)
    assert fmap.dtype == torch.bfloat16
    (fmap.float().mean() + loss).backward()
    half = half.eval().to(torch.bfloat16)  # the quantizer too
    half.save_pretrained(tmp_path / "half")
    back = VQModel.from_pretrained(tmp_path / "half", dtype=torch.bfloat16).to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(back(images().bfloat16()).sample, half(images().bfloat16()).sample)


def test_the_plain_line(tmp_path):
    model = diffusers.VQModel(**SIZES)
    model.quantize = vqct_plugin.Quantizer(
        model.config.num_vq_embeddings, model.config.latent_channels, prior=make_prior(), topk=2
    )
    train(model).save_pretrained(tmp_path / "model")
    back = VQModel.from_pretrained(tmp_path / "model")
    assert torch.equal(reconstruct(back), reconstruct(model))
    back.save_pretrained(tmp_path / "again")
    assert torch.equal(reconstruct(VQModel.from_pretrained(tmp_path / "again")), reconstruct(model))


def test_a_stock_folder_is_a_start(tmp_path, caplog):
    stock = diffusers.VQModel(**SIZES)
    stock.save_pretrained(tmp_path / "model")
    ours = VQModel.from_pretrained(tmp_path / "model", quantizer_config={"prior": make_prior()})
    assert "the transferred one starts anew" in caplog.text
    assert torch.equal(ours.encode(images()).latents, stock.encode(images()).latents)
    same = VQModel.from_pretrained(tmp_path / "model", quantizer_config={"prior": make_prior(), **TABLE})
    assert torch.equal(reconstruct(same), reconstruct(stock))


def test_averages_of_the_weights(trained, tmp_path):
    """``EMAModel``, which writes a model made from the config with parameters alone."""
    ema = EMAModel(trained.parameters(), decay=0.5, model_cls=VQModel, model_config=trained.config)
    ema.step(train(trained).parameters())
    ema.step(train(trained).parameters())
    expected = copy.deepcopy(trained)
    ema.copy_to(expected.parameters())
    ema.save_pretrained(tmp_path / "ema")
    assert torch.equal(reconstruct(VQModel.from_pretrained(tmp_path / "ema")), reconstruct(expected))
    back = EMAModel.from_pretrained(tmp_path / "ema", VQModel)
    assert (back.decay, back.optimization_step) == (0.5, 2)
    assert all(torch.equal(one, other) for one, other in zip(back.shadow_params, ema.shadow_params))
    back.save_pretrained(tmp_path / "again")
    assert torch.equal(reconstruct(VQModel.from_pretrained(tmp_path / "again")), reconstruct(expected))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_know_their_own_quantizer(way, trained, tmp_path):
    other = way(trained)
    assert other.config.quantizer_config.quantizer is other.quantize
    other.save_pretrained(tmp_path / "model")
    assert torch.equal(reconstruct(VQModel.from_pretrained(tmp_path / "model")), reconstruct(trained))


def test_a_new_model_of_a_config_starts_anew(tmp_path):
    model = train(make(tmp_path, **AVERAGES))
    new = VQModel.from_config(model.config)
    assert new.quantize.transfer.steps == 0
    assert new.config.quantizer_config == model.config.quantizer_config
    assert VQModel.from_config(model.config, num_vq_embeddings=60).quantize.n_e == 60


def test_accelerate_saves_and_loads(trained, tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(trained)
    before = reconstruct(model)
    accelerator.save_state(tmp_path / "state")
    train(model)
    assert not torch.equal(reconstruct(model), before)
    accelerator.load_state(tmp_path / "state")
    assert torch.equal(reconstruct(model), before)


def test_gradient_checkpointing(trained):
    trained.train()
    gradients = []
    for _ in range(2):
        model = copy.deepcopy(trained)
        if gradients:
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
        fmap, loss = model(images(), return_dict=False)
        (fmap.square().mean() + loss).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)


def amused(model):
    return diffusers.AmusedPipeline(
        vqvae=model,
        tokenizer=None,
        text_encoder=None,
        transformer=diffusers.UVit2DModel(
            hidden_size=16, cond_embed_dim=16, micro_cond_encode_dim=4, micro_cond_embed_dim=20,
            encoder_hidden_size=16, vocab_size=41, codebook_size=40, in_channels=16, block_out_channels=16,
            num_res_blocks=1, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, sample_size=8,
            block_num_heads=2,
        ),
        scheduler=diffusers.AmusedScheduler(mask_token_id=40),
    )  # fmt: skip


def test_a_pipeline_decodes_codes(tmp_path):
    """aMUSEd, of one token per position, from its folder; and codes of images, by its own way of decoding."""
    model = train(make(tmp_path, parts_of_speech="joint", lookup_from_codebook=True))
    (tmp_path / "words.safetensors").unlink()
    amused(model).save_pretrained(tmp_path / "pipeline")
    pipeline = diffusers.AmusedPipeline.from_pretrained(tmp_path / "pipeline", text_encoder=None, tokenizer=None)
    assert type(pipeline.vqvae) is VQModel
    pipeline.set_progress_bar_config(disable=True)
    prompt = {"prompt_embeds": torch.zeros(1, 16), "encoder_hidden_states": torch.zeros(1, 2, 16), "guidance_scale": 0}

    def draw(output_type):
        generator = torch.Generator().manual_seed(0)
        return pipeline(**prompt, num_inference_steps=2, generator=generator, output_type=output_type).images

    codes = draw("latent")
    assert codes.shape == (1, 8, 8)
    own = model.decode(codes, force_not_quantize=True, shape=(1, 8, 8, 8)).sample
    assert torch.equal(draw("pt"), own.clip(0, 1))
    indices = model.quantize(model.encode(images()).latents)[2][2]
    decoded = pipeline.vqvae.decode(indices.reshape(2, 8, 8), force_not_quantize=True, shape=(2, 8, 8, 8)).sample
    assert_close(decoded, reconstruct(model))


def test_two_tokens_decode_as_the_model_does():
    model = make(lookup_from_codebook=True).eval()
    indices = model.quantize(model.encode(images()).latents)[2][2]
    decoded = model.decode(indices.reshape(2, 2, 8, 8), force_not_quantize=True, shape=(2, 8, 8, 8)).sample
    assert_close(decoded, reconstruct(model))


class Foreign(torch.nn.Module):
    """A transfer of somebody's."""

    def __init__(self, n, d, code_dim):
        super().__init__()
        self.linear = torch.nn.Linear(d, code_dim)

    def forward(self, vectors, edges, edge_count):
        return self.linear(vectors)


@pytest.mark.parametrize("where", ["target", "transfer", "weights", "plain line"])
def test_what_a_downloaded_model_names_is_not_imported_unseen(tmp_path, monkeypatch, where):
    """A name on the hub may be anybody's; a folder is the user's own, unless it is said that it is not."""
    foreign = types.ModuleType("foreign")
    foreign.Map, foreign.Quantizer = Foreign, vqct_plugin.CodebookTransferQuantizer
    monkeypatch.setitem(sys.modules, "foreign", foreign)
    folder = tmp_path / "model"
    options = {} if where == "target" else {"transfer": {"target": "foreign.Map", "params": {}}}
    if where == "plain line":
        model = diffusers.VQModel(**SIZES)
        model.quantize = vqct_plugin.Quantizer(40, 8, prior=make_prior(), **options)
        model.save_pretrained(folder)
    else:
        make(**options).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        if where == "target":
            config["quantizer_config"]["target"] = "foreign.Quantizer"
        elif where == "weights":
            del config["quantizer_config"]["params"]["transfer"]
        (folder / "config.json").write_text(json.dumps(config))
    assert VQModel.from_pretrained(folder).quantize.n_e == 40
    assert VQModel.from_pretrained(folder, trusted=["foreign"]).quantize.n_e == 40
    refusal = r"names 'foreign\.(Map|Quantizer)'.*trusted=\['foreign'\]"
    with pytest.raises(HubError, match=refusal):
        VQModel.from_pretrained(folder, trusted=())
    monkeypatch.chdir(tmp_path)
    download = diffusers.models.modeling_utils.ModelMixin.from_pretrained.__func__
    monkeypatch.setattr(
        diffusers.VQModel,
        "from_pretrained",
        classmethod(
            lambda cls, name, **options: download(cls, str(folder) if name == "user/model" else name, **options)
        ),
    )
    with pytest.raises(HubError, match="user/model " + refusal):
        VQModel.from_pretrained("user/model")
    assert VQModel.from_pretrained("user/model", trusted=["foreign"]).quantize.n_e == 40


def test_auto_model_takes_this_class_where_it_is_trusted_to(trained, tmp_path, monkeypatch):
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    trained.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="trust_remote_code"):
        diffusers.AutoModel.from_pretrained(str(tmp_path / "model"))
    back = diffusers.AutoModel.from_pretrained(str(tmp_path / "model"), trust_remote_code=True)
    assert torch.equal(reconstruct(back), reconstruct(trained))


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a mapping: options of the quantizer"):
        VQModel(**SIZES, quantizer_config="topk")
    with pytest.raises(TypeError, match="takes no argument 'topkk'; close to it: topk"):
        make(topkk=2)
    with pytest.raises(ValueError, match="makes 30 codes; set num_vq_embeddings to 30"):
        make(n_e={"adjective": 10, "noun": 20})
    with pytest.raises(ValueError, match="has function as gradient, which config"):
        make(gradient=lambda z, q: q)
    with pytest.raises(ValueError, match="returns what SimVQ reads"):
        VQModel(**SIZES, quantizer_config={"target": "vqct_plugin.hosts.simvq.SimVQQuantizer"})
    model = make(tmp_path, transfer="graph")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="device_map is 'auto', which splits the model"):
        VQModel.from_pretrained(tmp_path / "model", device_map="auto")
    with pytest.raises(PriorError, match="the checkpoint's codebook has topk"):
        VQModel.from_pretrained(tmp_path / "model", quantizer_config={"topk": 2})


def test_one_device(tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "model")
    back = VQModel.from_pretrained(tmp_path / "model", device_map={"": "cpu"})
    assert torch.equal(reconstruct(back), reconstruct(model))


def test_the_example_in_the_docstring_runs():
    results = doctest.testmod(vqct_plugin.hosts.diffusers, extraglobs={"torch": torch})
    assert (results.failed, results.attempted) == (0, 3)
