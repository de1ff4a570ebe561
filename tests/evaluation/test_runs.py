"""``vqct-evaluate`` on small trained runs, stock and VQCT."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
pytest.importorskip("taming", reason="taming-transformers is not installed")
pytest.importorskip("torchmetrics")
pytest.importorskip("skimage", reason="the photographs are scikit-image's")

import torch
from PIL import Image

from tests.evaluation.conftest import quick
from vqct_plugin.commands.evaluate import main
from vqct_plugin.evaluation import images as measured_images
from vqct_plugin.evaluation import shards
from vqct_plugin.evaluation.figures import evaluate
from vqct_plugin.evaluation.tables import list_notes
from vqct_plugin.evaluation.weights import INCEPTION, VGG
from vqct_plugin.runs.build import build_validation_set
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.load import load_run

pytestmark = pytest.mark.usefixtures("no_weights")


def test_the_figures_are_those_of_the_whole_set_at_once(trained, tmp_path):
    """Against evaluate() over the same data in one go; whatever the batches, shards and processes."""
    first = quick(trained.values(), tmp_path / "a", limit=40)
    for its, folder in zip(first, trained.values()):
        model = load_run(folder).model
        items = torch.utils.data.Subset(build_validation_set(load_run(folder).config), range(40))
        whole = evaluate(model, torch.utils.data.DataLoader(items, 7))
        assert its.images == whole.images == len(items)
        assert its.mean["psnr"] == pytest.approx(whole.mean["psnr"], abs=1e-3)
        assert its.mean["ssim"] == pytest.approx(whole.mean["ssim"], abs=1e-4)
        assert its.usage == whole.usage
    for i, settings in enumerate(({"batch_size": 1}, {"shard_size": 15}, {"shard_size": 10, "processes": 2})):
        for ours, theirs in zip(first, quick(trained.values(), tmp_path / str(i), limit=40, **settings)):
            # Of 69,120 tokens a few lie between two codes that are equally near to float32's rounding, which is not the
            # same in another batch.
            for name, value in ours.mean.items():
                assert theirs.mean[name] == pytest.approx(value, rel=1e-4)
            for part, usage in ours.usage.items():
                assert theirs.usage[part].tokens == usage.tokens
                assert abs(theirs.usage[part].in_use - usage.in_use) <= 1
                assert theirs.usage[part].perplexity == pytest.approx(usage.perplexity, rel=1e-3)


def test_tokens_and_bits(trained, tmp_path):
    stock, ours = quick(trained.values(), tmp_path / "a", limit=3)
    assert (stock.tokens, stock.bits) == (24 * 24, 24 * 24 * 6)  # 64 codes
    adjectives, nouns = (ours.usage[part].codes for part in ("adjective", "noun"))
    assert ours.tokens == 3 * 24 * 24
    assert ours.bits == pytest.approx(24 * 24 * (2 * math.log2(adjectives) + math.log2(nouns)))
    assert stock.images == 3


def test_an_evaluation_that_was_stopped_goes_on(trained, tmp_path, monkeypatch):
    whole = quick([trained["vqct"]], tmp_path / "whole", shard_size=32)[0]
    measured = []
    measure = measured_images.measure

    def counted(originals, *rest):
        measured.append(len(originals))
        if sum(measured) > 70:
            raise KeyboardInterrupt
        return measure(originals, *rest)

    monkeypatch.setattr(measured_images, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        quick([trained["vqct"]], tmp_path / "a", shard_size=32)
    assert not list((tmp_path / "a").glob("*.*"))
    monkeypatch.setattr(measured_images, "measure", measure)
    remade = []
    monkeypatch.setattr(
        shards, "_save", lambda file, arrays, save=shards._save: remade.append(file) or save(file, arrays)
    )
    again = quick([trained["vqct"]], tmp_path / "a", shard_size=32)[0]
    assert len(remade) == -(-whole.images // 32) - 2
    assert again.mean == whole.mean
    assert again.usage == whole.usage
    # and with other settings nothing of it is taken
    quick([trained["vqct"]], tmp_path / "a", shard_size=32, protocol="vqct")
    assert len(remade) == 2 * -(-whole.images // 32) - 2


def test_a_folder_of_images_and_the_files_that_are_written(trained, photographs, tmp_path, capsys):
    runs = [str(folder) for folder in trained.values()]
    output = tmp_path / "out"
    assert main([*runs, "--images", str(photographs), "--size", "64", "-o", str(output), "--quiet"]) == 0
    told = capsys.readouterr().out
    table = (output / "table.md").read_text()
    assert table in told
    assert re.search(r"\| images +\| 14 ", table)
    assert "- MS-SSIM: images under 176 pixels" in table
    assert f"- LPIPS: no {VGG}" in table
    assert f"- rFID, inception score: no {INCEPTION}" in table
    figures = json.loads((output / "figures.json").read_text())
    with (output / "images.csv").open() as stream:
        images = list(csv.DictReader(stream))
    with (output / "figures.csv").open() as stream:
        flat = list(csv.DictReader(stream))
    assert len(images) == 28
    for its, row in zip(figures, flat):
        own = [float(image["psnr"]) for image in images if image["model"] == its["model"]]
        assert its["mean"]["psnr"] == pytest.approx(np.mean(own))
        assert float(row["psnr"]) == its["mean"]["psnr"]
        assert its["interval"]["psnr"][0] < its["mean"]["psnr"] < its["interval"]["psnr"][1]
        assert f"{its['mean']['psnr']:.2f}" in table


@pytest.fixture
def weights(tmp_path):
    """Random weights under the names that LPIPS and FID look for."""
    import torchvision

    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x  # noqa: F401

    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(torchvision.models.vgg16().state_dict(), folder / VGG)
    network = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    load = torch.nn.Module.load_state_dict
    try:
        torch.nn.Module.load_state_dict = lambda *args, **kwargs: None
        torch.save({}, folder / "none.pth")
        network.__init__("inception-v3-compat", ["2048"], str(folder / "none.pth"))
    finally:
        torch.nn.Module.load_state_dict = load
    torch.save(network.state_dict(), folder / INCEPTION)
    return folder


def test_lpips_and_fid_where_their_weights_are(trained, photographs, weights, tmp_path, monkeypatch):
    """The pipes, with random weights: FID by a nuclear norm, LPIPS of an image and itself 0."""
    settings = {"images": str(photographs), "size": 32, "shard_size": 5}
    figures = quick([trained["vqct"]], tmp_path / "a", weights=str(weights), **settings)[0]
    assert set(figures.missing) == {"ms_ssim"}
    assert len(figures.values["lpips"]) == 14
    assert all(value > 0 for value in figures.values["lpips"])
    pieces = [dict(np.load(file)) for file in sorted((tmp_path / "a" / "shards").rglob("*.npz"))]
    a, b = (
        np.concatenate([s[f"inception.{kind}_features"] for s in pieces]).astype(np.float64)
        for kind in ("original", "reconstruction")
    )
    # the trace of the root of C1 C2 is the nuclear norm of A B^T, where C = A^T A of the centered features
    centered = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b)]
    root = np.linalg.norm(centered[0] @ centered[1].T, "nuc")
    fid = ((a.mean(0) - b.mean(0)) ** 2).sum() + (centered[0] ** 2).sum() + (centered[1] ** 2).sum() - 2 * root
    assert figures.of_set["rfid"] == pytest.approx(fid, rel=0.02)
    assert figures.of_set["inception_score"] >= 1 - 1e-9  # 1 where all images are told alike
    # an environment variable says the same as the argument
    monkeypatch.setenv("VQCT_WEIGHTS", str(weights))
    again = quick([trained["vqct"]], tmp_path / "b", **settings)[0]
    assert again.of_set["rfid"] == pytest.approx(figures.of_set["rfid"])
    assert again.mean["lpips"] == pytest.approx(figures.mean["lpips"])


def test_runs_on_other_images_are_told_of(trained, tmp_path):
    its = [quick([trained[name]], tmp_path / name, limit=2)[0] for name in ("stock", "vqct")]
    differ = "the runs were evaluated on different validation sets, so their figures are not comparable"
    assert not any(differ in line for line in list_notes(its))
    other = quick([trained["stock"]], tmp_path / "c", limit=2, overrides=("data.params.validation.params.size=96",))
    assert sum(differ in line for line in list_notes([*its, *other])) == 1


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", ""]])
def test_names_that_do_not_fit_are_refused(trained, tmp_path, names):
    with pytest.raises(ConfigError, match="expected 2, one for each run, all different"):
        quick(trained.values(), tmp_path, names=names, limit=1)


def test_half_precision_is_near(trained, tmp_path):
    full, half = (quick([trained["vqct"]], tmp_path / p, limit=16, precision=p)[0] for p in ("32", "bf16"))
    assert half.mean["psnr"] == pytest.approx(full.mean["psnr"], abs=0.2)
    assert half.mean["psnr"] != full.mean["psnr"]


def refused(capsys, sentence, *words):
    assert main([*map(str, words), "--quiet"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]  # above it torch may tell of processes that it ended
    assert told.startswith("vqct-evaluate: ")
    assert sentence in told


def test_what_cannot_be_evaluated_is_refused(trained, photographs, tmp_path, capsys):
    ours, output = trained["vqct"], ["-o", tmp_path / "out"]
    (tmp_path / "empty").mkdir()
    refused(capsys, "there is no image in", ours, "--images", tmp_path / "empty", *output)
    refused(capsys, "size is 33; expected a multiple of 2", ours, "--images", photographs, "--size", "33", *output)
    refused(capsys, "size goes with images", ours, "--size", "32", *output)
    refused(capsys, "neither a checkpoint nor a run's folder", tmp_path / "none", *output)
    refused(capsys, "expected 1 or more", ours, "--batch-size", "0", *output)
    refused(capsys, "limit is 0; expected 1 or more", ours, "--limit", "0", *output)
    refused(capsys, "workers is -1; expected 0 or more", ours, "--workers", "-1", *output)
    refused(capsys, "size is -2; expected 1", ours, "--images", photographs, "--size", "-2", *output)
    refused(capsys, "processes is 0", ours, "--processes", "0", *output)
    refused(
        capsys,
        "disagree",
        ours,
        "--set",
        "model.params.transfer=mlp",
        "model.params.ddconfig.num_res_blocks=2",
        *output,
    )
    (photographs / "5.png").write_bytes(b"\x89PNG broken")
    refused(capsys, "5.png cannot be read", ours, "--images", photographs, *output)
    refused(capsys, "5.png cannot be read", ours, "--images", photographs, "--processes", "2", *output)
    assert not (tmp_path / "out" / "table.md").exists()


def test_runs_of_one_name_are_told_apart(trained, tmp_path):
    figures = quick([trained["vqct"], trained["vqct"] / "checkpoints" / "last.ckpt"], tmp_path / "a", limit=2)
    assert figures[0].name != figures[1].name
    assert figures[0].mean == figures[1].mean


def test_an_image_that_changed_is_measured_again(trained, photographs, tmp_path):
    """The same name and number of files: a kept shard would tell of images that are gone."""
    its = {"output": tmp_path / "a", "images": photographs, "size": 64}
    before = quick([trained["vqct"]], **its)[0]
    assert [Path(file).name for file in before.files] == sorted(file.name for file in photographs.iterdir())
    changed = before.files[3]
    Image.open(changed).transpose(Image.FLIP_TOP_BOTTOM).save(changed)
    after = quick([trained["vqct"]], **its)[0]
    assert [a == b for a, b in zip(before.values["l1"], after.values["l1"])] == [i != 3 for i in range(before.images)]


def test_one_image_has_no_interval_and_its_json_is_json(trained, tmp_path):
    quick([trained["vqct"]], tmp_path / "a", limit=1)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    (its,) = json.loads((tmp_path / "a" / "figures.json").read_text(), parse_constant=refuse)
    assert its["interval"]["psnr"] == [None, None]
    assert its["mean"]["psnr"] > 0
    assert "(" not in next(line for line in (tmp_path / "a" / "table.md").read_text().splitlines() if "PSNR" in line)
