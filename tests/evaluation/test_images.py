"""Figures of single images, each by a second method."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("skimage")

from PIL import Image

from vqct_plugin.evaluation.images import measure, to_bytes
from vqct_plugin.evaluation.resampling import bootstrap_interval


@pytest.fixture
def pair():
    """Photographs and blurred, noisy copies of them, in [-1, 1]."""
    from vqct_plugin.runs.photographs import _read

    originals = [_read(name)[:180, :190] for name in ("astronaut.png", "chelsea.png", "coffee.png")]
    originals = torch.tensor(np.stack(originals)).permute(0, 3, 1, 2).float() / 127.5 - 1
    blurred = torch.nn.functional.avg_pool2d(originals, 5, 1, 2, count_include_pad=False)
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(0))
    return originals, (blurred + 0.1 * noise).clamp(-1.2, 1.2)


def test_psnr_ssim_and_l1_are_those_of_numpy_and_scikit_image(pair):
    from skimage.metrics import structural_similarity

    found = measure(*pair)
    for i, (a, b) in enumerate(zip(*(x.clamp(-1, 1).double().permute(0, 2, 3, 1).numpy() for x in pair))):
        assert found["l1"][i] == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
        error = (((a - b) / 2) ** 2).mean()
        assert found["psnr"][i] == pytest.approx(-10 * math.log10(error), abs=1e-4)
        theirs = structural_similarity(
            (a + 1) / 2, (b + 1) / 2, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        assert found["ssim"][i] == pytest.approx(theirs, abs=1e-4)


def test_the_authors_protocol_by_hand_through_files(pair, tmp_path):
    """JPEG files, PSNR of their RGB, SSIM of their luminance, as the authors' script writes and reads them."""
    from skimage.metrics import structural_similarity

    found = measure(*pair, protocol="vqct")
    assert list(found) == ["psnr", "ssim", "l1"]
    for i, images in enumerate(zip(*pair)):
        read = []
        for side, image in enumerate(images):
            array = image.clamp(-1, 1).add(1).mul(0.5).mul(255).add(0.5).permute(1, 2, 0).to(torch.uint8).numpy()
            Image.fromarray(array).save(tmp_path / f"{side}.jpg")
            read.append(Image.open(tmp_path / f"{side}.jpg"))
        a, b = (np.array(image) / 1.0 for image in read)
        assert found["psnr"][i] == pytest.approx(20 * math.log10(255 / math.sqrt(((a - b) ** 2).mean())))
        a, b = (np.array(image.convert("L")) for image in read)
        assert found["ssim"][i] == pytest.approx(structural_similarity(a, b))
    assert found["psnr"] != pytest.approx(measure(*pair)["psnr"], abs=1e-3)


def test_an_image_and_itself(pair):
    original, _ = pair
    assert measure(original, original, "vqct")["psnr"] == [math.inf] * 3
    found = measure(original, original)
    assert found["ssim"] == pytest.approx([1.0] * 3)
    assert found["ms_ssim"] == pytest.approx([1.0] * 3)
    assert found["l1"] == [0.0] * 3


def test_each_image_is_measured_alone(pair):
    together = measure(*pair)
    alone = [measure(pair[0][i : i + 1], pair[1][i : i + 1]) for i in range(3)]
    for name, values in together.items():
        assert values == pytest.approx([its[name][0] for its in alone], rel=1e-5)


def test_small_images_have_no_ms_ssim(pair):
    assert "ms_ssim" not in measure(*(x[..., :175, :180] for x in pair))
    assert "ms_ssim" in measure(*(x[..., :176, :180] for x in pair))


def test_bytes_are_rounded_to_the_nearest():
    values = torch.tensor([-1.5, -1.0, -1 + 0.9 / 127.5, 0.0, 1.0, 1.5]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_bytes(values)[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]


def test_the_interval_is_scipys_percentile_bootstrap():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.RandomState(3).gamma(2.0, size=200)
    low, high = bootstrap_interval(values, resamples=4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", random_state=1)
    assert low == pytest.approx(theirs.confidence_interval.low, rel=0.02)
    assert high == pytest.approx(theirs.confidence_interval.high, rel=0.02)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert all(map(math.isnan, bootstrap_interval([1.0])))
    assert all(map(math.isnan, bootstrap_interval([1.0, math.inf])))
