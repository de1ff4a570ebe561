"""A page of two small runs, and a browser, for all tests of it."""

import json
import re
import shutil

import pytest
import yaml

from tests.runs.tiny import config

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def data_of(page):
    """What the page's script works with."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of a stock and a VQCT run of three steps; one name would be a script if the page did not quote it."""
    for needed in ("taming", "torchmetrics", "skimage", "sklearn"):
        pytest.importorskip(needed)
    pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
    from vqct_plugin.training.launcher import run

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


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory):
    from vqct_plugin.report.page import report_runs

    folder = tmp_path_factory.mktemp("report")
    return report_runs(runs, folder, images_shown=5, size_shown=32, limit=60, progress=False)


@pytest.fixture(scope="session")
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
