"""Figures against a second method, and the picture's table."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
from tests.conftest import make_prior
from vqct_plugin import usage as core
from vqct_plugin.evaluation.figures import evaluate
from vqct_plugin.evaluation.metrics import CodebookUsageMetric
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.runs.usage import make_counter


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
    assert result.mean["psnr"] == pytest.approx(np.mean(psnr), abs=1e-3)
    assert result.mean["ssim"] == pytest.approx(np.mean(ssim), abs=1e-4)


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
    assert a.mean["psnr"] == pytest.approx(b.mean["psnr"], rel=1e-6)
    assert a.mean["ssim"] == pytest.approx(b.mean["ssim"], rel=1e-6)
    assert torch.equal(a.counts, b.counts)


def test_nothing_to_evaluate_is_refused(model):
    with pytest.raises(ValueError, match="there is no batch to evaluate"):
        evaluate(model, [])


def test_stock_quantizers_are_counted_as_one_part():
    quantize = pytest.importorskip("taming.modules.vqvae.quantize")
    assert make_counter(quantize.VectorQuantizer2(7, 4, 0.25)).counts.shape == (7,)
    gumbel = quantize.GumbelQuantize(8, 4, 9, straight_through=False)
    assert make_counter(gumbel).counts.shape == (9,)


def test_usage_as_a_torchmetrics_metric_is_the_cores():
    part_of_speech, parts = [0] * 15 + [1] * 25, ("adjective", "noun")
    metric, counter = CodebookUsageMetric(part_of_speech, parts), core.CodebookUsage(part_of_speech, parts)
    torch.manual_seed(0)
    for _ in range(3):
        indices = torch.randint(0, 40, (2, 9))
        metric.update(indices)
        counter.update(indices)
    expected = counter.compute()
    assert metric.usage() == expected
    found = metric.compute()
    assert set(found) == {f"{name}/{part}" for name in ("in_use", "perplexity", "dead") for part in parts}
    for part in parts:
        assert float(found[f"in_use/{part}"]) == pytest.approx(expected[part].share)
        assert float(found[f"perplexity/{part}"]) == pytest.approx(expected[part].perplexity)
        assert int(found[f"dead/{part}"]) == len(expected[part].dead)
    # forward() gives the batch's figures, and counts it too
    one = metric(torch.zeros(4, dtype=torch.long))
    assert float(one["in_use/adjective"]) == pytest.approx(1 / 15)
    counter.update(torch.zeros(4, dtype=torch.long))
    assert metric.usage() == counter.compute()
    with pytest.raises(ValueError, match="indices run from 40 to 40"):
        metric.update(torch.tensor([40]))
    metric.reset()
    assert int(metric.counts.sum()) == 0


def _count_and_compute(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metric = CodebookUsageMetric(6)
    metric.update(torch.tensor([rank, rank + 1]))  # 0 1 and 1 2
    found = {name: float(figure) for name, figure in metric.compute().items()}
    assert found["in_use/codes"] == pytest.approx(3 / 6)
    assert found["perplexity/codes"] == pytest.approx(2**1.5)
    assert int(metric.counts.sum()) == 2  # its own again
    torch.distributed.destroy_process_group()


def test_processes_are_added_before_any_figure(tmp_path):
    torch.multiprocessing.spawn(_count_and_compute, args=(str(tmp_path),), nprocs=2)


def test_the_package_gives_its_names_when_asked():
    from vqct_plugin import evaluation

    assert evaluation.CodebookUsageMetric is CodebookUsageMetric
    assert evaluation.evaluate is evaluate
    assert {"evaluate_runs"} <= set(dir(evaluation))
    with pytest.raises(AttributeError, match="nothing_such"):
        evaluation.nothing_such  # noqa: B018
