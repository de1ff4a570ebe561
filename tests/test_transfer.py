"""The codes of the graph network: by PyG, by hand, by symmetry; the ablations; the shared dropout."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import make_prior
from vqct_plugin.prior import CodebookPrior
from vqct_plugin.transfer import (
    TRANSFERS,
    GraphTransfer,
    Propagate,
    TableTransfer,
    build_transfer,
)


def dense_adjacency(prior, weight=lambda count: count):
    """A~ as a dense float64 matrix, from its definition."""
    a = np.zeros((len(prior), len(prior)))
    for (i, j), count in zip(prior.edges.T, prior.edge_count):
        a[i, j] = a[j, i] = weight(count)
    a += np.eye(len(prior))
    s = a.sum(1)
    return torch.from_numpy(a / np.sqrt(np.outer(s, s)))


def by_definition(transfer, prior, weight=lambda count: count):
    """E = A~ relu(A~ X W1 + b1) W2 + b2, dense and in float64."""
    a, x = dense_adjacency(prior, weight), torch.from_numpy(prior.vectors.astype(np.float64))
    w1, b1, w2, b2 = (p.double() for p in transfer.parameters())
    return a @ torch.relu(a @ x @ w1.t() + b1) @ w2.t() + b2


def test_a_graph_of_three_words_by_hand():
    """red - wheel twice, and orange alone: degrees 3, 3 and 1."""
    prior = CodebookPrior(
        words=["red", "wheel", "orange"],
        part_of_speech=[0, 1, 1],
        count=[9, 8, 7],
        vectors=np.array([[1, 0], [0, 3], [5, 5]], dtype=np.float32),
        edges=[[0], [1]],
        edge_count=[2],
    )
    transfer = GraphTransfer(prior, 2)
    propagated = torch.tensor([[1 / 3, 2.0], [2 / 3, 1.0], [5.0, 5.0]])
    assert torch.allclose(transfer.propagated, propagated)
    with torch.no_grad():
        transfer.layer1.weight.copy_(torch.eye(2))
        transfer.layer2.weight.copy_(torch.eye(2))
        transfer.layer2.bias.copy_(torch.tensor([0.0, 1.0]))
    a = torch.tensor([[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0], [0, 0, 1]])
    assert torch.allclose(transfer(), a @ propagated + torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("edge_weight", "weight"),
    [("count", lambda c: c), ("binary", lambda c: 1), ("log", lambda c: 1 + np.log(c))],
)
def test_the_graph_is_the_dense_formula(prior, edge_weight, weight):
    transfer = GraphTransfer(prior, 8, edge_weight=edge_weight)
    assert torch.allclose(transfer().double(), by_definition(transfer, prior, weight), atol=1e-5)


def test_the_graph_is_pyg_with_repeated_edges(prior):
    """Values, and the gradients of every weight, as two GCNConv give them from one edge per occurrence."""
    gcn = pytest.importorskip("torch_geometric.nn").GCNConv
    transfer = GraphTransfer(prior, 8)
    layers = gcn(prior.vectors.shape[1], 8), gcn(8, 8)
    with torch.no_grad():
        for theirs, ours in zip(layers, (transfer.layer1, transfer.layer2)):
            theirs.lin.weight.copy_(ours.weight)
            ours.bias.normal_()
            theirs.bias.copy_(ours.bias)
    repeated = torch.from_numpy(np.repeat(prior.edges, prior.edge_count, axis=1))
    both_ways = torch.cat([repeated, repeated.flip(0)], dim=1)[:, torch.randperm(2 * repeated.shape[1])]
    theirs = layers[1](torch.relu(layers[0](torch.tensor(prior.vectors), both_ways)), both_ways)
    ours = transfer()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(ours)
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    for their_layer, our_layer in zip(layers, (transfer.layer1, transfer.layer2)):
        assert torch.allclose(our_layer.weight.grad, their_layer.lin.weight.grad, rtol=1e-4, atol=1e-4)
        assert torch.allclose(our_layer.bias.grad, their_layer.bias.grad, rtol=1e-4, atol=1e-4)


def test_a_word_of_two_parts_keeps_its_two_codes_and_their_edges():
    words, parts = ["orange", "wheel", "orange"], [0, 1, 1]
    vectors = np.random.RandomState(0).randn(3, 4).astype(np.float32)
    vectors[2] = vectors[0]  # one word, one vector of the language model
    prior = CodebookPrior(words, parts, [3, 2, 1], vectors, [[0, 0], [1, 2]], [5, 2])
    codes = GraphTransfer(prior, 4)()
    assert not torch.allclose(codes[prior.index("orange", "adjective")], codes[prior.index("orange", "noun")])
    assert [n.word for n in prior.neighbors("orange", "adjective")] == ["wheel", "orange"]


def test_words_without_any_edge_go_alone():
    prior = make_prior(sizes=(7,))
    transfer = GraphTransfer(prior, 8)
    assert torch.allclose(transfer.propagated, torch.tensor(prior.vectors.copy()))
    assert torch.allclose(transfer().double(), by_definition(transfer, prior), atol=1e-5)


def test_the_order_of_words_and_edges_changes_nothing(prior):
    order = np.random.RandomState(1).permutation(len(prior))
    place = np.argsort(order)
    shuffled = CodebookPrior(
        [prior.words[i] for i in order],
        prior.part_of_speech[order],
        prior.count[order],
        prior.vectors[order],
        place[prior.edges][::-1],
        prior.edge_count,
        prior.parts,
    )
    transfer = GraphTransfer(prior, 8)
    other = GraphTransfer(shuffled, 8)
    other.load_state_dict({**other.state_dict(), **dict(transfer.named_parameters())})
    assert torch.equal(transfer(), other())


def test_the_gradient_of_propagating_is_right(prior):
    transfer = GraphTransfer(prior.select(12), 3)
    fixed = transfer.neighbors, transfer.offsets, transfer.weights.double()
    x = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Propagate.apply(x, *fixed), (x,))
    assert torch.autograd.gradgradcheck(lambda x: Propagate.apply(x, *fixed), (x,))


def test_mlp_and_linear_by_hand(prior):
    x = torch.tensor(prior.vectors)
    mlp = build_transfer("mlp", prior, 6)
    w1, b1, w2, b2 = mlp.parameters()
    hidden = x @ w1.t() + b1
    assert torch.allclose(mlp(), torch.where(hidden > 0, hidden, 0.1 * hidden) @ w2.t() + b2, atol=1e-6)
    linear = build_transfer("linear", prior, 6)
    w, b = linear.parameters()
    assert torch.allclose(linear(), x @ w.t() + b, atol=1e-6)


def test_a_table_is_learned_and_knows_no_words(prior):
    table = TableTransfer(prior, 6)
    assert table().shape == (len(prior), 6)
    assert table().abs().max() <= 1 / len(prior)
    assert [name for name, _ in table.named_buffers()] == []


@pytest.mark.parametrize("name", [name for name in TRANSFERS if name != "averages"])  # which has none
def test_every_parameter_is_trained_and_all_else_is_constant(prior, name):
    transfer = build_transfer(name, prior, 6)
    (transfer(dropout=True) ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in transfer.parameters())
    assert list(transfer.named_buffers()) == []


def test_refusals(prior):
    with pytest.raises(ValueError, match="unknown transfer 'gcn'; expected one of graph, mlp, linear, table"):
        build_transfer("gcn", prior, 6)
    with pytest.raises(ValueError, match="expected one of count, binary, log"):
        build_transfer("graph", prior, 6, edge_weight="sqrt")
    with pytest.raises(ValueError, match="only 'graph' has dropout"):
        build_transfer("mlp", prior, 6, dropout=0.3)
    with pytest.raises(ValueError, match="only 'graph' has edges"):
        build_transfer("linear", prior, 6, edge_weight="log")


def test_a_codebook_under_dropout_is_the_formula_with_a_mask(prior):
    transfer = GraphTransfer(prior, 8)
    hidden = torch.relu(F.linear(transfer.propagated, transfer.layer1.weight, transfer.layer1.bias))
    mask = transfer.dropout(torch.ones_like(hidden), transfer.layer1.weight)
    transfer.dropout.draws.zero_()
    a = dense_adjacency(prior).float()
    expected = F.linear(a @ (hidden * mask), transfer.layer2.weight, transfer.layer2.bias)
    assert torch.allclose(transfer(dropout=True), expected, atol=1e-5)
