"""A codebook exported into the VQ models of transformers, tiny ones with random weights."""

import doctest

import pytest
import torch

from tests.conftest import assert_close, make_prior
from vqct_plugin import CodebookTransferQuantizer
from vqct_plugin.gumbel import GumbelTransferQuantizer

transformers = pytest.importorskip("transformers", "5.0", reason="these VQ models are of transformers 5")

from vqct_plugin.hosts import transformers as exporting  # noqa: E402
from vqct_plugin.hosts.transformers import export_to_transformers  # noqa: E402

N, DIM = 40, 8
ENCODER = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": []}
CONFIGS = {
    "Chameleon": {"num_embeddings": N, "embed_dim": DIM, "latent_channels": 16, "resolution": 16, **ENCODER},
    "Emu3": {"codebook_size": N, "embed_dim": DIM, "latent_channels": DIM, "hidden_size": 32, **ENCODER},
    "Janus": {"num_embeddings": N, "embed_dim": DIM, "latent_channels": 16, "num_patches": 8, **ENCODER},
    "GlmImage": {"num_embeddings": N, "embed_dim": DIM, "latent_channels": 16},
}
SCALES = ("Janus", "GlmImage")


def make_model(host, **changed):
    config = getattr(transformers, f"{host}VQVAEConfig")(**{**CONFIGS[host], **changed})
    torch.manual_seed(1)
    return vq_model_class(host)(config).eval()


def vq_model_class(host):
    if host == "GlmImage":
        from transformers.models.glm_image.modeling_glm_image import GlmImageVQVAE

        return GlmImageVQVAE
    return getattr(transformers, f"{host}VQVAE")


def make_quantizer(**options):
    return CodebookTransferQuantizer(
        N, DIM, **{"prior": make_prior(), "parts_of_speech": "joint", "transfer": "graph", **options}
    ).eval()


def before_quantizing(model, x):
    """What the model's own code hands to its quantizer, its own indices, and whatever it returns beside them."""
    seen = []
    hook = model.quantize.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        if type(model).__name__ == "Emu3VQVAE":
            out = model.encode(x, image_sizes=torch.tensor([x.shape[-2:]] * len(x)))
            indices = torch.stack(out.image_tokens)
        else:
            out = model.encode(x)
            indices = out.image_tokens
    hook.remove()
    z = seen[0]
    return (z[:, 0] if z.dim() == 5 else z), indices, out


def spread_like(quantizer, z):
    """Codes where the vectors z (B, C, H, W) of an untrained encoder lie, so that these choose several."""
    layer = quantizer.transfer.layer2
    with torch.no_grad():
        layer.weight *= z.std() / quantizer.embedding.weight.std()
        layer.bias += z.mean(dim=(0, 2, 3)) - quantizer.embedding.weight.mean(dim=0)


@pytest.mark.parametrize("l2_normalize", [False, True])
@pytest.mark.parametrize("host", CONFIGS)
def test_indices_mean_the_same_on_both_sides(host, l2_normalize):
    if host in SCALES and not l2_normalize:
        pytest.skip("refused, see below")
    model, quantizer = make_model(host), make_quantizer(l2_normalize=l2_normalize)
    x = torch.randn(2, 16, 8, 8) if host == "GlmImage" else torch.rand(2, 3, 16, 16) * 2 - 1
    if not l2_normalize:
        spread_like(quantizer, before_quantizing(model, x)[0])
    assert export_to_transformers(quantizer, model) is model
    z, indices, out = before_quantizing(model, x)
    z_q, _, (_, _, ours) = quantizer(z)
    assert len(ours.unique()) > 3
    assert torch.equal(indices.reshape(-1), ours)
    if host != "Emu3":
        assert_close(out.quantized_last_hidden_state, z_q, atol=1e-5)
    entry = quantizer.get_codebook_entry(ours, (2, 8, 8, DIM))
    with torch.no_grad():
        if host == "Emu3":
            frames = entry.unsqueeze(2)
            after = model.post_quant_conv(frames).permute(0, 2, 1, 3, 4)
            expected = model.decoder(after, frames.permute(0, 2, 1, 3, 4)).reshape(2, -1, 3, 16, 16)[:, 0]
            assert_close(model.decode(ours.view(2, 8, 8)), expected, atol=1e-4)
        if host == "Janus":
            expected = model.decoder(model.post_quant_conv(entry))
            assert_close(model.decode(ours.view(2, -1)), expected, atol=1e-4)


def test_what_was_exported_is_saved_and_loaded(tmp_path):
    model, quantizer = make_model("Janus"), make_quantizer(l2_normalize=True)
    export_to_transformers(quantizer, model).save_pretrained(tmp_path)
    again = transformers.JanusVQVAE.from_pretrained(tmp_path)
    assert torch.equal(again.quantize.embedding.weight, quantizer.embedding.weight)


def test_the_vq_model_is_found_inside_another():
    inside = make_model("Chameleon")
    whole = torch.nn.ModuleDict({"vqmodel": inside, "head": torch.nn.Linear(2, 2)})
    assert export_to_transformers(make_quantizer(), whole) is inside
    with pytest.raises(ValueError, match="ModuleDict has none with"):
        export_to_transformers(make_quantizer(), torch.nn.ModuleDict({"head": torch.nn.Linear(2, 2)}))
    with pytest.raises(ValueError, match="has first, second with"):
        export_to_transformers(make_quantizer(), torch.nn.ModuleDict({"first": inside, "second": make_model("Emu3")}))


@pytest.mark.parametrize(
    ("host", "changed", "options", "sentence"),
    [
        ("Chameleon", {}, {"parts_of_speech": ["adjective", "noun"]}, "a position has 2 tokens here.*'joint'"),
        ("Chameleon", {}, {"topk": 2}, "topk=1"),
        ("Chameleon", {"num_embeddings": 41}, {}, "ChameleonVQVAE of the model 41 of 8; .*num_embeddings=40 and"),
        ("Emu3", {"codebook_size": 41}, {}, "codebook_size=40 and embed_dim=8"),
        ("Janus", {"embed_dim": 4}, {"l2_normalize": True}, "embed_dim=8"),
        ("Janus", {}, {}, "JanusVQVAE scales codes to length 1 .*l2_normalize=True"),
        ("GlmImage", {}, {}, "GlmImageVQVAE scales codes"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_changes_nothing(host, changed, options, sentence):
    model = make_model(host, **changed)
    before = model.quantize.embedding.weight.detach().clone()
    with pytest.raises(ValueError, match=sentence):
        export_to_transformers(make_quantizer(**options), model)
    assert torch.equal(model.quantize.embedding.weight, before)


def test_another_quantizer_or_model_is_one_sentence():
    gumbel = GumbelTransferQuantizer(N, DIM, prior=make_prior(), transfer="graph")
    for other in (gumbel, torch.nn.Linear(2, 2), None):
        with pytest.raises(ValueError, match=rf"quantizer is a {type(other).__name__}; expected a CodebookTransfer"):
            export_to_transformers(other, make_model("Chameleon"))
    theirs = torch.nn.Module()  # no config
    theirs.quantize = torch.nn.Module()
    theirs.quantize.embedding = torch.nn.Embedding(3, DIM)
    with pytest.raises(ValueError, match="Module of the model 3 of 8; build the model with num_embeddings=40"):
        export_to_transformers(make_quantizer(), theirs)
    for nothing in (None, {}):
        with pytest.raises(ValueError, match=rf"model is a {type(nothing).__name__}; expected one of transformers"):
            export_to_transformers(make_quantizer(), nothing)


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(exporting, extraglobs={"torch": torch}).failed == 0


def test_a_remap_is_refused(tmp_path):
    import numpy as np

    np.save(tmp_path / "used.npy", np.arange(10))
    with pytest.raises(ValueError, match="build it without remap"):
        export_to_transformers(make_quantizer(remap=str(tmp_path / "used.npy")), make_model("Chameleon"))
