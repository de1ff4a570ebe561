"""The page of ``vqct-report``: what it holds."""

import base64
import csv
import datetime
import html
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
pytest.importorskip("taming", reason="taming-transformers is not installed")
pytest.importorskip("torchmetrics")
pytest.importorskip("skimage", reason="the photographs are scikit-image's")
pytest.importorskip("sklearn")

import torch
from omegaconf import OmegaConf
from PIL import Image

from tests.report.conftest import data_of
from vqct_plugin.commands.report import main
from vqct_plugin.report.curves import find_first, read_log
from vqct_plugin.report.page import name_data, report_runs
from vqct_plugin.report.sections import fill_notes, group_images
from vqct_plugin.report.words import encode_images
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.health import judge_usage
from vqct_plugin.runs.load import load_run


def test_the_page_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|srcset|url)\s*[=(]\s*["']?(?!data:|#|\$\{)[a-z/.]""", text.split("<script>")[0])
    assert "{{" not in text
    assert "a&lt;b&gt;&amp;&#34;&#39;" in text
    assert "a<b>" not in text
    files = {file.name for file in page.parent.glob("*.png")}
    assert {"reconstructions.png", "one_step.png", "use_stock_codes.png", "curve_in_use.png"} <= files
    assert len(files) == 13
    assert (page.parent / "evaluation" / "table.md").is_file()


def read_picture(address):
    """(H, W, 3) uint8 of a picture as it lies in the page."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))


def test_its_maps_are_the_codes_of_the_models(page, runs):
    """Of the images as they lie in the page, by the model again."""
    data = data_of(page)
    assert [its["name"] for its in data["runs"]] == [folder.name for folder in runs]
    pixels = [read_picture(image["src"]) for image in data["images"]]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert images.shape == (5, 3, 32, 32)
    for its, folder in zip(data["runs"], runs):
        model = load_run(folder, loss=False).model
        codes = encode_images(model, images, tile=16).codes
        shown = np.array(its["maps"]).reshape(5, -1, *its["grid"])
        assert shown.shape == tuple(codes.shape)
        assert (shown == codes.numpy()).mean() > 0.98  # the page has bytes, the evaluation had floats
        names = [image["name"] for image in data["images"]]
        assert [image["set"] for image in data["images"]] == [n if names.count(n) > 1 else None for n in names]
        flat = shown.reshape(5, -1)
        for name, row, of_set in zip(names, its["commonest"], its["telling"]):
            assert len(set(row)) == len(row)
            inside = np.array([other == name for other in names])
            for code in of_set:  # more frequent there than elsewhere
                assert (flat[inside] == code).mean() > (flat[~inside] == code).mean()
    assert data["runs"][0]["words"][3] == "code 3"
    assert data["runs"][1]["words"] == model.quantize.words
    assert data["runs"][1]["layers"] == ["adjective", "noun"]


def test_its_sentences_are_those_of_the_figures(page):
    text = html.unescape(page.read_text(encoding="utf-8"))
    figures = json.loads((page.parent / "evaluation" / "figures.json").read_text(encoding="utf-8"))
    from vqct_plugin.usage import PartUsage

    for its in figures:
        assert f"{its['mean']['psnr']:.2f} dB PSNR" in text
        for part, usage in its["usage"].items():
            sentence = judge_usage(PartUsage(**{**usage, "dead": list(range(usage["dead"]))}), part).sentence
            assert sentence[1:] in text  # its first letter is a capital there
    told = re.findall(r"the step moved ([\d,]+) of ([\d,]+)", text)
    assert int(told[0][0]) < int(told[0][1]) == 64
    assert 0 < int(told[1][0]) <= int(told[1][1]) == 64  # averages move where they are chosen, and by exchange


def rows_of(page):
    """The page's first table: title -> cells."""
    text = page.read_text(encoding="utf-8")
    table = re.search(r'<table class="figures">(.*?)</table>', text, re.S).group(1)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.split("<tr>", table)[1:]]
    return {row[0]: [html.unescape(cell) for cell in row[1:]] for row in rows}


def test_the_table_has_differences_and_no_row_of_dashes(page):
    """Of image by image, from the file that has each; and with three runs, each against the first."""
    stock, ours = "stock", "a<b>&\"'"
    rows = rows_of(page)
    assert rows[""] == [stock, ours, f"{ours} less {stock}"]
    with (page.parent / "evaluation" / "images.csv").open(newline="", encoding="utf-8") as stream:
        images = list(csv.DictReader(stream))
    for name, title, digits in (("psnr", "PSNR, dB", 2), ("l1", "L1", 4)):
        values = [np.array([float(row[name]) for row in images if row["model"] == model]) for model in (stock, ours)]
        difference = (values[1] - values[0]).mean()
        assert rows[title][2].split("<small>")[0] == f"{difference:+.{digits}f}"
    assert all(set(cells) != {"-"} for cells in rows.values())
    assert "rFID" not in rows
    assert "rFID" in page.read_text(encoding="utf-8")  # its note says why


def test_differences_of_three_runs_are_from_the_first(page, monkeypatch):
    from vqct_plugin.report import sections

    names = ["a", "b less a", "c"]
    pairs = [{"difference": f"{x} less {y}", "PSNR": f"+{i} (+0 to +{i})"} for i, (x, y) in enumerate(
        [("b less a", "a"), ("c", "a"), ("c", "b less a")])]  # fmt: skip
    monkeypatch.setattr(sections, "make_difference_rows", lambda figures: pairs)
    table = [
        {"": "PSNR", **{name: "20.1 (19 to 21)" for name in names}},
        {"": "LPIPS", **{name: "-" for name in names}},
    ]
    monkeypatch.setattr(sections, "make_rows", lambda figures: table)
    rows = sections.fill_table([SimpleNamespace(name=name) for name in names])
    assert len(rows) == 1
    assert list(rows[0]) == ["", *names, "b less a less a", "c less a"]
    assert rows[0]["c"] == ["20.1", "(19 to 21)"]
    assert rows[0]["c less a"] == ["+1", "(+0 to +1)"]


def test_each_reconstruction_has_its_psnr_and_the_error_maps_their_colors(page):
    text = page.read_text(encoding="utf-8")
    tiles = re.findall(r'<figure class="tile"><img src="([^"]+)"[^>]*><figcaption>([^<]*)<', text)
    assert len(tiles) == 5 * 5
    for original, *of_models in (tiles[i : i + 5] for i in range(0, 25, 5)):
        assert original[1] in [html.escape(image["name"]) for image in data_of(page)["images"]]
        for (picture, psnr), (_, error) in (of_models[:2], of_models[2:]):
            a, b = (read_picture(it).astype(float) for it in (original[0], picture))
            assert float(psnr.split()[0]) == pytest.approx(
                20 * np.log10(255 / np.sqrt(((a - b) ** 2).mean())), abs=0.15
            )
            assert float(error.split()[1]) == pytest.approx(np.abs(a - b).mean() / 127.5, abs=0.006)
    scale, ticks = re.search(
        r'<figure class="scale"><img src="([^"]+)".*?<figcaption>(.*?)</figcaption>', text
    ).groups()
    assert re.findall(r"<span>([^<]*)</span>", ticks) == ["0", "0.125", "0.25", "0.375", "0.5 or more"]
    bar = read_picture(scale)[0].astype(int)
    assert (np.diff(bar.sum(axis=1)) >= 0).mean() > 0.9
    assert bar[0].sum() < 20
    assert bar[-1].sum() > 550


def test_it_is_called_by_its_data_and_its_day(page):
    text = html.unescape(page.read_text(encoding="utf-8"))
    made = f"on Photographs (validation), {datetime.date.today().isoformat()}"
    figures = json.loads((page.parent / "evaluation" / "figures.json").read_text(encoding="utf-8"))
    labels = [f"{its['model']}, {its['bits']:,.0f} bits" for its in figures]
    assert labels[0] == "stock, 384 bits"  # 64 positions of one of 64 codes
    assert f"<title>{'; '.join(labels)} {made}: what the codes learned</title>" in text
    columns = re.findall(r'<div class="head">(.*?)</div>', text)
    assert [columns[1], columns[3]] == labels  # no reconstruction without its rate
    assert f"<h3>{labels[1]}</h3>" in text.split('<section id="space">')[1]
    assert f'<p class="made">{made}</p>' in text


@pytest.mark.parametrize(
    ("target", "params", "images", "name"),
    [
        ("x.ImagesOfOnes", {}, None, "ImagesOfOnes"),
        (
            "taming.data.custom.CustomTest",
            {"size": 8, "test_images_list_file": "/a/b/val.txt"},
            None,
            "CustomTest (val.txt)",
        ),
        ("vqct_plugin.runs.photographs.Photographs", {"split": "validation"}, None, "Photographs (validation)"),
        ("x.Y", None, "/somewhere/images/val/", "val"),
    ],
)
def test_data_sets_have_names(target, params, images, name):
    config = OmegaConf.create({"data": {"params": {"validation": {"target": target, "params": params}}}})
    assert name_data(config, images) == name


def test_no_path_of_this_machine_is_told(page, runs):
    text = html.unescape(page.read_text(encoding="utf-8"))
    for folder in (runs[0].parent, page.parent, Path.home(), Path.cwd()):
        assert str(folder) not in text
    assert "<code>stock/checkpoints/last.ckpt</code>" in text
    broken = SimpleNamespace(broken={"/home/somebody/cat.png": "/home/somebody/cat.png is not an image"})
    notes = ["- left out: /home/somebody/cat.png is not an image"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqct_plugin.report.sections.list_notes", lambda figures: notes)
        assert fill_notes([broken]) == ["left out: cat.png is not an image"]


def test_it_says_that_words_need_not_describe_and_what_chance_would_give(page):
    text = html.unescape(page.read_text(encoding="utf-8"))
    found = re.findall(
        r"A word need not describe what is there.*?codes: (\d+%) in\s+(.*?), where chance would keep (\d+%)\.",
        text,
        re.S,
    )
    assert len(found) == 1  # stock codes have no words
    kept, name, chance = found[0]
    assert name == "a<b>&\"'"
    assert (kept, chance) in re.findall(
        r"words, (\d+%) are still among its nearest; by chance it would be (\d+%)", text
    )
    before, after = text.index("A word need not"), text.index('class="stage"')
    assert before < after


def test_curves_are_those_of_the_log(runs):
    for folder, part in zip(runs, ("codes", "noun")):
        with (folder / "csv" / "metrics.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        name = f"train/dead/{part}"
        expected = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
        found = read_log(folder)[name]
        assert list(zip(*found)) == expected
        assert len(expected) == 3
    assert read_log(runs[0] / "checkpoints" / "last.ckpt") == read_log(runs[0])
    assert find_first({"b": found}, "a", "b") is found
    assert find_first({}, "a") is None


def test_a_run_without_a_log_and_words_of_ones_own(runs, tmp_path):
    shutil.copytree(runs[1], tmp_path / "VQCT")
    shutil.rmtree(tmp_path / "VQCT" / "csv")
    words = load_run(runs[1]).model.quantize.words
    page = report_runs([tmp_path / "VQCT"], tmp_path / "r", images_shown=2, words=[words[50]], limit=8, progress=False)
    text = page.read_text(encoding="utf-8")
    assert "have no log of figures" in text
    assert re.findall(r"<th scope=row>([^<]+)<small>", text) == [words[50]]
    assert "a multiple of the evaluation" not in text
    with pytest.raises(ConfigError, match="no codebook of these runs has the word 'wordd'"):
        report_runs([tmp_path / "VQCT"], tmp_path / "s", words=["wordd"], limit=8, progress=False)
    assert not (tmp_path / "s" / "index.html").exists()


def test_refusals(runs, page, capsys, tmp_path):
    before = page.read_bytes()
    for words, sentence in (
        ([runs[0], "-o", page.parent], "index.html exists; pass --force to replace it"),
        ([runs[0], "-o", tmp_path / "a", "--size-shown", "24"], "--size-shown is 24; expected a multiple of 16"),
        ([runs[0], "-o", tmp_path / "a", "--images-shown", "0"], "--images-shown is 0; expected 1 or more"),
        ([tmp_path / "none", "-o", tmp_path / "a"], "neither a checkpoint nor a run's folder"),
    ):
        assert main([*map(str, words), "--limit", "4", "--quiet"]) == 1
        told = capsys.readouterr().err
        assert told.startswith("vqct-report: ")
        assert sentence in told
    assert page.read_bytes() == before
    shutil.copy(page, tmp_path / "index.html")
    assert main([str(runs[0]), "-o", str(tmp_path), "--images-shown", "2", "--limit", "4", "--quiet", "--force"]) == 0
    assert str(tmp_path / "index.html") in capsys.readouterr().out
    assert (tmp_path / "index.html").read_bytes() != before


def test_images_of_one_folder_or_file_belong_together():
    assert group_images(["a/1.png", "b/2.png", "a/3.png"]) == ["a", "b", "a"]
    assert group_images(["a/1.png", "a/2.png", "a/1.png"]) == ["1.png", "2.png", "1.png"]
