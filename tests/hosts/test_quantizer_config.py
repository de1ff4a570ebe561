import json

import pytest
import torch

from tests.conftest import make_prior
from vqct_plugin.hosts.quantizer_config import build_quantizer
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
        build_quantizer({"target": TARGET, "params": {"prior": prior}}, n_e=40, e_dim=16) for _ in range(2)
    )
    assert not torch.equal(first.embedding.weight, second.embedding.weight)
    assert not torch.equal(first.transfer.layer1.weight, second.transfer.layer1.weight)
    x = torch.ones(40, 8)
    masks = [q.transfer.dropout(x, q.transfer.layer1.weight) for q in (first, second)]
    assert not torch.equal(*masks)
    params = {"prior": prior, "n_e": {"adjective": 10, "noun": 20}, "e_dim": 16}  # where the host gives nothing
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
