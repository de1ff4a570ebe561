"""The page of ``vqct-report``: what it holds, and that it works in a real browser."""

import csv
import html
import json
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
pytest.importorskip("taming", reason="taming-transformers is not installed")
pytest.importorskip("torchmetrics")
pytest.importorskip("skimage", reason="the photographs are scikit-image's")
pytest.importorskip("sklearn")

import torch
import yaml

from tests.runs.tiny import config
from vqct_plugin.commands.report import main
from vqct_plugin.report.curves import find_first, read_log
from vqct_plugin.report.page import report_runs
from vqct_plugin.report.sections import group_images
from vqct_plugin.report.words import encode_images
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.health import judge_usage
from vqct_plugin.runs.load import load_run
from vqct_plugin.training.launcher import run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a stock and a VQCT run of three steps; one name would be a script if the page did not quote it."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for name, target in (("stock", "taming.models.vqgan.VQModel"), ("a<b>&\"'", "vqct_plugin.VQModel")):
        whole = config(target)
        whole["data"]["params"]["validation"]["params"]["size"] = 16
        whole["lightning"]["callbacks"] = {"codebook_usage_logger": {"params": {"every_n_batches": 1}}}
        (folder / "it.yaml").write_text(yaml.safe_dump(whole))
        trainer = {"max_steps": 3, "limit_val_batches": 1}
        done = run([folder / "it.yaml"], trainer=trainer, logdir=folder / "logs", name="x", test=False, seed=3)
        found.append(folder / name)
        done.folder.rename(folder / name)
    return found


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return report_runs(runs, folder, images_shown=5, size_shown=32, limit=60, progress=False)


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


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


def test_its_maps_are_the_codes_of_the_models(page, runs):
    """Of the images as they lie in the page, by the model again."""
    import base64
    import io

    from PIL import Image

    data = data_of(page)
    assert [its["name"] for its in data["runs"]] == [folder.name for folder in runs]
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))) for image in data["images"]
    ]
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
    assert told[1] == ("64", "64")


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


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page):
    """Opens the page; at the end nothing may have been said on the console, nor asked of the network."""
    told, pages = [], []

    def open_page(**options):
        tab = browser.new_page(**options)
        pages.append(tab)
        tab.on("console", lambda message: told.append(message.text))
        tab.on("pageerror", lambda error: told.append(str(error)))
        tab.on("request", lambda it: it.url.startswith(("data:", "file:")) or told.append(it.url))
        tab.goto(page.as_uri())
        return tab

    yield open_page
    for tab in pages:
        tab.close()
    assert told == []


def test_every_picture_is_seen(opened):
    tab = opened()
    assert tab.title().startswith("stock and a<b>")
    assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0 && image.alt)")
    assert tab.locator("section").count() == 9
    assert tab.locator("nav a").count() == 9


def test_pointing_shows_the_words(opened, page):
    """At places of the image, the words that the codes there have; the same by keys."""
    data = data_of(page)
    its = data["runs"][1]
    tab = opened()
    rows, columns = its["grid"]
    stage = tab.locator(".stage")
    stage.scroll_into_view_if_needed()
    tab.locator(".thumbs button").nth(2).click()
    box = stage.bounding_box()
    for row, column in ((0, 0), (rows - 1, columns - 1), (3, 5)):
        cell = row * columns + column
        tab.mouse.move(
            box["x"] + (column + 0.5) / columns * box["width"], box["y"] + (row + 0.5) / rows * box["height"]
        )
        words = [its["words"][layer[cell]] for layer in its["maps"][2]]
        assert tab.locator(".tip").inner_text().split() == [words[0], "adjective", words[1], "noun"]
        same = its["maps"][2][0].count(its["maps"][2][0][cell])
        readout = tab.locator(".readout").inner_text()
        assert f"row {row + 1}, column {column + 1}: {words[0]} + {words[1]}." in readout
        assert f"stands at {same} of {rows * columns}" in readout
    stage.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    assert "row 5, column 7" in tab.locator(".readout").inner_text()
    tab.mouse.move(0, 0)
    assert tab.locator(".tip").is_hidden()


def test_a_map_has_the_colors_of_its_codes(opened, page):
    its = data_of(page)["runs"][1]
    tab = opened()
    tab.get_by_role("button", name="noun map").click()
    pixels = tab.evaluate(
        """() => {
          const canvas = document.querySelector("canvas.color");
          return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    colors = [its["colors"][code] for code in its["maps"][0][1]]
    expected = [[*(int(color[i : i + 2], 16) for i in (1, 3, 5)), 255] for color in colors]
    assert [pixels[i : i + 4] for i in range(0, len(pixels), 4)] == expected
    tab.get_by_role("button", name="stock", exact=True).click()
    assert tab.locator(".layers button").all_inner_texts() == ["photograph", "code map"]
    assert (
        tab.locator(".telling h3").first.inner_text()
        == f"Codes that tell {data_of(page)['images'][0]['set'] or 'this image'} apart"
    )


def test_the_search_finds_every_patch(opened, page):
    its = data_of(page)["runs"][1]
    tab = opened()
    flat = [code for image in its["maps"] for layer in image for code in layer]
    code = max(set(flat), key=flat.count)
    word = its["words"][code]
    tab.locator("#finder input").fill(word.upper())
    images = sum(code in layer for image in its["maps"] for layer in image)
    said = tab.locator(".found").inner_text()
    assert f"“{word}”" in said
    assert f"{flat.count(code)} patches in {images} of 5 images" in said
    while tab.locator(".more").count():
        tab.locator(".more").click()
    assert tab.locator(".patches canvas").count() == flat.count(code)
    # each patch is of its image: the middle pixel
    label = tab.locator(".patches button").first.get_attribute("aria-label")
    assert label.startswith(word)
    tab.locator(".patches button").first.click()
    assert word in tab.locator(".readout").inner_text()
    assert " ".join(re.findall(r"row \d+, column \d+", label)) in tab.locator(".readout").inner_text()
    unused = next(i for i in range(64) if i not in flat)
    tab.locator("#finder input").fill(its["words"][unused])
    if its["words"][unused] not in " ".join(its["words"][i] for i in set(flat)):
        assert "is in the codebook, but in none of these images" in tab.locator(".found").inner_text()
    tab.locator("#finder input").fill("zzzz")
    assert tab.locator(".found").inner_text() == "No codebook here has the word “zzzz”."
    assert tab.locator(".patches canvas").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(opened, scheme):
    """Every text's contrast with the ground behind it is at least 4.5 to 1 (WCAG 2.1, AA); charts change with it."""
    tab = opened(color_scheme=scheme)
    worst = tab.evaluate(
        """() => {
          const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
          const linear = (v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
          const light = ([r, g, b]) => [r, g, b].map(linear)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
          const ground = (element) => {
            for (let it = element; it; it = it.parentElement) {
              const color = numbers(getComputedStyle(it).backgroundColor);
              if (color.length === 3 || color[3] === 1) return color;
            }
            return [255, 255, 255];
          };
          const found = [];
          for (const element of document.querySelectorAll("main *, header *, nav *, footer")) {
            if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
            const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
            found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), element.outerHTML.slice(0, 80)]);
          }
          return found.sort((a, b) => a[0] - b[0])[0];
        }"""
    )
    assert worst[0] >= 4.5, worst
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 150) == (scheme == "dark")
    shown = tab.evaluate(
        "[...document.querySelectorAll('picture img')].map((i) => i.currentSrc === i.parentElement.children[0].srcset)"
    )
    assert set(shown) == {scheme == "dark"}


def test_a_phone_does_not_scroll_sideways(opened):
    tab = opened(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    stage = tab.locator(".stage")
    stage.scroll_into_view_if_needed()
    stage.tap(position={"x": 40, "y": 40})
    assert tab.locator(".tip").is_visible()
    assert "row" in tab.locator(".readout").inner_text()


def test_images_of_one_folder_or_file_belong_together():
    assert group_images(["a/1.png", "b/2.png", "a/3.png"]) == ["a", "b", "a"]
    assert group_images(["a/1.png", "a/2.png", "a/1.png"]) == ["1.png", "2.png", "1.png"]
