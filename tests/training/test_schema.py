"""The schema of the YAML is that of the code, takes what we ship, and underlines what ``vqct-train`` would refuse."""

import json
import re
import textwrap

import pytest
import yaml

from tests.conftest import ROOT
from tests.runs.tiny import config as tiny

pytest.importorskip("pytorch_lightning", "2.2")
pytest.importorskip("taming")
pytest.importorskip("jsonschema")
import jsonschema
from omegaconf import OmegaConf

from vqct_plugin.commands.train import main
from vqct_plugin.training.schema import make_schema

FILE = ROOT / "configs_taming" / "schema.json"
CONFIGS = [*sorted((ROOT / "configs_taming").rglob("*.yaml")), *sorted((ROOT / "vqct_plugin" / "data").glob("*.yaml"))]


@pytest.fixture(scope="module")
def validator():
    return jsonschema.Draft7Validator(json.loads(FILE.read_text(encoding="utf-8")))


def test_the_file_is_what_the_command_prints(capsys):
    """If this fails: vqct-train --schema > configs_taming/schema.json"""
    assert main(["--schema"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == make_schema()
    assert FILE.read_text(encoding="utf-8") == printed


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_the_shipped_configs_are_valid(file, validator):
    config = OmegaConf.to_container(OmegaConf.load(file))
    assert [error.message for error in validator.iter_errors(config)] == []


def list_blocks():
    """The YAML in the docs that is a run's, or a part of one: other blocks are of a host's files."""
    texts = [file.read_text(encoding="utf-8") for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]]
    found = [each for text in texts for each in re.findall(r"^[ ]*```yaml\n(.*?)^[ ]*```", text, flags=re.S | re.M)]
    configs = [yaml.safe_load(textwrap.dedent(each)) for each in found]
    return [config for config in configs if config and {"model", "data", "lightning"} & set(config)]


def test_the_yaml_in_the_docs_is_valid(validator):
    blocks = list_blocks()
    assert len(blocks) >= 5
    for block in blocks:
        assert [error.message for error in validator.iter_errors(block)] == [], block


@pytest.mark.parametrize(
    "logger",
    [None, "trackio", "my.Logger", ["tensorboard", {"target": "wandb", "params": {"project": "birds"}}], "${x}", {}],
)
def test_every_way_to_name_a_logger_is_valid(logger, validator):
    assert list(validator.iter_errors({"lightning": {"logger": logger}})) == []


def test_a_yaml_and_what_may_stand_in_it_are_valid(validator):
    whole = tiny(n_embed={"adjective": 20, "noun": 44}, prior="???", parts_of_speech="joint", loss_terms={"a": 1})
    whole["data"]["params"]["train"]["params"]["size"] = "${model.params.ddconfig.resolution}"
    whole["lightning"]["callbacks"] = {"image_logger": None, "mine": {"target": "a.B", "params": {"c": 1}}}
    assert list(validator.iter_errors(whole)) == []
    for part in ({}, {"model": {"params": {"topk": None}}}, {"model": {"target": "mine.Model", "params": {"x": 1}}}):
        assert list(validator.iter_errors(part)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("modle", {}),
        ("model.parms", {}),
        ("model.base_learning_rate", "fast"),
        ("model.params.tokp", 2),
        ("model.params.topk", "two"),
        ("model.params.l2_normalize", 3),
        ("model.params.ddconfig.z_chanels", 3),
        ("model.params.lossconfig.params.disc_strat", 3),
        ("data.params.batchsize", 3),
        ("data.params.train.params.lenght", 3),
        ("data.params.train.params.size", "large"),
        ("data.params.validation.target", 3),
        ("lightning.callback", {}),
        ("lightning.callbacks.image_logger", {"params": {"every": 3}}),
        ("lightning.callbacks.word_maps", {"params": {"nonsense": 1}}),
        ("lightning.logger", "wandbb"),
        ("lightning.logger", ["wandb", "trakio"]),
        ("lightning.logger", {"parms": {}}),
        (
            "model.params.lossconfig",
            {"target": "vqct_plugin.runs.losses.VQPerceptualWithDiscriminator", "params": {"perceptal": "lpips"}},
        ),
    ],
)
def test_what_would_be_refused_is_underlined(place, value, validator):
    config = OmegaConf.create(tiny())
    OmegaConf.update(config, place, value, force_add=True)
    (error,) = validator.iter_errors(OmegaConf.to_container(config))
    assert error.path or error.validator == "additionalProperties"


def test_an_editor_shows_what_the_docstrings_say(validator):
    text = yaml.safe_dump(validator.schema)
    assert "how many of the nearest codes are averaged" in " ".join(text.split())
    assert "how many shards may be damaged" in " ".join(text.split())
    assert ":class:" not in text
