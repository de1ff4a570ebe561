import copy
import inspect
import json
import pickle

import pytest
import torch

from tests.conftest import make_prior
from vqct_plugin.compat.lightning import ADAPTER_OPTIONS
from vqct_plugin.hosts.quantizer_config import (
    ADAPTERS,
    accept_indices,
    build_quantizer,
    take_model_options,
    with_host_options,
)
from vqct_plugin.quantizer import CodebookTransferQuantizer

TARGET = "vqct_plugin.Quantizer"


@pytest.fixture
def prior(tmp_path):
    make_prior().save(tmp_path / "prior.safetensors")
    return str(tmp_path / "prior.safetensors")


def test_the_hosts_arguments_are_taken_and_params_go_before_them(prior):
    config = {"target": TARGET, "params": {"prior": prior, "beta": 0.5, "topk": 2}}
    quantizer = build_quantizer(config, n_e=40, e_dim=16, beta=0.25, remap=None, sane_index_shape=True)
    assert type(quantizer) is CodebookTransferQuantizer
    assert (quantizer.n_e, quantizer.e_dim, quantizer.beta, quantizer.topk) == (40, 16, 0.5, 2)
    assert quantizer.sane_index_shape


def test_the_hosts_random_numbers_are_as_with_its_own_quantizer(prior):
    """What the host draws after it, it draws as after ``VectorQuantizer2``; and a learned table is that one's."""
    torch.manual_seed(0)
    own = torch.nn.Embedding(40, 16)  # what VectorQuantizer2 is made of
    own.weight.data.uniform_(-1 / 40, 1 / 40)
    after = torch.rand(3)
    torch.manual_seed(0)
    params = {"prior": prior, "transfer": "table", "parts_of_speech": "joint"}
    table = build_quantizer({"target": TARGET, "params": params}, n_e=40, e_dim=16)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(table.embedding.weight, own.weight)


def test_two_quantizers_of_one_model_are_no_twins(prior):
    first, second = (
        build_quantizer({"target": TARGET, "params": {"prior": prior, "transfer": "graph"}}, n_e=40, e_dim=16)
        for _ in range(2)
    )
    assert not torch.equal(first.embedding.weight, second.embedding.weight)
    assert not torch.equal(first.transfer.layer1.weight, second.transfer.layer1.weight)
    x = torch.ones(40, 8)
    masks = [q.transfer.dropout(x, q.transfer.layer1.weight) for q in (first, second)]
    assert not torch.equal(*masks)
    params = {
        "prior": prior,
        "n_e": {"adjective": 10, "noun": 20},
        "e_dim": 16,
        "transfer": "graph",
    }  # where the host gives nothing
    third, fourth = (build_quantizer({"target": TARGET, "params": params}) for _ in range(2))
    assert not torch.equal(third.transfer.layer1.weight, fourth.transfer.layer1.weight)


def test_omegaconfs_containers_become_plain(prior):
    omegaconf = pytest.importorskip("omegaconf")
    params = {
        "prior": prior,
        "n_e": {"adjective": 10, "noun": 20},
        "topk": {"adjective": 2},
        "parts_of_speech": ["adjective", "noun"],
    }
    config = omegaconf.OmegaConf.create({"target": TARGET, "params": params})
    quantizer = build_quantizer(config, n_e=40, e_dim=16)
    assert (quantizer.n_e, quantizer.tokens_per_position) == (30, 3)


@pytest.mark.parametrize("key", [True, False])
def test_a_file_says_the_same(prior, tmp_path, key):
    pytest.importorskip("yaml")
    config = {"target": TARGET, "params": {"prior": prior}}
    file = tmp_path / "quantizer.yaml"
    file.write_text(json.dumps({"quantizer_config": config} if key else config))
    for path in (file, str(file)):
        assert build_quantizer(path, n_e=40, e_dim=16).n_e == 40


def test_params_may_be_left_out():
    assert build_quantizer({"target": TARGET}, n_e=16, e_dim=8).n_e == 16
    assert build_quantizer({"target": TARGET, "params": None}, n_e=16, e_dim=8).n_e == 16


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "expected {target: vqct_plugin.Quantizer"),
        ({"target": 3}, "expected {target"),
        ([1], "expected {target"),
        ({"target": TARGET, "prior": "x"}, "has the key 'prior'; expected `target` and `params`"),
        ({"target": TARGET, "params": [1]}, "expected a mapping from arguments to values"),
        ({"target": "vqct_plugin.Quantiser"}, "names the target 'vqct_plugin.Quantiser', which cannot be imported"),
        ({"target": "no_such.Thing"}, "cannot be imported"),
        ({"target": "Quantizer"}, "expected package.module.Class"),
    ],
)
def test_what_is_no_config_is_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_quantizer(config, n_e=16, e_dim=8)


def test_a_file_that_is_not_there_or_no_yaml_is_refused(tmp_path):
    pytest.importorskip("yaml")
    with pytest.raises(ValueError, match=r"cannot read the quantizer config .*none.yaml"):
        build_quantizer(tmp_path / "none.yaml", n_e=16, e_dim=8)
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        build_quantizer(tmp_path / "bad.yaml", n_e=16, e_dim=8)


def test_an_argument_that_the_target_does_not_take_is_its_own_error():
    with pytest.raises(TypeError, match="color"):
        build_quantizer({"target": TARGET, "params": {"color": 1}}, n_e=16, e_dim=8)


def test_every_option_of_the_table_is_taken_under_the_hosts_names_too(prior):
    options = {
        "prior": prior, "n_embed": {"adjective": 10, "noun": 20}, "embed_dim": 16, "beta": 0.5, "legacy": False,
        "unknown_index": "extra", "sane_index_shape": True, "parts_of_speech": ["adjective", "noun"], "topk": 2,
        "transfer": "graph", "dropout": 0.1, "edge_weight": "log", "l2_normalize": True, "channels_last": True,
        "remap": None, "gradient": "rotation", "loss_terms": None, "combine": "concat",
    }  # fmt: skip
    taken = {*inspect.signature(CodebookTransferQuantizer).parameters} - {"n_e", "e_dim"}
    assert taken <= set(options)
    quantizer = build_quantizer({"target": TARGET, "params": options}, n_e=40, e_dim=16, beta=0.25)
    assert (quantizer.n_e, quantizer.e_dim, quantizer.beta, quantizer.topk) == (30, 16, 0.5, 2)
    with pytest.raises(ValueError, match="has both n_embed and n_e, which are the same"):
        build_quantizer({"target": TARGET, "params": {"n_e": 3, "n_embed": 3}}, e_dim=16)
    with pytest.raises(ValueError, match="has embed_dim 32, and the host 16"):
        build_quantizer({"target": TARGET, "params": {"embed_dim": 32}}, n_e=40, e_dim=16)


@pytest.mark.parametrize("name", ADAPTER_OPTIONS)
def test_an_option_of_the_model_says_whose_it_is_and_vqct_train_takes_it(name):
    config = {"target": TARGET, "params": {name: 1, "topk": 2}}
    with pytest.raises(ValueError, match=f"quantizer_config has {name}, which is an option of the model"):
        build_quantizer(config, n_e=16, e_dim=8)
    assert take_model_options(config) == ({"target": TARGET, "params": {"topk": 2}}, {name: 1})
    assert take_model_options("quantizer.yaml") == ("quantizer.yaml", {})


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("top_k", "takes no argument 'top_k'; close to it: topk"),
        ("n_embd", "close to it: n_embed"),
        ("parts_of_speach", "close to it: parts_of_speech"),
        ("xyzzy", "it takes n_e, e_dim, beta"),
    ],
)
@pytest.mark.parametrize("target", [TARGET, "vqct_plugin.hosts.llamagen.LlamaGenQuantizer"])
def test_a_mistyped_option_is_refused_with_those_that_are_close(word, sentence, target):
    with pytest.raises(TypeError, match=sentence):
        build_quantizer({"target": target, "params": {word: 1}}, n_e=16, e_dim=8)


@pytest.mark.parametrize("host", ADAPTERS)
def test_a_wrong_adapter_is_said_when_the_model_is_built(host):
    for_taming = {"n_e": 16, "e_dim": 8, "remap": None, "sane_index_shape": False}
    with pytest.raises(ValueError, match=f"returns what {host} reads; this host needs vqct_plugin.Quantizer"):
        build_quantizer({"target": ADAPTERS[host]}, **for_taming)
    with pytest.raises(ValueError, match=f"returns what taming's own quantizer returns; {host} needs {ADAPTERS[host]}"):
        build_quantizer({"target": TARGET}, for_host=host, n_e=16, e_dim=8)
    assert build_quantizer({"target": ADAPTERS[host]}, for_host=host, n_e=16, e_dim=8).n_e == 16


def test_a_model_or_a_gumbel_head_is_no_quantizer_for_a_host():
    pytest.importorskip("taming")
    pytest.importorskip("pytorch_lightning")
    with pytest.raises(
        ValueError, match=r"names the target vqct_plugin\.VQModel, which is a whole model; expected vqct"
    ):
        build_quantizer({"target": "vqct_plugin.VQModel"}, n_e=16, e_dim=8)
    with pytest.raises(TypeError, match=r"does not accept beta, which the host passes; .* vqct_plugin\.GumbelVQ"):
        build_quantizer({"target": "vqct_plugin.gumbel.GumbelTransferQuantizer"}, n_e=16, e_dim=8, beta=0.25)


class Mine(torch.nn.Module):
    """A user's own, with taming's first arguments and nothing else."""

    def __init__(self, n_e, e_dim, beta):
        super().__init__()
        self.beta = beta


def test_what_the_host_leaves_off_need_not_be_an_argument_of_yours():
    config = {"target": f"{__name__}.Mine"}
    quantizer = build_quantizer(config, n_e=4, e_dim=2, beta=0.5, remap=None, sane_index_shape=False)
    assert (type(quantizer), quantizer.beta) == (Mine, 0.5)
    with pytest.raises(TypeError, match="does not accept sane_index_shape, which the host passes"):
        build_quantizer(config, n_e=4, e_dim=2, beta=0.5, sane_index_shape=True)


def test_seed_vokens_own_options_are_obeyed_or_refused_by_name(prior):
    """As the patch of ibqgan.py calls it: ``beta`` weighs the same term there, l2_normalize is the quantizer's too."""
    config = {"target": TARGET, "params": {"prior": prior}}
    off = {"use_entropy_loss": False, "cosine_similarity": False}
    given = with_host_options(config, off, beta=0.7)
    quantizer = build_quantizer(given, n_e=40, e_dim=16, beta=0.25, sane_index_shape=False, l2_normalize=True)
    assert (quantizer.beta, quantizer.legacy, quantizer.l2_normalize) == (0.7, True, True)
    own = with_host_options({"target": TARGET, "params": {"beta": 0.1}}, off, beta=0.7)
    assert own["params"] == {"beta": 0.1}
    for name in off:
        with pytest.raises(ValueError, match=f"{name} is True; .* set {name}: false"):
            with_host_options(config, {**off, name: True}, beta=0.7)


def test_an_option_that_has_to_have_a_value_is_refused_with_any_other(prior):
    """As LlamaGen's patch has ``entropy_loss_ratio``; its ``codebook_l2_norm`` is ``l2_normalize``."""
    config = {"target": ADAPTERS["LlamaGen"], "params": {"prior": prior}}
    with pytest.raises(ValueError, match=r"entropy_loss_ratio is 0\.1; .* set entropy_loss_ratio: 0\.0"):
        with_host_options(config, {"entropy_loss_ratio": (0.1, 0.0)})
    given = with_host_options(config, {"entropy_loss_ratio": (0.0, 0.0)})
    host = {"for_host": "LlamaGen", "n_e": 40, "e_dim": 16, "beta": 0.25, "l2_normalize": True}
    assert build_quantizer(given, **host).l2_normalize
    given["params"]["l2_normalize"] = False
    assert not build_quantizer(given, **host).l2_normalize


class TamingsLoss(torch.nn.Module):
    def forward(self, codebook_loss, inputs, optimizer_idx, split="train"):
        return codebook_loss + inputs, split


class LatentDiffusionsLoss(torch.nn.Module):
    def forward(self, codebook_loss, inputs, optimizer_idx, split="train", predicted_indices=None):
        return predicted_indices


def test_tamings_loss_is_called_without_the_indices_that_it_does_not_take():
    loss = accept_indices(TamingsLoss())
    for called in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert called(1, 2, 0, split="val", predicted_indices=3) == (3, "val")
    assert copy.deepcopy(loss).forward.loss is not loss
    assert accept_indices(LatentDiffusionsLoss())(1, 2, 0, predicted_indices=3) == 3
    assert "forward" not in vars(accept_indices(torch.nn.Identity()))
