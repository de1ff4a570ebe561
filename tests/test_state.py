"""A quantizer's state stands alone, says what it is of, and reads what earlier versions wrote."""

import copy
import functools
import json

import numpy as np
import pytest
import torch

from tests.conftest import make_prior
from tests.test_quantizer import make
from vqct_plugin import CodebookTransferQuantizer
from vqct_plugin.gumbel import GumbelTransferQuantizer
from vqct_plugin.prior import CodebookPrior, PriorError
from vqct_plugin.state import read_prior, read_settings


@pytest.mark.parametrize("parts", ["joint", "one", "two", "three"])
@pytest.mark.parametrize("transfer", ["graph", "mlp", "linear", "table"])
def test_a_quantizer_is_made_again_from_its_state_alone(parts, transfer, tmp_path):
    options = {"edge_weight": "log"} if transfer == "graph" else {}
    first = make(parts, topk=2, transfer=transfer, sane_index_shape=True, **options).eval()
    torch.save({f"quantize.{key}": value for key, value in first.state_dict().items()}, tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt")
    again = CodebookTransferQuantizer.from_state_dict(state, "quantize.").eval()
    assert (again.words, again.slices, again.parts) == (first.words, first.slices, first.parts)
    z = torch.randn(2, 24, 4, 4)
    for ours, theirs in zip(first(z), again(z)):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else torch.equal(ours[2], theirs[2])
    assert read_prior(state, "quantize.").fingerprint == first.prior.fingerprint
    assert read_prior(state) is None
    assert read_settings(state) == {}


def test_the_state_holds_the_words_once_and_in_the_precision_they_have():
    prior = make_prior((300, 500))
    prior = CodebookPrior(
        prior.words, prior.part_of_speech, prior.count, prior.vectors.astype(np.float16), prior.edges, prior.edge_count
    )
    quantizer = CodebookTransferQuantizer(800, 24, prior=prior)
    state = quantizer.state_dict()
    assert state["prior.vectors"].dtype == torch.float16
    assert state["prior.edges"].dtype == torch.int32
    assert sum(key.startswith("prior.") for key in state) == 6
    assert not any(tuple(v.shape) == prior.vectors.shape for k, v in state.items() if k != "prior.vectors")
    assert copy.deepcopy(quantizer).prior is quantizer.prior  # copies of a model share it


def test_casting_a_model_leaves_the_prior_as_it_is():
    quantizer = make("two")
    vectors = quantizer.state_dict()["prior.vectors"].clone()
    half = quantizer.half().state_dict()
    assert half["transfer.layer1.weight"].dtype == torch.float16
    assert torch.equal(half["prior.vectors"], vectors)
    assert torch.equal(quantizer.transfer.propagated, make("two").transfer.propagated)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_state_whose_floating_point_was_cast_loads_and_says_what_it_lacks(dtype):
    """As tools write that make checkpoints small: its prior is the quantizer's own, rounded, and not damaged."""
    first, second = make("two", seed=1), make("two", seed=1)
    state = {key: v.to(dtype) if v.is_floating_point() else v for key, v in first.state_dict().items()}
    second.load_state_dict(dict(state))
    assert torch.equal(second.transfer.layer1.weight, first.transfer.layer1.weight.to(dtype).float())
    assert torch.equal(second.state_dict()["prior.vectors"], first.state_dict()["prior.vectors"])
    if dtype != torch.float64:
        with pytest.raises(
            PriorError, match=f"Its vectors are {dtype}: where .* build the quantizer with its prior file"
        ):
            CodebookTransferQuantizer.from_state_dict(dict(state))
    state["prior.vectors"] = state["prior.vectors"] * 0.9
    with pytest.raises(PriorError, match=r"prior\.vectors in the checkpoint is damaged"):
        second.load_state_dict(state)


OTHER = {
    "topk": ({"topk": 2}, "topk"),
    "edge_weight": ({"edge_weight": "log"}, "edge_weight"),
    "transfer": ({"transfer": "mlp"}, "transfer"),
    "l2_normalize": ({"l2_normalize": True}, "l2_normalize"),
    "combine": ({"combine": "sum"}, "combine"),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("case", OTHER)
def test_a_state_of_other_settings_is_refused_and_both_are_named(case, strict):
    options, name = OTHER[case]
    quantizer = make("two")
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(PriorError, match=f"the checkpoint's codebook has {name}=.*, this quantizer .*Build it with"):
        quantizer.load_state_dict(make("two", **options).state_dict(), strict=strict)
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


def test_a_joint_codebook_does_not_load_over_two_parts():
    with pytest.raises(PriorError, match="parts_of_speech='joint', this quantizer \\['adjective', 'noun'\\]"):
        make("two", n_e=60, e_dim=24).load_state_dict(make("joint", n_e=60, e_dim=12).state_dict())


def test_left_out_settings_are_not_compared():
    """What the message offers: go on from weights trained with another topk."""
    state = make("two", topk=2).state_dict()
    del state["settings"]
    make("two").load_state_dict(state, strict=False)


def test_a_state_that_does_not_say_how_parts_are_combined_has_slices_of_channels():
    state = make("two").state_dict()
    settings = json.loads(bytes(state["settings"].tolist()).decode())
    assert settings.pop("combine") == "concat"
    state["settings"] = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    assert CodebookTransferQuantizer.from_state_dict(dict(state)).combine == "concat"
    make("two").load_state_dict(dict(state))
    with pytest.raises(PriorError, match="combine='concat', this quantizer 'sum'"):
        make("two", combine="sum").load_state_dict(dict(state))


def damage(state, key, value):
    return {**state, key: torch.tensor(list(value), dtype=torch.uint8)}


def test_damaged_states_are_refused():
    quantizer = make("two")
    state = quantizer.state_dict()
    for key in ("prior.header", "settings"):
        with pytest.raises(PriorError, match=f"{key} in the checkpoint is damaged"):
            quantizer.load_state_dict(damage(state, key, b"no json"))
    with pytest.raises(PriorError, match="is not complete"):
        CodebookTransferQuantizer.from_state_dict({k: v for k, v in state.items() if k != "prior.edges"})
    with pytest.raises(PriorError, match="does not match the fingerprint"):
        CodebookTransferQuantizer.from_state_dict({**state, "prior.vectors": state["prior.vectors"] + 1})
    with pytest.raises(RuntimeError, match="Missing key"):
        quantizer.load_state_dict({k: v for k, v in state.items() if k != "prior.count"})
    with pytest.raises(PriorError, match=r"has no prior\.header"):
        CodebookTransferQuantizer.from_state_dict({})


def earlier(quantizer):
    """The state as versions before this format wrote it: A~X and the graph, no words."""
    identity = {"fingerprint": quantizer.prior.fingerprint, "description": quantizer.prior.describe()}
    state = {k: v for k, v in quantizer.state_dict().items() if not k.startswith(("prior.", "settings"))}
    state["prior_identity"] = torch.tensor(list(json.dumps(identity).encode()), dtype=torch.uint8)
    transfer = quantizer.transfer
    graph = {"propagated": "propagated", "neighbours": "neighbors", "offsets": "offsets", "weights": "weights"}
    for key, name in graph.items():
        state[f"transfer.{key}"] = getattr(transfer, name).clone()
    return state


def test_checkpoints_of_earlier_versions_are_read():
    first, second = make("two"), make("two")
    second.load_state_dict(earlier(first))
    assert torch.equal(first.embedding.weight, second.embedding.weight)


def test_checkpoints_of_earlier_versions_over_another_prior_or_graph_are_refused():
    with pytest.raises(PriorError, match=r"made up from seed 1.*made up from seed 2"):
        make("two", seed=2).load_state_dict(earlier(make("two", seed=1)))
    with pytest.raises(PriorError, match="has another graph than this quantizer"):
        make("two").load_state_dict(earlier(make("two", edge_weight="log")))
    broken = {**earlier(make("two")), "prior_identity": torch.zeros(5, dtype=torch.uint8)}
    with pytest.raises(PriorError, match="does not say which prior"):
        make("two").load_state_dict(broken)


def test_a_dropout_goes_on_where_it_was():
    first, second = make("two"), make("two")
    z = torch.randn(2, 24, 4, 4)
    for _ in range(3):
        first(z)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(z)[0], second(z)[0])


def test_every_argument_comes_back():
    options = {"beta": 1.0, "legacy": False, "unknown_index": "extra", "topk": 2, "dropout": 0.25, "edge_weight": "log"}
    first = make("two", **options)
    again = CodebookTransferQuantizer.from_state_dict(first.state_dict())
    assert again.settings == first.settings
    assert (again.beta, again.legacy, again.transfer.dropout.p) == (1.0, False, 0.25)
    assert CodebookTransferQuantizer.from_state_dict(first.state_dict(), beta=0.5).beta == 0.5
    gumbel = GumbelTransferQuantizer(60, 24, kl_weight=0.1, temp_init=0.7, prior=make_prior((30, 50)))
    back = GumbelTransferQuantizer.from_state_dict(gumbel.state_dict())
    assert (back.kl_weight, back.temperature) == (0.1, 0.7)


def test_a_remap_is_never_lost_without_a_word(tmp_path):
    np.save(tmp_path / "used.npy", np.array([3, 5, 7, 11]))
    options = {"parts": "joint", "remap": str(tmp_path / "used.npy"), "unknown_index": 0}
    remapped, plain = make(**options), make("joint")
    make(**options).load_state_dict(remapped.state_dict())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"used"'):
        plain.load_state_dict(remapped.state_dict())
    with pytest.raises(ValueError, match="the checkpoint has no remap"):
        remapped.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="pass remap"):
        CodebookTransferQuantizer.from_state_dict(remapped.state_dict())
    with pytest.raises(ValueError, match="indices run from 0 to 9; expected 0 to 3"):
        remapped.get_codebook_entry(torch.tensor([0, 9] * 8), (1, 4, 4, 24))


def test_distributed_checkpoints_find_every_key():
    """torch.distributed.checkpoint looks each key of the state up by attributes."""
    module = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    model = torch.nn.Sequential(make("two"))
    state = module.get_model_state_dict(model)
    assert set(state) == set(model.state_dict())


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="a device as a context needs torch 2")
def test_a_model_built_on_the_meta_device_has_its_words():
    quantizer = make("two")
    with torch.device("meta"):
        built = make("two")
    assert built.transfer.layer1.weight.device.type == "meta"
    built.to_empty(device="cpu").load_state_dict(quantizer.state_dict())
    assert torch.equal(built.embedding.weight, quantizer.embedding.weight)


class Shifted(torch.nn.Module):
    """A transfer of one's own, with a buffer."""

    def __init__(self, n, d, code_dim):
        super().__init__()
        self.linear = torch.nn.Linear(d, code_dim)
        self.register_buffer("shift", torch.zeros(code_dim))

    def forward(self, vectors, edges, edge_count):
        return self.linear(vectors) + self.shift


def test_a_frozen_codebook_knows_of_buffers_too():
    quantizer = make("two", transfer=Shifted).eval().freeze_codebook()
    quantizer.transfer.module.shift.add_(1)
    with pytest.raises(RuntimeError, match="have changed"):
        quantizer(torch.randn(1, 24, 2, 2))


@pytest.mark.parametrize("given", [Shifted, "tests.test_state.Shifted", {"target": "tests.test_state.Shifted"}])
def test_a_transfer_of_ones_own_trains_and_comes_back(given):
    """As a class, and as a YAML names it."""
    quantizer = make("two", transfer=given)
    quantizer(torch.randn(1, 24, 2, 2))[1].backward()
    assert all(p.grad is not None for p in quantizer.parameters())
    other = make("two", transfer=given)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.embedding.weight, quantizer.embedding.weight)
    by_hand = quantizer.transfer.module(torch.tensor(quantizer.prior.vectors), None, None)
    assert torch.equal(quantizer.embedding.weight, by_hand)


def test_a_transfer_that_returns_something_else_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match=r"returned torch.float32 \(60, 5\); expected codes \(60, 12\)"):
        make("two", transfer=lambda n, d, code_dim: Shifted(n, d, 5))
    with pytest.raises(ValueError, match="cannot be imported"):
        make("two", transfer="nowhere.Transfer")
    with pytest.raises(ValueError, match="unknown transfer 'gnn'"):
        make("two", transfer="gnn")


class Slope(torch.nn.Module):
    """A transfer with an argument of its own."""

    def __init__(self, n, d, code_dim, slope=0.1):
        super().__init__()
        self.layer, self.slope = torch.nn.Linear(d, code_dim), slope

    def forward(self, vectors, edges, edge_count):
        return torch.nn.functional.leaky_relu(self.layer(vectors), self.slope)


def test_a_transfer_of_the_users_is_made_again_with_its_arguments():
    config = {"target": f"{__name__}.Slope", "params": {"slope": 0.9}}
    first = make("two", transfer=config)
    second = CodebookTransferQuantizer.from_state_dict(first.state_dict())
    assert torch.equal(first.embedding.weight, second.embedding.weight)
    with pytest.raises(PriorError, match="transfer="):
        make("two", transfer=f"{__name__}.Slope").load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"transfer": lambda n, d, code_dim: Slope(n, d, code_dim, 0.9)},
        {"gradient": functools.partial(lambda share, z, q: share * (z - z.detach()) + q, 0.5)},
    ],
)
def test_an_object_that_a_state_cannot_hold_has_to_be_passed(options):
    first = make("two", **options)
    (name,) = options
    with pytest.raises(ValueError, match=f"an object as its {name}"):
        CodebookTransferQuantizer.from_state_dict(first.state_dict())
    second = CodebookTransferQuantizer.from_state_dict(first.state_dict(), **options)
    assert torch.equal(first.embedding.weight, second.embedding.weight)
    make("two", **options).load_state_dict(first.state_dict())


class Renamed(CodebookTransferQuantizer):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)


def test_a_subclass_that_hands_everything_on_is_made_from_its_state():
    first = Renamed(60, 24, prior=make("two").prior, beta=0.5)
    second = Renamed.from_state_dict(first.state_dict())
    assert (type(second), second.beta) == (Renamed, 0.5)
    state = first.state_dict()
    del state["settings"]
    with pytest.raises(PriorError, match="pass them"):
        Renamed.from_state_dict(state)
