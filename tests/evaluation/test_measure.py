"""A measure of one's own is a class and an entry: it is in the figures, the table and the files."""

import doctest
import json

import pytest
import torch

pytest.importorskip("torchmetrics")
from tests.conftest import make_prior
from tests.evaluation.test_metrics import Model, batches
from vqct_plugin.evaluation import measure as module
from vqct_plugin.evaluation.figures import compute_figures, evaluate, measure_batches
from vqct_plugin.evaluation.measure import Conditions, Figure, Measure
from vqct_plugin.evaluation.measures import MEASURES
from vqct_plugin.evaluation.tables import list_notes, make_rows, write_tables
from vqct_plugin.quantizer import CodebookTransferQuantizer


class Brightness(Measure):
    """How much brighter the reconstructions are, for each image and for the whole set."""

    figures = {  # noqa: RUF012
        "brighter": Figure("brighter", 3),
        "brightest": Figure("brightest", 2, of_set=True),
        "never": Figure("never there", 1, of_set=True),
    }

    def update(self, originals, reconstructions):
        self.keep("means", (reconstructions - originals).mean(dim=(1, 2, 3)))

    def compute(self):
        means = self.gather("means")
        return {"brighter": means, "brightest": float(means.max())}

    def explain(self, name):
        return f"{name} is not to be had"


@pytest.fixture
def model():
    return Model(CodebookTransferQuantizer(40, 8, prior=make_prior()), 0.05)


def test_the_example_runs():
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
    assert "misses" not in MEASURES


def test_its_figures_are_everywhere(model, tmp_path):
    every = {**MEASURES, "brightness": Brightness}
    del every["inception"], every["frechet"]
    images = batches()
    found = evaluate(model, images, measures=every, name="it")
    expected = [(x * 0.9 + 0.05 - x).mean().item() for x in torch.cat([batch["image"] for batch in images])]
    assert found.values["brighter"] == pytest.approx(expected, abs=1e-6)
    assert found.of_set == {"brightest": pytest.approx(max(expected), abs=1e-6)}
    rows = {row[""]: row["it"] for row in make_rows([found])}
    assert rows["brightest"] == f"{max(expected):.2f}"
    assert rows["never there"] == "-"
    assert rows["PSNR, dB"].startswith(f"{found.mean['psnr']:.2f} (")
    assert "- never there: never is not to be had" in list_notes([found])
    write_tables([found], tmp_path)
    (record,) = json.loads((tmp_path / "figures.json").read_text())
    assert record["brightest"] == found.of_set["brightest"]
    assert record["never"] is None
    assert (tmp_path / "figures.csv").read_text().splitlines()[0].count("brightest") == 1


def test_pieces_are_the_whole(model):
    images, conditions = batches(), Conditions(device="cpu")
    model.eval()
    every = {"brightness": Brightness}
    pieces = [measure_batches(model, [batch], every, conditions) for batch in images]
    whole = compute_figures(
        "", model.quantize, [measure_batches(model, images, every, conditions)], every, Conditions()
    )
    parts = compute_figures("", model.quantize, pieces, every, Conditions())
    assert parts.images == whole.images == 6
    assert parts.values == whole.values
    assert parts.usage == whole.usage
