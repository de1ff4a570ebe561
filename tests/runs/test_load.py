"""A run's model comes back from its checkpoint, also where the files it was made from are gone."""

import pytest
import torch
import yaml

from tests.conftest import make_prior
from tests.runs.tiny import config
from vqct_plugin.runs.build import build_model
from vqct_plugin.runs.config import ConfigError, load_config
from vqct_plugin.runs.load import load_run


def make_run(folder, **params):
    """A run's folder with the weights of the beginning."""
    whole = config(**params)
    for name in ("checkpoints", "configs"):
        (folder / name).mkdir(parents=True)
    (folder / "configs" / "now-project.yaml").write_text(yaml.safe_dump(whole))
    model = build_model(load_config([folder / "configs" / "now-project.yaml"]))
    torch.save({"state_dict": model.state_dict()}, folder / "checkpoints" / "last.ckpt")
    return model.eval()


@pytest.mark.parametrize("joint", [False, True])
def test_a_run_loads_where_its_prior_is_gone(joint, tmp_path):
    prior = tmp_path / "words.safetensors"
    make_prior((40, 60)).save(prior)
    options = {"parts_of_speech": "joint"} if joint else {"topk": 2}
    model = make_run(tmp_path / "run", prior=str(prior), **options)
    prior.unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        build_model(load_config([tmp_path / "run" / "configs" / "now-project.yaml"]))
    trained = load_run(tmp_path / "run")
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(trained.model(x)[0], model(x)[0])
    assert trained.model.quantize.words == model.quantize.words
    assert trained.config.model.params.prior == str(prior)  # what it was made with is still what it says


def test_a_run_loads_the_words_it_was_trained_on_and_not_what_stands_there_now(tmp_path):
    prior = tmp_path / "words.safetensors"
    make_prior((40, 60), seed=1).save(prior)
    model = make_run(tmp_path / "run", prior=str(prior))
    make_prior((40, 60), seed=2).save(prior, overwrite=True)
    assert load_run(tmp_path / "run").model.quantize.prior.fingerprint == model.quantize.prior.fingerprint


def test_the_default_prior_needs_no_name(tmp_path):
    model = make_run(tmp_path / "run")
    trained = load_run(tmp_path / "run")
    assert trained.model.quantize.words == model.quantize.words
    assert "prior" not in trained.config.model.params


def test_the_packages_configs_may_be_named(tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no config 'none.yaml' in the package; expected one of .*cub_vqct.yaml"):
        load_run(tmp_path / "run", base=["vqct:none.yaml"])
    with pytest.raises(ConfigError, match=r"have to be given \(\?\?\? in the config\)"):
        load_run(tmp_path / "run", base=["vqct:cub_vqct.yaml"])
