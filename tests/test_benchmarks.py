"""The benchmark runs, and what it compares is the same thing: it is worth nothing otherwise."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from tests.building.conftest import NEEDED, flickr8k, minilm, nltk_data  # noqa: F401 (fixtures)
from tests.conftest import ROOT


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load("quantizer")


@pytest.fixture
def prior():
    return benchmark.made_up_prior(60, 400, 8)


def test_the_made_up_prior_has_the_papers_proportion_and_every_occurrence(prior):
    assert len(prior.words) == 60
    assert prior.edge_count.sum() == 400
    assert np.bincount(prior.part_of_speech).tolist() == [19, 41]
    paper = benchmark.made_up_prior(6207, 10, 4)
    assert np.bincount(paper.part_of_speech).tolist() == [1949, 4258]


def test_the_authors_formula_of_the_benchmark_is_our_quantizer(prior):
    pytest.importorskip("torch_geometric")
    models = benchmark.contestants(prior, 16)
    ours, theirs = models["ours"], models["authors' formula"]
    for mine, layer in ((ours.transfer.layer1, theirs.layer1), (ours.transfer.layer2, theirs.layer2)):
        layer.lin.weight.data = mine.weight.data.clone()
        layer.bias.data = mine.bias.data.normal_()
    z = torch.randn(2, 16, 4, 4)
    ours.eval(), theirs.eval()
    (a, loss_a, (_, _, indices)), (b, loss_b, chosen) = ours(z), theirs(z)
    assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(loss_a, loss_b, atol=1e-5)
    planar = indices.view(2, 2, 16).permute(1, 0, 2).reshape(-1)  # ours is per image, the formula per part
    planar[32:] -= 19
    assert torch.equal(planar, chosen)


def test_the_benchmark_measures_all_it_says(tmp_path, capsys):
    before = torch.get_num_threads()
    words = "--codes 60 --occurrences 400 --word-dim 8 --maps 1 --side 4 --channels 16 --rounds 1"
    try:
        words += " --device cpu --threads 1"
        benchmark.main([*words.split(), "--output", str(tmp_path / "a" / "r.json")])
    finally:
        torch.set_num_threads(before)
    results = json.loads((tmp_path / "a" / "r.json").read_text())
    (size,) = results["sizes"]
    assert {"ours", "ours, frozen", "products"} <= set(size["evaluate"])
    assert "ours" in size["train"]
    for kind in ("train", "evaluate"):
        assert all(figures["milliseconds"] > 0 for figures in size[kind].values())
    assert "training step, ours" in capsys.readouterr().out
    assert results["targets"] == []  # they are of the paper's size


def test_the_peak_of_memory_is_the_peak():
    if benchmark.peak_megabytes(lambda: None, torch.device("cpu")) is None:
        pytest.skip("this system does not tell the peak of a process's memory")

    def step():
        torch.ones(50 * 2**20 // 4)  # 50 MB, freed again

    assert 45 < benchmark.peak_megabytes(step, torch.device("cpu")) < 60


def test_targets_are_judged_as_they_were_measured():
    times = {"ours": 10.0, "ours, frozen": 6.0, "products": 5.0, "VectorQuantizer2": 8.0, "authors' formula": 31.0}
    size = {"codes": 6207, "train": {}, "evaluate": {}}
    for kind in ("train", "evaluate"):
        size[kind] = {n: {"milliseconds": t, "quartiles": [t, t], "peak_megabytes": 1.0} for n, t in times.items()}
    lookup = {"codes": 1, "vectors": 1, "channels": 1, "megabytes": 70.0}
    results = {"device": "cpu", "sizes": [{**size, "edges": 3}], "lookup": lookup}
    results["targets"] = benchmark.targets_of(results)
    text = benchmark.report(results)
    judged = [line.rsplit("|", 2)[1].strip() for line in text.splitlines()[-5:]]
    assert judged == ["reached", "not reached", "not reached", "reached", "not reached"]


@pytest.mark.skipif(bool(NEEDED), reason=f"building a prior needs {', '.join(NEEDED)}")
def test_the_benchmark_of_building_measures_all_it_says(flickr8k, nltk_data, minilm, tmp_path):  # noqa: F811
    module = load("prior")
    few = tmp_path / "few.token"
    few.write_text("".join(flickr8k.read_text(encoding="utf-8").splitlines(keepends=True)[:400]))
    output = tmp_path / "results.json"
    options = f"{few} --plm {minilm} --prompts 8 --sample 100 --rounds 1 --output {output}".split()
    results = module.main(options)  # which checks that the contestants count the same, and the taggers tag the same
    assert set(results["counting"]) == {"plain recipe", "ours", "ours, two workers"}
    assert json.loads(output.read_text()) == results
    assert set(module.ratios(results)) == set(module.TARGETS)
    assert "| target | at least | measured | |" in module.report(results)


@pytest.mark.skipif(bool(NEEDED), reason=f"building a prior needs {', '.join(NEEDED)}")
def test_the_benchmark_of_a_large_prior_measures_all_it_says(tmp_path, capsys):
    module, output = load("prior"), tmp_path / "results.json"
    seconds = module.main(f"--words 300 --dim 8 --rounds 2 --output {output}".split())
    assert [len(times) for times in seconds.values()] == [2, 2, 2, 2, 1]
    assert json.loads(output.read_text()) == seconds
    told = capsys.readouterr().out
    assert "300 words, vectors of 8 in float16 (0 MB), 3,600 edges" in told
    assert "| the 3 nearest nouns of 117 adjectives |" in told
    with pytest.raises(SystemExit):
        module.main([])
    assert "one of the two" in capsys.readouterr().err


def test_the_benchmark_of_drawing_measures_all_it_says():
    pytest.importorskip("pytorch_lightning")
    pytest.importorskip("taming")
    sampling = load("sampling")
    seconds = sampling.measure(2, side=2, layers=1, width=64, images=1)
    assert [len(rounds) for rounds in seconds.values()] == [2] * 4
    table = sampling.report(seconds, 1)
    assert table.count("times as fast") == 4
    assert " 1.0 times as fast" in table
