"""A trained run as a folder for the hub, on the hub, and back, with the same reconstructions."""

import json
import logging
import shutil

import pytest
import torch
import yaml

from tests.conftest import make_prior
from tests.runs.test_load import make_run
from vqct_plugin import load_run
from vqct_plugin.compat.checkpoints import CheckpointError, read_state_dict
from vqct_plugin.compat.hub import HubError
from vqct_plugin.runs.build import build_model
from vqct_plugin.runs.checkpoints import find_checkpoint
from vqct_plugin.runs.config import ConfigError, load_config
from vqct_plugin.runs.load import Trained, build_over_checkpoint, load_first_stage
from vqct_plugin.runs.publish import push_run, save_run
from vqct_plugin.runs.published import name_published

FIGURES = {
    "model": "run", "images": 12, "photographs": 12, "mean": {"psnr": 21.234567}, "interval": {"psnr": [20.5, 22.1]},
    "rfid": 87.654, "missing": {}, "broken": {}, "tokens": 128, "bits": 632.7, "bits_per_position": 9.9,
    "bits_by_entropy": 500.4, "usage": {"noun": {"codes": 38, "in_use": 30, "perplexity": 21.7, "dead": 8}},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, its model, and the folder for the hub; nothing of it is changed."""
    folder = tmp_path_factory.mktemp("published")
    words = folder / "words.safetensors"
    make_prior((40, 60)).save(words)
    torch.manual_seed(0)
    model = make_run(folder / "run", prior=str(words), transfer="graph")
    words.unlink()
    figures = folder / "figures.json"
    figures.write_text(json.dumps([FIGURES, {**FIGURES, "model": "stock", "rfid": 77.7}]))
    save_run(folder / "run", folder / "hub", figures=figures)
    return folder, model


@pytest.fixture
def published(made, tmp_path):
    """A copy of the folder for the hub, which a test may change."""
    shutil.copytree(made[0] / "hub", tmp_path / "hub")
    return tmp_path / "hub"


def same_reconstructions(model, other):
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    return torch.equal(model(x)[0], other(x)[0])


def edit(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_it_comes_back_with_the_same_reconstructions(made):
    folder, model = made
    assert sorted(file.name for file in (folder / "hub").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for path in (folder / "hub", folder / "hub" / "model.safetensors"):
        trained = load_first_stage(path)
        assert same_reconstructions(trained.model, model)
        assert trained.model.quantize.words == model.quantize.words
        assert trained.checkpoint == folder / "hub" / "model.safetensors"
    assert name_published(trained.checkpoint) == "hub"


def test_figures_are_named_after_its_folder_or_its_name_on_the_hub(tmp_path):
    runs = pytest.importorskip("vqct_plugin.evaluation.runs")
    there = tmp_path / "models--ada--birds" / "snapshots" / "0123" / "model.safetensors"
    loaded = Trained(None, None, tmp_path / "fish" / "model.safetensors")
    assert runs.name_runs([Trained(None, None, there), loaded, str(loaded.checkpoint)]) == ["birds", "fish", "fish (2)"]
    assert runs.name_runs(["ada/birds"]) == ["birds"]


def test_it_is_evaluated_as_its_run_is(made, tmp_path, monkeypatch):
    runs = pytest.importorskip("vqct_plugin.evaluation.runs")
    monkeypatch.chdir(tmp_path)
    paths = [str(made[0] / "run"), str(made[0] / "hub")]
    ours, its = runs.evaluate_runs(paths, output="evaluation", limit=2, progress=False)
    assert (ours.name, its.name) == ("run", "hub")
    assert its.values == ours.values
    assert torch.equal(its.counts, ours.counts)
    save_run(paths[0], tmp_path / "card", figures="evaluation")
    assert f"| images | {its.images} |" in (tmp_path / "card" / "README.md").read_text()


def test_curves_of_other_runs_are_not_its_own(tmp_path):
    curves = pytest.importorskip("vqct_plugin.report.curves")
    for name in ("other", "hub"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "metrics.csv").write_text("step,loss\n1,2.0\n")
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"")
    assert curves.read_log(tmp_path / "hub" / "model.safetensors") == {}
    assert "loss" in curves.read_log(tmp_path / "other")


def test_no_folder_of_this_machine_is_in_it(made):
    folder, _ = made
    for name in ("config.json", "README.md"):
        assert str(folder) not in (folder / "hub" / name).read_text()
    config = json.loads((folder / "hub" / "config.json").read_text())
    assert config["config"]["model"]["params"]["prior"] == "words.safetensors"
    assert config["config"]["model"]["params"]["lossconfig"]["target"].endswith("VQPixelWithDiscriminator")
    assert not any(name.startswith("loss.") for name in read_state_dict(folder / "hub" / "model.safetensors"))


def test_the_card_has_figures_bits_words_and_data(made):
    folder, model = made
    card = (folder / "hub" / "README.md").read_text()
    for text in ("| psnr | 21.23 (20.5 to 22.1) |", "| rfid | 87.65 |", "| bits per image | 632.7 |", "30 of 38"):
        assert text in card
    for text in ("9.9 bits per position", model.quantize.words[0], "runs.photographs.Photographs", "batches of 2"):
        assert text in card
    assert "77.7" not in card  # another run's


def test_figures_of_other_runs_are_refused(made, tmp_path):
    folder, _ = made
    file = tmp_path / "figures.json"
    file.write_text(json.dumps([{**FIGURES, "model": "a"}, {**FIGURES, "model": "b"}]))
    with pytest.raises(HubError, match="has the runs a, b, none of them run; pass the record of one"):
        save_run(folder / "run", tmp_path / "out", figures=file)
    file.write_text("{}")
    with pytest.raises(HubError, match="is none that vqct-evaluate wrote"):
        save_run(folder / "run", tmp_path / "out", figures=tmp_path)
    assert not (tmp_path / "out").exists()


def test_with_the_losss_weights(made, tmp_path):
    folder, model = made
    save_run(folder / "run", tmp_path / "whole", loss=True)
    trained = load_run(tmp_path / "whole")
    for name, value in model.loss.state_dict().items():
        assert torch.equal(trained.model.loss.state_dict()[name], value)
    assert not load_run(tmp_path / "whole", loss=False).model.loss.state_dict()
    assert not load_run(folder / "hub").model.loss.state_dict()  # it was left out


def test_overrides_and_configs_work_as_for_a_run(made):
    folder, model = made
    trained = load_run(folder / "hub", overrides=["data.params.batch_size=7"])
    assert trained.config.data.params.batch_size == 7
    whole = yaml.safe_load((folder / "run" / "configs" / "now-project.yaml").read_text())
    (folder / "other.yaml").write_text(yaml.safe_dump(whole))
    assert same_reconstructions(load_run(folder / "hub", base=[folder / "other.yaml"], loss=False).model, model)


def test_weights_of_safetensors_are_a_checkpoint(made, tmp_path):
    folder, model = made
    weights = folder / "hub" / "model.safetensors"
    assert find_checkpoint(weights).step == -1
    config = load_config([folder / "run" / "configs" / "now-project.yaml"], [f"model.params.ckpt_path={weights}"])
    fresh = build_over_checkpoint(config, weights, {})
    assert torch.equal(fresh.quant_conv.weight, model.quant_conv.weight)
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    for read in (read_state_dict, find_checkpoint):
        with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
            read(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("place", ["target", "quantizer", "stage"])
def test_a_config_that_names_what_is_not_ours_is_refused_before_anything_is_run(published, place):
    def change(config):
        model = config["config"]["model"]
        if place == "target":
            model["target"] = "subprocess.Popen"
        elif place == "quantizer":
            model["params"]["transfer"] = {"target": "subprocess.Popen", "params": {"args": "true"}}
        else:
            model["params"]["first_stage_config"] = {"target": "subprocess.Popen"}

    edit(published, change)
    with pytest.raises(ConfigError, match=r"names 'subprocess\.Popen' in model\..*pass trusted=\['subprocess'\]"):
        load_run(published)


def test_a_config_leaves_nothing_to_fill_in(published):
    edit(published, lambda config: config["config"]["model"]["params"].update(monitor="${oc.env:HOME}"))
    with pytest.raises(ConfigError, match="nothing left to fill in"):
        load_run(published)


def test_a_data_set_that_is_not_ours_is_left_out(published, caplog):
    def change(config):
        config["config"]["data"]["target"] = "os.system"
        config["config"]["data"]["params"]["train"] = {"target": "tests.runs.test_published.edit"}

    edit(published, change)
    with caplog.at_level(logging.WARNING, "vqct_plugin"):
        config = load_run(published).config
    assert "names the data set tests.runs.test_published.edit, which is left out" in caplog.text
    assert set(config.data.params) == {"batch_size", "num_workers", "validation"}
    assert config.data.target == "main.DataModuleFromConfig"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda config: config.update(format="vqct_prior"), "holds a prior, which CodebookPrior.from_pretrained loads"),
        (lambda config: config.update(version=2), "is of version 2, and this release reads 1"),
        (lambda config: config.update(config=[]), "has no config of a run"),
    ],
)
def test_another_folder_is_said_to_be_one(published, change, sentence):
    edit(published, change)
    with pytest.raises(ConfigError, match=sentence):
        load_run(published)


def test_a_run_is_pushed_and_comes_back(made, hub, monkeypatch):
    folder, model = made
    push_run(folder / "run", "ada/birds", token=hub.token)
    files = hub.commits["ada/birds"]["main"]
    assert b'vqct_plugin.load_run("ada/birds")' in files["README.md"]
    hub.put("ada/birds", {"README.md": b"Mine."}, keep=True)
    push_run(load_run(folder / "hub"), "ada/birds", token=hub.token)
    assert hub.commits["ada/birds"]["main"]["README.md"] == b"Mine."
    trained = load_run("ada/birds@main")
    assert same_reconstructions(trained.model, model)
    assert name_published(trained.checkpoint) == "birds"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same_reconstructions(load_first_stage("ada/birds").model, model)
    with pytest.raises(ConfigError, match="ada/fish is no file and no folder here, and on the hub: "):
        load_run("ada/fish")


def test_a_yaml_names_a_prior_on_the_hub(hub, tmp_path, monkeypatch):
    prior = make_prior((40, 60))
    prior.push_to_hub("ada/words", token=hub.token)
    model = make_run(tmp_path / "run", prior="ada/words@main", transfer="graph")
    assert model.quantize.prior.fingerprint == prior.select(64).fingerprint
    shutil.rmtree(tmp_path / "cache")
    hub.close()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # a checkpoint holds its prior: neither loading nor resuming asks anybody
    trained = load_run(tmp_path / "run")
    assert same_reconstructions(trained.model, model)
    config = load_config([tmp_path / "run" / "configs" / "now-project.yaml"])
    again = build_over_checkpoint(config, trained.checkpoint, {})
    assert again.quantize.prior.fingerprint == model.quantize.prior.fingerprint
    with pytest.raises(ConfigError, match="of ada/words@main is not in the cache, and HF_HUB_OFFLINE"):
        build_model(config)
