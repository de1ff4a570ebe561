"""CUDA graphs, and that the host never waits."""

import copy

import pytest
import torch

from tests import device_checks as checks

pytestmark = pytest.mark.cuda


def captured(step, warm_up=3):
    """A CUDA graph of a step, made as torch's documentation makes it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


def test_a_captured_training_step_is_eagers(device, make):
    """Replayed on new maps; without dropout, whose masks the captured one and eager's need not share."""
    quantizer, reference, maps = checks.twice(*make(device, dropout=0.0), device)
    z = maps[0].clone().requires_grad_()

    def step():
        for leaf in (*quantizer.parameters(), z):
            leaf.grad = None
        loss = checks.loss_of(quantizer, z)
        loss.backward()
        return loss

    graph, loss = captured(step)
    for new in maps:
        with torch.no_grad():
            z.copy_(new)
        graph.replay()
        theirs = new.clone().requires_grad_()
        reference.zero_grad()
        expected = checks.loss_of(reference, theirs)
        expected.backward()
        checks.assert_alike([loss.detach()], [expected.detach()], 1e-5, "loss")
        checks.assert_alike(checks.gradients(quantizer, z), checks.gradients(reference, theirs))


def test_each_replay_drops_others(device, make):
    """A mask that is part of the graph would be the same for ever."""
    quantizer, shape = make(device)
    z = torch.randn(shape, device=device)
    graph, loss = captured(lambda: checks.loss_of(quantizer, z).detach())
    losses = set()
    for _ in range(4):
        graph.replay()
        losses.add(float(loss))
    assert len(losses) == 4


def test_captured_frozen_evaluation_is_eagers(device, make):
    quantizer, shape = make(device)
    quantizer.eval().freeze_codebook()
    z = torch.randn(shape, device=device)
    with torch.no_grad():
        graph, (z_q, _, (_, _, indices)) = captured(lambda: quantizer(z))
        for _ in range(3):
            z.copy_(torch.randn(shape, device=device))
            graph.replay()
            expected, _, (_, _, chosen) = quantizer(z)
            assert torch.equal(indices, chosen)
            assert torch.equal(z_q, expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_captured_decoding_is_eagers(device, make, frozen):
    """Indices are checked in eager mode only: a graph asks nothing."""
    quantizer, shape = make(device)
    b, c, h, w = shape
    quantizer.eval()
    if frozen:
        quantizer.freeze_codebook()
    with torch.no_grad():
        _, _, (_, _, indices) = quantizer(torch.randn(shape, device=device))
        graph, decoded = captured(lambda: quantizer.get_codebook_entry(indices, (b, h, w, c)))
        for _ in range(3):
            expected, _, (_, _, new) = quantizer(torch.randn(shape, device=device))
            indices.copy_(new)
            graph.replay()
            checks.assert_alike([decoded], [expected], 1e-6, "map")
            assert torch.equal(decoded, quantizer.get_codebook_entry(new, (b, h, w, c)))


@pytest.mark.parametrize("topk", [1, 2])
def test_the_host_never_waits(device, make, topk):
    """Not in a training step with its optimizer's, not in evaluation, frozen or not, and not in decoding."""
    quantizer, shape = make(device, topk=topk)
    b, c, h, w = shape
    frozen = copy.deepcopy(quantizer).eval().freeze_codebook()
    optimizer = torch.optim.AdamW(quantizer.parameters(), 1e-4)
    z = torch.randn(shape, device=device, requires_grad=True)

    def step():
        optimizer.zero_grad()
        checks.loss_of(quantizer.train(), z).backward()
        optimizer.step()
        with torch.no_grad():
            for module in (quantizer.eval(), frozen):
                _, _, (_, _, indices) = module(z)
                module.get_codebook_entry(indices, (b, h, w, c))

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_diverged_encoder_is_told_of_a_step_later(device, make):
    quantizer, shape = make(device)
    diverged = torch.full(shape, float("nan"), device=device)

    def five_steps():
        for _ in range(5):
            quantizer(diverged)
            torch.cuda.synchronize()

    with pytest.raises(ValueError, match="NaN"):
        five_steps()


def test_memory_does_not_grow(device, make):
    """What is deferred is let go of."""
    quantizer, shape = make(device)
    z = torch.randn(shape, device=device, requires_grad=True)
    allocated = []
    for _ in range(50):
        quantizer.zero_grad()
        z.grad = None
        checks.loss_of(quantizer, z).backward()
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[-1] <= allocated[5] + 2**16
