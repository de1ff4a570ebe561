"""The demo: one config twice, only its target changed, on photographs held out."""

import json
import math
import re

import pytest
import yaml

pytest.importorskip("taming")
pytest.importorskip("skimage")
pytest.importorskip("torchmetrics")
pytest.importorskip("sklearn")
from vqct_plugin import CodebookPrior
from vqct_plugin.commands import demo
from vqct_plugin.report.comparison import PHOTOGRAPHS, compare
from vqct_plugin.runs.config import ConfigError

# planes of 1,024 words would take most of the time of these tests
SMALL = [
    "model.params.ddconfig.ch_mult=[1,1,1]", "model.params.n_embed=128", "lightning.trainer.enable_progress_bar=false"
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison that was interrupted in its second run, and resumed."""
    from vqct_plugin.report import comparison

    words = SMALL
    folder = tmp_path_factory.mktemp("demo")
    keywords = {"overrides": words, "output": folder, "trainer": {"max_steps": 2, "accelerator": "cpu"}}
    plain, started = comparison.run, []

    def interrupted(*args, **kwargs):
        started.append(kwargs.get("name") or kwargs["resume"].name[20:])
        if len(started) == 2:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    comparison.run = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            compare(**keywords, tiles_shown=2)
        found = compare(**keywords, tiles_shown=2)
    finally:
        comparison.run = plain
    assert started == ["stock", "EMA", "stock", "EMA", "VQCT"]
    assert [path.name for path in folder.iterdir()] == [found.folder.name]
    return found


def test_what_is_finished_or_of_other_arguments_is_not_gone_on_with(done):
    from vqct_plugin.report.comparison import ARGUMENTS, _find_interrupted

    arguments = json.loads((done.folder / ARGUMENTS).read_text())
    output = done.folder.parent
    assert _find_interrupted(output, arguments) is None
    table = done.folder / "table.md"
    table.rename(done.folder / "away.md")
    assert _find_interrupted(output, arguments) == done.folder
    assert _find_interrupted(output, {**arguments, "seed": 5}) is None
    (done.folder / "away.md").rename(table)


def test_one_stopped_while_its_page_was_written_is_finished_without_training_again(tmp_path, monkeypatch):
    from vqct_plugin.report import comparison

    words = [*SMALL, "model.params.n_embed=64", "model.params.ddconfig.ch=32"]
    keywords = {"overrides": words, "output": tmp_path, "trainer": {"max_steps": 1, "accelerator": "cpu"}}
    train, make, steps = comparison.run, comparison.make_report, []

    def counting(*args, **keywords):
        done = train(*args, **keywords)
        steps.append((keywords.get("resume"), done.trainer.global_step))
        return done

    def stopped(trained, figures, shown, output, **keywords):
        (output / "index.html").write_text("an earlier page")
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "run", counting)
    monkeypatch.setattr(comparison, "make_report", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(**keywords, models={"stock": ()})
    (folder,) = tmp_path.iterdir()
    assert not (folder / "table.md").exists()
    monkeypatch.setattr(comparison, "make_report", make)
    found = compare(**keywords, models={"stock": ()})
    assert found.folder == folder
    assert steps == [(None, 1), (next(folder.glob("*_stock")), 1)]
    assert (folder / "table.md").read_text() == f"{found.table}\n"
    assert (folder / "table.md").stat().st_mtime_ns >= found.report.stat().st_mtime_ns
    assert found.report.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_seconds_of_before_the_interruption_count(done):
    import torch

    file = next(done.folder.glob("*_stock/checkpoints/last.ckpt"))
    assert done.seconds["stock"] > torch.load(file)["vqct_seconds"] > 0


def test_nothing_but_the_codebook_differs(done):
    configs = [yaml.safe_load(file.read_text()) for file in sorted(done.folder.glob("*/configs/*-project.yaml"))]
    del configs[1]  # of the stock run, resumed
    assert [c["model"].pop("target") for c in configs] == ["vqct_plugin.VQModel"] * 3
    assert configs[0]["model"]["params"].pop("transfer") == "table"
    assert configs[1]["model"]["params"].pop("transfer") == {"target": "averages", "params": {"arrange_steps": 0}}
    assert configs[1]["model"]["params"].pop("combine") == "concat"
    assert configs[0] == configs[1] == configs[2]


def test_figures_are_of_every_tile_held_out(done):
    assert [e.images for e in done.evaluations.values()] == [len_of_validation()] * 3
    assert [e.photographs for e in done.evaluations.values()] == [8] * 3
    sizes = CodebookPrior.load("default").select(128).sizes
    for its in done.evaluations.values():
        assert {part: usage.codes for part, usage in its.usage.items()} == sizes
        assert (its.tokens, its.bits) == (128, pytest.approx(64 * sum(map(math.log2, sizes.values()))))


def test_the_rates_of_the_config_as_it_is():
    config = yaml.safe_load(PHOTOGRAPHS.read_text())["model"]["params"]
    side = config["ddconfig"]["resolution"] // 2 ** (len(config["ddconfig"]["ch_mult"]) - 1)
    sizes = CodebookPrior.load("default").select(config["n_embed"]).sizes
    assert sizes == {"adjective": 399, "noun": 625}
    assert round(side**2 * sum(map(math.log2, sizes.values()))) == 1147


def len_of_validation():
    from vqct_plugin.runs.photographs import Photographs

    params = yaml.safe_load(PHOTOGRAPHS.read_text())["data"]["params"]["validation"]["params"]
    return len(Photographs(**params))


def test_table_and_picture_say_what_was_measured(done):
    lines = (done.folder / "table.md").read_text().splitlines()
    assert "\n".join(lines) == done.table
    for line, (name, evaluation) in zip(lines[2:], done.evaluations.items()):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == name
        assert cells[1] == f"{evaluation.mean['psnr']:.2f} dB"
        assert cells[2] == f"{evaluation.mean['ssim']:.3f}"
        numbers = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) of", cells[3])]
        assert numbers == [usage.in_use for usage in evaluation.usage.values()]
        assert cells[5:8] == [f"{evaluation.tokens}", f"{evaluation.bits:,.0f}", f"{evaluation.entropy:,.0f}"]
    assert lines[0].split(" | ")[5:8] == ["tokens per image", "bits per image", "bits by entropy"]
    assert [line.split(" | ")[0].strip("| ") for line in lines if " less " in line] == [
        "EMA less stock", "VQCT less stock", "VQCT less EMA",
    ]  # fmt: skip
    assert "different rates" not in done.table
    assert (done.folder / "table.tex").read_text().count(r"\begin{tabular}") == 2
    assert done.picture.read_bytes()[:4] == b"\x89PNG"


def test_the_page_shows_both(done):
    text = done.report.read_text(encoding="utf-8")
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [its["name"] for its in data["runs"]] == ["stock", "EMA", "VQCT"]
    assert data["size"] == [64, 64]
    assert data["runs"][1]["grid"] == [16, 16]
    assert [its["named"] for its in data["runs"]] == [False, False, True]
    figures = json.loads((done.report.parent / "evaluation" / "figures.json").read_text(encoding="utf-8"))
    for its, evaluation in zip(figures, done.evaluations.values()):  # of the last checkpoint, and of the model itself
        assert its["mean"]["psnr"] == pytest.approx(evaluation.mean["psnr"], abs=1e-3)
        assert its["usage"].keys() == evaluation.usage.keys()
        for part, usage in evaluation.usage.items():
            assert its["usage"][part]["in_use"] == usage.in_use


@pytest.mark.parametrize("tiles", [0, 9])
def test_a_page_that_cannot_be_is_refused_before_training(tmp_path, tiles):
    with pytest.raises(ConfigError, match=f"tiles_shown is 0|cannot show images {tiles} times as wide"):
        compare(output=tmp_path, tiles_shown=tiles)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be made: .*choose another output"):
        compare(output=tmp_path / "file")


def test_the_command_hands_its_flags_on(monkeypatch, capsys, tmp_path):
    from vqct_plugin.report import comparison

    calls = []

    def pretend(**keywords):
        calls.append(keywords)
        raise ConfigError("stop here")

    monkeypatch.setattr(comparison, "compare", pretend)
    words = ["-o", str(tmp_path), "--max-steps", "3", "-s", "5", "model.params.n_embed=64", "--set", "a.b=1"]
    assert demo.main(words) == 1
    expected = {
        "overrides": ["a.b=1", "model.params.n_embed=64"],
        "output": str(tmp_path),
        "trainer": {"max_steps": 3},
        "seed": 5,
    }
    assert calls == [{**expected, "tiles_shown": 3}]
    assert "vqct-demo: stop here" in capsys.readouterr().err
