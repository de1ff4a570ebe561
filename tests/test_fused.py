"""The fused pass against the same operations one by one, each with its own gradient."""

import copy

import pytest
import torch

from tests.test_quantizer import make
from vqct_plugin import CodebookTransferQuantizer

SETTINGS = {
    "two parts": ("two", {}),
    "a mean of three": ("two", {"topk": {"adjective": 3, "noun": 2}}),
    "joint": ("joint", {}),
    "channels last": ("two", {"channels_last": True}),
}


def outcome(quantizer, z, weights):
    z = z.clone().requires_grad_()
    z_q, loss, (_, _, indices) = quantizer(z)
    quantizer.zero_grad()
    ((z_q * weights).sum() + 3 * loss).backward()
    return z_q, loss, indices, z.grad, [p.grad for p in quantizer.transfer.parameters()]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("setting", SETTINGS)
def test_one_by_one_gives_the_same(setting, dtype, legacy, monkeypatch):
    made, options = SETTINGS[setting]
    fused = make(made, dropout=0.0, legacy=legacy, **options)
    single = copy.deepcopy(fused)
    shape = (2, 5, 3, fused.e_dim) if fused.channels_last else (2, fused.e_dim, 5, 3)
    z, weights = (torch.randn(shape).to(dtype) for _ in range(2))
    ours = outcome(fused, z, weights)
    monkeypatch.setattr(CodebookTransferQuantizer, "_one_by_one", lambda self, z: True)
    theirs = outcome(single, z, weights)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[2], theirs[2])
    assert torch.allclose(ours[1], theirs[1], rtol=1e-5)
    assert ours[3].dtype == dtype
    assert ours[3].is_contiguous()
    assert torch.allclose(ours[3].float(), theirs[3].float(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    for own, other in zip(ours[4], theirs[4]):
        assert torch.allclose(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", ["z", "codes", "both"])
def test_what_needs_no_gradient_gets_none(frozen):
    quantizer = make("two", dropout=0.0)
    z = torch.randn(2, quantizer.e_dim, 3, 3, requires_grad=frozen == "codes")
    for parameter in quantizer.parameters():
        parameter.requires_grad_(frozen == "z")
    z_q, loss, _ = quantizer(z)
    assert loss.requires_grad == (frozen != "both")
    if frozen != "both":
        (z_q.sum() + loss).backward()
    assert (z.grad is not None) == (frozen == "codes")
    assert all((p.grad is not None) == (frozen == "z") for p in quantizer.parameters())


def test_a_map_that_is_laid_out_already_stays_as_it_was():
    quantizer = make("joint", channels_last=True)
    z = torch.randn(1, 4, 4, quantizer.e_dim)
    before = z.clone()
    quantizer(z)
    assert torch.equal(z, before)


@pytest.mark.parametrize("topk", [1, 2])
def test_a_penalty_of_gradients_is_that_of_the_operations_one_by_one(topk, monkeypatch):
    fused = make("two", dropout=0.0, topk=topk)
    single = copy.deepcopy(fused)
    x = torch.randn(2, fused.e_dim, 3, 3, requires_grad=True)

    def penalty(quantizer):
        z_q, loss, _ = quantizer(x * x)
        gradient = torch.autograd.grad((z_q**2).sum() + loss, x, create_graph=True)[0]
        return torch.autograd.grad(gradient.pow(2).sum(), [x, *quantizer.transfer.parameters()], allow_unused=True)

    ours = penalty(fused)
    monkeypatch.setattr(CodebookTransferQuantizer, "_one_by_one", lambda self, z: True)
    for own, other in zip(ours, penalty(single)):
        zero = torch.zeros(())
        assert torch.allclose(zero if own is None else own, zero if other is None else other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("turned", [lambda y: y.transpose(2, 3), lambda y: y.permute(0, 3, 2, 1).reshape(2, 3, -1)])
def test_a_gradient_may_lie_in_memory_as_it_likes(turned):
    quantizer = make("two", dropout=0.0)
    z = torch.randn(2, quantizer.e_dim, 5, 3, requires_grad=True)
    z_q = quantizer(z)[0]
    weights = torch.randn_like(turned(z_q))
    (turned(z_q) * weights).sum().backward()
    plain = torch.zeros_like(z, requires_grad=True)
    (turned(plain) * weights).sum().backward()
    assert torch.equal(z.grad, plain.grad)


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="batches of gradients came with torch.func")
def test_a_batch_of_gradients_is_each_of_them():
    quantizer = make("two", dropout=0.0)
    z = torch.randn(1, quantizer.e_dim, 2, 2, requires_grad=True)
    z_q = quantizer(z)[0]
    each = torch.randn(3, *z_q.shape)
    (found,) = torch.autograd.grad(z_q, z, each, is_grads_batched=True)
    assert torch.equal(found, each)
