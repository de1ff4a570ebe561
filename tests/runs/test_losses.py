"""VQPixelWithDiscriminator is taming's loss at perceptual_weight 0, and needs no download."""

import pytest
import torch

pytest.importorskip("taming")
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.runs.losses import VQPixelWithDiscriminator

vqperceptual = import_taming("taming.modules.losses.vqperceptual")


@pytest.fixture
def hosts(monkeypatch):
    """taming's own loss, its LPIPS replaced by a module that is never called."""
    monkeypatch.setattr(vqperceptual, "LPIPS", torch.nn.Identity)
    return vqperceptual.VQLPIPSWithDiscriminator


@pytest.mark.parametrize("optimizer", [0, 1])
@pytest.mark.parametrize(("step", "kind"), [(0, "hinge"), (7, "hinge"), (7, "vanilla")])
def test_values_and_gradients_are_the_hosts_without_lpips(hosts, optimizer, step, kind):
    options = {"disc_start": 5, "disc_weight": 0.8, "codebook_weight": 0.7, "disc_ndf": 8, "disc_loss": kind}
    results = []
    for cls, extra in ((hosts, {"perceptual_weight": 0.0}), (VQPixelWithDiscriminator, {})):
        torch.manual_seed(1)
        loss = cls(**options, **extra)
        torch.manual_seed(2)
        x, layer = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(3, 3, 1, 1, requires_grad=True)
        reconstructions = torch.nn.functional.conv2d(x, layer)
        value, log = loss(torch.tensor(0.3), x, reconstructions, optimizer, step, last_layer=layer, split="train")
        value.backward()
        results.append((value, log, [p.grad for p in loss.parameters()], layer.grad, loss.state_dict()))
    (value, log, grads, layer, state), (ours, our_log, our_grads, our_layer, our_state) = results
    assert torch.equal(value, ours)
    assert log.keys() == our_log.keys()
    assert all(torch.equal(log[k], our_log[k]) for k in log)
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(grads, our_grads))
    assert (layer is None and our_layer is None) or torch.equal(layer, our_layer)
    assert list(state) == list(our_state)  # so a checkpoint goes from one to the other


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"perceptual_weight is 1.0, but .* has no perceptual loss"):
        VQPixelWithDiscriminator(disc_start=0, perceptual_weight=1.0)
    with pytest.raises(ValueError, match="disc_loss is 'wgan'; expected 'hinge' or 'vanilla'"):
        VQPixelWithDiscriminator(disc_start=0, disc_loss="wgan")
