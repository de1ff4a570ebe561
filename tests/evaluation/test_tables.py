"""Bits beside tokens, differences with paired intervals, and the files of any number of runs."""

import csv
import doctest
import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch

pytest.importorskip("omegaconf")
from tests.conftest import make_prior
from tests.evaluation.test_metrics import Model, batches
from vqct_plugin.evaluation import resampling, tables
from vqct_plugin.evaluation.differences import compute_differences
from vqct_plugin.evaluation.figures import evaluate
from vqct_plugin.evaluation.rates import describe_rate, warn_of_rates
from vqct_plugin.evaluation.resampling import bootstrap_interval, bootstrap_intervals
from vqct_plugin.evaluation.tables import FILES, format_latex, format_table, list_notes, make_rows, write_tables
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.runs.config import DataError

SIZES = (24, 40)  # of the parts


def figures_of(name, error=0.05, files=None, **options):
    """Figures of a model that takes its own images back with a fixed error; 16 positions an image."""
    quantizer = CodebookTransferQuantizer(64, 8, prior=make_prior(SIZES), **options)
    its = batches()
    if files is not None:
        its = [{**batch, "file_path_": files[2 * i : 2 * i + 2]} for i, batch in enumerate(its)]
    return evaluate(Model(quantizer, error), its, name=name)


@pytest.fixture(scope="module")
def three():
    torch.manual_seed(0)
    return [
        figures_of("joint", 0.05, parts_of_speech="joint"),
        figures_of("VQCT", 0.02),
        figures_of("a_b|50%", 0.2, topk=2),
    ]


def entropy_of(counts):
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log2()).sum())


def test_bits_are_of_equal_lengths_and_by_entropy(three):
    adjectives, nouns = map(math.log2, SIZES)
    for its, tokens, bits in zip(three, (1, 2, 3), (6, adjectives + nouns, 2 * adjectives + nouns)):
        assert (its.positions, its.tokens) == (16, 16 * tokens)
        assert its.bits == pytest.approx(16 * bits)
    joint, vqct, two = three
    assert joint.entropy == pytest.approx(16 * entropy_of(joint.counts))
    for its, number in ((vqct, 1), (two, 2)):
        parts = [entropy_of(its.counts[its.part_of_speech == i]) for i in range(2)]
        assert its.entropy == pytest.approx(16 * (number * parts[0] + parts[1]))
        assert its.entropy < its.bits


def test_bits_stand_beside_tokens(three, tmp_path):
    titles = [row[""] for row in make_rows(three)]
    place = titles.index("tokens per image")
    assert titles[place:] == ["tokens per image", "bits per image", "bits per position", "bits by entropy"]
    row = make_rows(three)[place + 1]
    assert (row["joint"], row["VQCT"]) == ("96", f"{three[1].bits:,.0f}")
    assert describe_rate(three[0]) == f"16 tokens, 96 bits per image ({three[0].entropy:.0f} by entropy)"
    write_tables(three, tmp_path)
    with (tmp_path / "figures.csv").open() as stream:
        flat = list(csv.DictReader(stream))
    for its, row, record in zip(three, flat, json.loads((tmp_path / "figures.json").read_text())):
        assert float(row["bits"]) == record["bits"] == its.bits
        assert float(row["bits_per_position"]) == record["bits_per_position"] == its.bits / 16
        assert float(row["bits_by_entropy"]) == record["bits_by_entropy"] == its.entropy


def test_runs_of_different_rates_are_warned_of(three):
    sentence = warn_of_rates(three)
    assert f"joint: 96; VQCT: {three[1].bits:,.0f}; a_b|50%: {three[2].bits:,.0f}" in sentence
    assert list_notes(three)[0] == f"- {sentence}"
    alike = three[0]._replace(name="stock", bits=three[0].bits * 1.002)
    assert "joint and stock: 96;" in warn_of_rates([three[0], alike, three[1]])
    assert warn_of_rates([three[0], alike]) is None
    assert not any("rates" in note for note in list_notes([three[0], alike]))


def test_differences_are_paired(three):
    """Each image is hard for both runs alike, so that a difference is far surer than the two means."""
    found = compute_differences(three)
    assert [(its.name, its.other) for its in found] == [("VQCT", "joint"), ("a_b|50%", "joint"), ("a_b|50%", "VQCT")]
    for pair in found:
        its, other = (next(run for run in three if run.name == name) for name in (pair.name, pair.other))
        assert pair.bits == its.bits - other.bits
        for name in ("psnr", "ssim", "l1"):
            by_image = np.subtract(its.values[name], other.values[name])
            assert pair.mean[name] == pytest.approx(its.mean[name] - other.mean[name])
            assert pair.interval[name] == bootstrap_interval(by_image)
    low, high = found[1].interval["psnr"]
    assert high - low < 0.5 * (three[0].interval["psnr"][1] - three[0].interval["psnr"][0])


def test_runs_on_other_images_make_no_pair(three):
    other = three[1]._replace(source="another folder")
    assert [(its.name, its.other) for its in compute_differences([three[0], other, three[2]])] == [("a_b|50%", "joint")]
    fewer = three[1]._replace(broken={"a.png": "gone"})
    assert compute_differences([three[0], fewer]) == []


def test_any_number_of_runs_is_in_every_file(three, tmp_path):
    write_tables(three, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
    text = (tmp_path / "table.md").read_text()
    assert "| a_b\\|50% " in text
    assert "| VQCT less joint " in text
    assert "| a_b\\|50% less VQCT " in text
    with (tmp_path / "differences.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    records = json.loads((tmp_path / "figures.json").read_text())
    assert records[0]["differences"] == {}
    for pair in compute_differences(three):
        nested = next(its for its in records if its["model"] == pair.name)["differences"][pair.other]
        for name, mean in pair.mean.items():
            (row,) = [r for r in rows if (r["model"], r["less"], r["figure"]) == (pair.name, pair.other, name)]
            assert [float(row[key]) for key in ("difference", "low", "high")] == [mean, *pair.interval[name]]
            assert nested[name] == {"difference": mean, "low": pair.interval[name][0], "high": pair.interval[name][1]}
        assert nested["bits"]["difference"] == pair.bits


def test_the_table_for_tex(three, tmp_path):
    write_tables(three, tmp_path)
    text = (tmp_path / "table.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"a\_b|50\% & " not in text.splitlines()[0]
    assert r" & joint & VQCT & a\_b|50\% \\" in text
    lines = [line for line in text.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(make_rows(three)) + 1
    assert all(line.count(" & ") == 3 for line in lines)
    assert "$-$" in text.split(r"\end{tabular}")[1]
    assert all(note[2:] in text for note in list_notes(three))
    assert format_latex([{"a^b": "~\\x{#$&"}]).splitlines()[2:5] == [
        r"a\textasciicircum{}b \\", r"\hline", r"\textasciitilde{}\textbackslash{}x\{\#\$\& \\",
    ]  # fmt: skip
    if shutil.which("pdflatex"):
        page = "\\documentclass{article}\\begin{document}\n" + text + "\\end{document}\n"
        (tmp_path / "page.tex").write_text(page)
        done = subprocess.run(["pdflatex", "-interaction=batchmode", "page.tex"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0


def test_a_bar_in_a_name_makes_no_column():
    assert format_table([{"a|b": "1"}]).splitlines()[0] == r"| a\|b |"


def test_the_examples_run():
    assert doctest.testmod(resampling).failed == 0


def test_photographs_are_resampled_with_all_their_tiles():
    """Tiles of one photograph that are all alike tell no more than one of them."""
    random = np.random.RandomState(0)
    photographs = random.randn(12)
    tiles, groups = np.repeat(photographs, 20), np.repeat(np.arange(12), 20)
    low, high = bootstrap_interval(tiles, groups=groups)
    assert [low, high] == pytest.approx(bootstrap_interval(photographs))
    narrow = bootstrap_interval(tiles)
    assert high - low > 3 * (narrow[1] - narrow[0])


def test_photographs_of_unequal_sizes_are_weighed_by_their_tiles():
    values, groups = [0.0, 6.0, 6.0, 6.0, 6.0, 6.0], ["a", "b", "b", "b", "b", "b"]
    assert bootstrap_interval(values, groups=groups, level=0.999) == [0.0, 6.0]
    drawn = [[0], [0, 6, 6, 6, 6, 6], [6]]
    means = {float(np.mean(x)) for x in drawn}
    bounds = bootstrap_intervals({"x": values}, groups, level=0.0)["x"]  # the median of the resamples
    assert bounds[0] == bounds[1] in means
    assert bounds[0] == 5.0


def test_what_has_no_interval_takes_none_from_the_others():
    found = bootstrap_intervals({"a": [1.0, math.inf, 2.0], "b": [1.0, 2.0, 3.0], "c": [1.0]})
    assert all(map(math.isnan, [*found["a"], *found["c"]]))
    assert found["b"] == bootstrap_interval([1.0, 2.0, 3.0])
    assert all(map(math.isnan, bootstrap_interval([1.0, 2.0], groups=["a", "a"])))


def test_tiles_are_told_of_in_the_table_and_its_notes():
    its = figures_of("it", files=["a", "a", "b", "b", "b", "c"])
    assert (its.images, its.photographs) == (6, 3)
    assert its.interval["psnr"] == bootstrap_interval(its.values["psnr"], groups=its.files)
    assert its.interval["psnr"] != bootstrap_interval(its.values["psnr"])
    assert {"": "of photographs", "it": "3"} in make_rows([its])
    assert "by bootstrap over the 3 photographs that the images are pieces of" in list_notes([its])[-1]
    one = figures_of("it", files=["a"] * 6)
    assert list_notes([one])[-1] == "- no intervals: all images are pieces of one photograph"
    whole = figures_of("it", files=list("abcdef"))
    assert "by bootstrap over images" in list_notes([whole])[-1]
    assert not any(row[""] == "of photographs" for row in make_rows([whole]))


def test_a_full_disk_is_said_with_the_file(three, tmp_path, monkeypatch):
    def full(*args, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "write_whole", full)
    with pytest.raises(DataError, match=r"table\.md cannot be written: No space left on device$"):
        write_tables(three, tmp_path)
