"""Figures against a second method, and the picture's table."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
from tests.conftest import make_prior
from vqct_plugin.evaluation.metrics import evaluate, usage_of
from vqct_plugin.quantizer import CodebookTransferQuantizer


class Model(torch.nn.Module):
    """A model as far as `evaluate` knows one: the quantizer, and a decoder that adds a fixed error."""

    image_key = "image"

    def __init__(self, quantizer, error=0.0):
        super().__init__()
        self.quantize = quantizer
        self.error = torch.nn.Parameter(torch.tensor(error))

    def get_input(self, batch, key):
        return batch[key].permute(0, 3, 1, 2)

    def encode(self, x):
        self.x = x
        return self.quantize(torch.nn.functional.avg_pool2d(x, 4).repeat(1, 4, 1, 1)[:, :8])

    def decode(self, quantized):
        return self.x * 0.9 + self.error


@pytest.fixture
def model():
    return Model(CodebookTransferQuantizer(40, 8, prior=make_prior()), 0.05)


def batches(number=3, size=16):
    torch.manual_seed(1)
    return [{"image": torch.rand(2, size, size, 3) * 2 - 1} for _ in range(number)]


def test_psnr_and_ssim_are_scikit_images(model):
    skimage = pytest.importorskip("skimage.metrics")
    images = batches()
    result = evaluate(model, images)
    psnr, ssim = [], []
    for image in torch.cat([batch["image"] for batch in images]):
        original = (image.numpy().astype(np.float64) + 1) / 2
        reconstruction = ((image * 0.9 + 0.05).clamp(-1, 1).numpy().astype(np.float64) + 1) / 2
        psnr.append(skimage.peak_signal_noise_ratio(original, reconstruction, data_range=1))
        ssim.append(
            skimage.structural_similarity(
                original, reconstruction, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )
        )  # fmt: skip
    assert result.images == 6
    assert result.psnr == pytest.approx(np.mean(psnr), abs=1e-3)
    # scikit-image pads where torchmetrics leaves the border out, of 5 pixels here
    assert result.ssim == pytest.approx(np.mean(ssim), abs=5e-3)


def test_usage_is_of_all_batches_and_the_model_is_left_as_it_was(model):
    model.train()
    images = batches()
    result = evaluate(model, images)
    assert model.training
    with torch.no_grad():
        model.eval()
        chosen = torch.cat([model.encode(model.get_input(b, "image"))[2][2] for b in images])
    counts = torch.bincount(chosen, minlength=40)
    assert torch.equal(result.counts, counts)
    for i, part in enumerate(("adjective", "noun")):
        own = counts[model.quantize.part_of_speech == i]
        assert result.usage[part].in_use == int((own > 0).sum())
        assert result.usage[part].tokens == 6 * 16


def test_batches_make_no_difference(model):
    images = batches()
    one = [{"image": torch.cat([b["image"] for b in images])}]
    a, b = evaluate(model, images), evaluate(model, one)
    assert a.psnr == pytest.approx(b.psnr, rel=1e-6)
    assert a.ssim == pytest.approx(b.ssim, rel=1e-6)
    assert torch.equal(a.counts, b.counts)


def test_nothing_to_evaluate_is_refused(model):
    with pytest.raises(ValueError, match="there is no batch to evaluate"):
        evaluate(model, [])


def test_stock_quantizers_are_counted_as_one_part():
    quantize = pytest.importorskip("taming.modules.vqvae.quantize")
    assert usage_of(quantize.VectorQuantizer2(7, 4, 0.25)).counts.shape == (7,)
    gumbel = quantize.GumbelQuantize(8, 4, 9, straight_through=False)
    assert usage_of(gumbel).counts.shape == (9,)
