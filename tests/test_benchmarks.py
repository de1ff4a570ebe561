"""The benchmark runs, and what it compares is the same thing: it is worth nothing otherwise."""

import importlib
import importlib.util
import json
import subprocess
import sys
import time

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
contestants = importlib.import_module("quantizer_contestants")
tables = importlib.import_module("quantizer_tables")


pytestmark = pytest.mark.skipif(not hasattr(torch, "compile"), reason="benchmarks are run on torch 2")


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
    models = benchmark.contestants(prior, 16, authors=True)
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


def test_the_lookups_of_the_benchmark_find_the_same_codes(prior):
    quantizer = benchmark.CodebookTransferQuantizer(60, 16, prior=prior, transfer="graph")
    z = torch.randn(50, 8)
    for state in ("fresh", "trained"):
        found = benchmark.lookups(z, benchmark.codebook(state, quantizer, z))
        assert torch.equal(found["ours"]()[:, 0], found["addmm + argmin"]())
        assert torch.equal(found["ours"]()[:, 0], found["cdist + argmin"]())
    collapsed = benchmark.codebook("collapsed", quantizer, z)
    assert collapsed.shape == (60, 8)
    assert (collapsed - collapsed[0]).norm(dim=1).max() < 3e-6


def test_the_transfer_of_the_benchmark_gives_every_weight_a_gradient(prior):
    quantizer = benchmark.CodebookTransferQuantizer(60, 16, prior=prior, transfer="graph")
    benchmark.transfer_step(quantizer)()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantizer.parameters())


TINY = "--codes 60 --dims 8 --occurrences 400 --word-dim 8 --maps 1 --side 4 --rounds 1 --device cpu --threads 1"


def test_the_benchmark_measures_all_it_says(tmp_path, capsys):
    before = torch.get_num_threads()
    more = "--vqgan --vqgan-side 32 --vqgan-images 1"
    try:
        benchmark.main([*f"{TINY} {more}".split(), "--output", str(tmp_path / "a" / "r.json")])
    finally:
        torch.set_num_threads(before)
    results = json.loads((tmp_path / "a" / "r.json").read_text())
    (cell,) = results["cells"]
    kinds = cell["kinds"]
    assert (cell["codes"], cell["dim"], cell["vectors"], cell["threads"]) == (60, 8, 16, 1)
    assert set(kinds) == set(benchmark.TITLES)
    assert {"ours", "ours, frozen", "products"} <= set(kinds["evaluate"])
    assert {"ours", "ours, frozen"} <= set(kinds["entry"])
    assert set(kinds["lookup, collapsed"]) == {"ours", "addmm + argmin", "cdist + argmin", "products"}
    for name, package in (("VectorQuantizer2", "taming"), ("SimVQ", "vector_quantize_pytorch")):
        if importlib.util.find_spec(package):
            assert f"two {name}" in kinds["train"]
    assert all(figures["milliseconds"] > 0 for kind in kinds.values() for figures in kind.values())
    assert not any(cell["skipped"].values())
    assert set(cell["transfer"]) == {"transfer", "step", "step of twice the batch"}
    assert results["priors"][0]["state_over_vectors"] > 0
    assert len(results["vqgan"]) == 1
    printed = capsys.readouterr().out
    assert "training step, ours" in printed
    assert "| target | codes |" in printed
    assert len(results["targets"]) == 5


def test_what_needs_too_much_memory_is_left_out_and_said(capsys):
    before = torch.get_num_threads()
    try:
        results = benchmark.main([*TINY.split(), "--gigabytes", "1e-9"])
    finally:
        torch.set_num_threads(before)
    (cell,) = results["cells"]
    assert set(cell["kinds"]["train"]) == {"ours"}
    assert set(cell["skipped"]["lookup, fresh"]) == {"addmm + argmin", "cdist + argmin", "products"}
    assert "| lookup, fresh, products | left out: it needs about" in capsys.readouterr().out


def test_a_contestant_that_fails_is_told_of_and_ours_is_not_forgiven():
    def broken():
        raise RuntimeError("no kernel\nfor this")

    figures, failed = benchmark.take_turns({"theirs": broken, "ours": lambda: None}, torch.device("cpu"), 2, 1.0)
    assert set(figures) == {"ours"}
    assert failed == {"theirs": "RuntimeError: no kernel"}
    with pytest.raises(RuntimeError, match="no kernel"):
        benchmark.take_turns({"ours, frozen": broken}, torch.device("cpu"), 2, 1.0)


def test_fewer_rounds_where_time_runs_out():
    figures, _ = benchmark.take_turns({"ours": lambda: time.sleep(0.01)}, torch.device("cpu"), 50, 0.0)
    assert figures["ours"]["rounds"] == 3


def test_memory_kept_is_a_process_of_its_own(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "quantizer.py"), *TINY.split(), "--keep-memory"]
    output = tmp_path / "r.json"
    done = subprocess.run([*command, "--output", str(output)], stdout=subprocess.PIPE, check=True, text=True)
    assert "memory kept by the process" in done.stdout
    results = json.loads(output.read_text())
    assert results["memory_kept"]
    peaks = [f["peak_megabytes"] for kind in results["cells"][0]["kinds"].values() for f in kind.values()]
    assert set(peaks) == {None}  # what is not told is not made up


def test_the_peak_of_memory_is_the_peak():
    if benchmark.peak_megabytes(lambda: None, torch.device("cpu")) is None:
        pytest.skip("this system does not tell the peak of a process's memory")

    def step():
        torch.ones(50 * 2**20 // 4)  # 50 MB, freed again

    assert 45 < benchmark.peak_megabytes(step, torch.device("cpu")) < 60


def test_targets_are_judged_by_the_worst_that_was_measured():
    def figures(**taken):
        return {name: {"milliseconds": t, "quartiles": [t, t], "peak_megabytes": 1.0} for name, t in taken.items()}

    def cell(threads, ours, peak):
        lookup = {**figures(ours=3.0), "addmm + argmin": figures(x=2.0)["x"]}
        lookup["ours"]["peak_megabytes"] = peak
        kinds = {
            "train": {**figures(ours=ours), "two VectorQuantizer2": figures(x=10.0)["x"]},
            "evaluate": {"ours, frozen": figures(x=6.0)["x"], "products": figures(x=5.0)["x"]},
            "lookup, collapsed": lookup,
        }
        return {"codes": 262144, "dim": 8, "threads": threads, "precision": "fp32", "kinds": kinds}

    prior = {"codes": 262144, "seconds": {"quantizer made": 70.0}, "state_over_vectors": 1.1}
    results = {"device": "cpu", "cells": [cell(1, 9.0, 70.0), cell(2, 11.0, 30.0)], "priors": [prior]}
    judged = {t["what"]: (t["measured"], t["where"], t["reached"], t["of"]) for t in benchmark.targets_of(results)}
    assert judged == {
        "train: ours / two VectorQuantizer2": (1.1, "D 8, 2 threads", 1, 2),
        "evaluate: ours, frozen / products": (1.2, "D 8, 2 threads", 2, 2),
        "lookup: ours / addmm + argmin": (1.5, "D 8, collapsed, 2 threads", 0, 2),
        "lookup: MB beyond its inputs": (70.0, "D 8, collapsed, 1 thread", 1, 2),
        "a quantizer made, seconds": (70.0, "", 0, 1),
        "state / word vectors in float16": (1.1, "", 1, 1),
    }
    lines = tables._target_table({**results, "targets": benchmark.targets_of(results)})
    verdicts = [line.rsplit("|", 2)[1].strip() for line in lines[2:]]
    assert verdicts[:2] == ["not reached (1 of 2 reach it)", "reached"]


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


def test_the_benchmark_of_data_sets_reads_the_same_photographs(tmp_path, capsys, monkeypatch):
    for needed in ("datasets", "pytorch_lightning", "omegaconf"):
        pytest.importorskip(needed)
    from tests.runs.shards import write_folder

    module, read = load("data"), {}
    monkeypatch.setattr(module, "read", lambda dataset, *_: read.setdefault(type(dataset).__name__, dataset) and (1, 1))
    monkeypatch.setenv("HF_DATASETS_CACHE", "")
    module.main(f"{write_folder(tmp_path / 'a')} --size 16 --rounds 1 --in-a-shard 6".split())
    assert capsys.readouterr().out.count("| 1, 1, 1 | 1.00 | 1 | 1.00 |") == 3
    assert {len(dataset) for dataset in read.values()} == {15}
    assert len(read["ShardedImages"].shards) == 3


def test_a_turn_of_the_benchmark_of_data_sets_ends_in_time():
    pytest.importorskip("pytorch_lightning")
    items = [{"image": np.zeros((4, 4, 3), dtype=np.float32)}] * 12
    rates = load("data").read(items, 4, 0, 0.05)
    assert min(rates) > 100
