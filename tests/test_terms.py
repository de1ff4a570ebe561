"""Gradients and terms of the loss by name: against their definitions, dense and in float64."""

import copy

import pytest
import torch

from tests.test_quantizer import make
from vqct_plugin import CodebookTransferQuantizer, terms


def rotation_matrix(z, q):
    """|q| / |z| R of one vector, from the definition of the smallest rotation that takes z to q's direction."""
    a, b = z / z.norm(), q / q.norm()
    cosine = a @ b
    axis_of_b = (b - cosine * a) / (b - cosine * a).norm()  # the plane of the turn is spanned by a and this
    sine = (1 - cosine**2).sqrt()
    turn = torch.eye(len(z), dtype=z.dtype) + (cosine - 1) * (torch.outer(a, a) + torch.outer(axis_of_b, axis_of_b))
    return q.norm() / z.norm() * (turn + sine * (torch.outer(axis_of_b, a) - torch.outer(a, axis_of_b)))


def test_the_rotation_is_the_smallest_that_takes_z_to_q():
    z = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    q, upstream = torch.randn(2, 20, 6, dtype=torch.float64)
    z_q = terms.rotation(z, q)
    assert torch.equal(z_q, q)
    z_q.backward(upstream)
    for own, code, gradient, found in zip(z.detach(), q, upstream, z.grad):
        matrix = rotation_matrix(own, code)
        assert torch.allclose(matrix @ own, code)
        assert torch.allclose(found, matrix.t() @ gradient)


@pytest.mark.parametrize("made", ["joint", "two"])
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_a_quantizer_passes_the_gradient_that_it_is_told(made, gradient):
    plain = make(made, dropout=0.0)
    quantizer = make(made, dropout=0.0, gradient=gradient)
    quantizer.load_state_dict(plain.state_dict())
    z = torch.randn(2, quantizer.e_dim, 3, 3, requires_grad=True)
    z_q, loss, _ = quantizer(z)
    assert torch.equal(z_q, plain(z)[0])
    assert torch.allclose(loss, plain(z)[1])
    upstream = torch.randn_like(z_q)
    (found,) = torch.autograd.grad(z_q, z, upstream)
    if gradient == "straight_through":
        assert torch.equal(found, upstream)
        return
    slices = len(quantizer.slices)
    for b, s, y, x in [(0, 0, 0, 0), (1, slices - 1, 2, 1)]:
        at = slice(s * z.shape[1] // slices, (s + 1) * z.shape[1] // slices)
        matrix = rotation_matrix(z.detach()[b, at, y, x].double(), z_q.detach()[b, at, y, x].double())
        assert torch.allclose(found[b, at, y, x].double(), matrix.t() @ upstream[b, at, y, x].double(), atol=1e-5)


@pytest.mark.parametrize("topk", [1, 2])
def test_terms_that_are_named_are_added(topk):
    """The two terms that a quantizer has anyway, once more by their names, double its loss and its gradients."""
    plain = make("two", dropout=0.0, topk=topk, beta=0.25, legacy=True)
    twice = make("two", dropout=0.0, topk=topk, loss_terms={"commitment": 1.0, "codebook": 0.25})
    twice.load_state_dict(plain.state_dict())
    z = torch.randn(2, plain.e_dim, 3, 3, requires_grad=True)
    outcomes = []
    for quantizer in (plain, twice):
        loss = quantizer(z)[1]
        outcomes.append([loss, *torch.autograd.grad(loss, [z, *quantizer.transfer.parameters()])])
    for one, two in zip(*outcomes):
        assert torch.allclose(2 * one, two, rtol=1e-5, atol=1e-7)


def pull_to_the_sphere(z, codes, indices):
    return (codes.norm(dim=1) - 1).pow(2).mean()


def lengths_of_codes(z, codes, indices):
    return codes.norm(dim=1)


def through_half(z, q):
    return 0.5 * (z - z.detach()) + q


def test_a_user_names_functions_of_his_own():
    here = __name__
    options = {"gradient": f"{here}.through_half", "loss_terms": {f"{here}.pull_to_the_sphere": 0.1}}
    quantizer = make("two", dropout=0.0, **options)
    z = torch.randn(2, quantizer.e_dim, 3, 3, requires_grad=True)
    z_q, loss, _ = quantizer(z)
    codes = quantizer.embedding.weight.split([s.last - s.first for s in quantizer.slices])
    plain = make("two", dropout=0.0)
    plain.load_state_dict(quantizer.state_dict())
    assert torch.allclose(loss, plain(z)[1] + 0.1 * sum((own.norm(dim=1) - 1).pow(2).mean() for own in codes))
    assert torch.allclose(torch.autograd.grad(z_q.sum(), z)[0], torch.full_like(z, 0.5))
    again = CodebookTransferQuantizer.from_state_dict(quantizer.state_dict())
    assert again.settings["gradient"] == options["gradient"]
    assert again.settings["loss_terms"] == options["loss_terms"]
    assert torch.allclose(again(z)[1], quantizer(z)[1])
    assert torch.equal(copy.deepcopy(quantizer)(z)[0], z_q)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "rotated"}, "gradient names 'rotated'; expected one of straight_through, rotation"),
        ({"gradient": "no.such.function"}, "cannot be imported"),
        ({"gradient": "math.pi"}, "a float"),
        ({"gradient": 3}, "gradient is 3"),
        ({"loss_terms": ["commitment"]}, "loss_terms is"),
        ({"loss_terms": {"comitment": 1.0}}, "loss_terms names 'comitment'"),
        ({"loss_terms": {"commitment": "much"}}, "the weight 'much'"),
    ],
)
def test_what_is_no_gradient_and_no_term_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make("two", **options)


def test_a_function_that_returns_something_else_is_named():
    z = torch.randn(1, 24, 2, 2)
    with pytest.raises(ValueError, match=r"loss term .*lengths_of_codes returned \(\d+,\)"):
        make("two", loss_terms={f"{__name__}.lengths_of_codes": 1.0})(z)
    with pytest.raises(ValueError, match=r"gradient .*returned \(\)"):
        make("two", gradient=lambda z, q: q.sum())(z)
