"""A run's model comes back from its checkpoint, also where the files it was made from are gone."""

import pytest
import torch
import yaml

from tests.conftest import make_prior
from tests.runs.tiny import config
from tests.test_state import earlier
from vqct_plugin.hosts.quantizer_config import build_quantizer
from vqct_plugin.prior import PriorError
from vqct_plugin.runs.build import build_model
from vqct_plugin.runs.config import ConfigError, load_config
from vqct_plugin.runs.load import build_over_checkpoint, load_run


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


class Patched(torch.nn.Module):
    """A host as a patch leaves it, as far as loading sees it."""

    def __init__(self, quantizer_config):
        super().__init__()
        self.quantize = build_quantizer(quantizer_config, n_e=64, e_dim=16)


class TwoStages(torch.nn.Module):
    def __init__(self, first_stage_config, cond_stage_config):
        super().__init__()
        self.first_stage_model = Patched(**first_stage_config["params"])
        self.cond_stage_model = Patched(**cond_stage_config["params"])


def in_patched(**params):
    return {
        "target": "tests.runs.test_load.Patched",
        "params": {"quantizer_config": {"target": "vqct_plugin.Quantizer", "params": params}},
    }


def make_earlier(folder, kind, **more):
    """A run of the paper's codebook whose config has no word about it, as when that was the default."""
    paper = {"transfer": "graph", "combine": "concat"}
    whole = config(**more)

    def set_model(options):
        if kind == "patched":
            whole["model"].update(in_patched(**options))
        elif kind == "stages":
            params = {"first_stage_config": in_patched(**options), "cond_stage_config": in_patched(**options)}
            whole["model"].update(target="tests.runs.test_load.TwoStages", params=params)
        else:
            whole["model"]["params"].update(options)
        return whole

    for name in ("checkpoints", "configs"):
        (folder / name).mkdir(parents=True)
    model = build_model(load_config([set_model({**paper, **more})]))
    torch.save({"state_dict": model.state_dict(), "global_step": 3}, folder / "checkpoints" / "last.ckpt")
    whole = {**config(), "data": whole["data"]}
    (folder / "configs" / "now-project.yaml").write_text(yaml.safe_dump(set_model(more)))
    return model.eval()


def list_options(model, kind):
    """The options of each quantizer in a config's model."""
    params = model["params"]
    if kind == "stages":
        return [params[f"{name}_stage_config"]["params"]["quantizer_config"]["params"] for name in ("first", "cond")]
    return [params["quantizer_config"]["params"] if kind == "patched" else params]


@pytest.mark.parametrize("kind", ["plain", "patched", "stages"])
@pytest.mark.parametrize("resumed", [False, True])
def test_options_that_a_config_leaves_out_are_what_they_were_by_default_then(kind, resumed, tmp_path, caplog):
    model = make_earlier(tmp_path, kind, edge_weight="log")  # which is refused beside today's default
    caplog.set_level("INFO", "vqct_plugin")
    if resumed:
        whole = load_config([tmp_path / "configs" / "now-project.yaml"])
        loaded = build_over_checkpoint(whole, tmp_path / "checkpoints" / "last.ckpt", {})
        loaded.load_state_dict(model.state_dict())
    else:
        trained = load_run(tmp_path)
        loaded, whole = trained.model, trained.config
    state = loaded.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value) or name.endswith("prior.header")  # which says that it was selected from
    options = list_options(whole["model"], kind)
    assert [its["transfer"] for its in options] == ["graph"] * len(options)  # the config says what was loaded
    lines = [line for line in caplog.messages if "loaded with transfer='graph', as it was trained" in line]
    assert len(lines) == len(options)


def test_combine_alone_is_what_it_was(tmp_path, caplog):
    caplog.set_level("INFO", "vqct_plugin")
    averages = {"transfer": "averages"}
    make_earlier(tmp_path / "a", "plain", **averages)
    trained = load_run(tmp_path / "a")
    assert trained.config.model.params.combine == trained.model.quantize.combine == "concat"
    assert "combine='concat'" in caplog.text
    caplog.clear()
    make_run(tmp_path / "b", **averages, topk=2)  # where it is concat by today's default too
    assert "combine" not in load_run(tmp_path / "b").config.model.params
    assert "default" not in caplog.text


def test_an_option_that_the_config_names_is_refused_where_the_checkpoint_has_another(tmp_path):
    make_earlier(tmp_path, "plain")
    with pytest.raises(PriorError, match="the checkpoint's codebook has transfer='graph', this quantizer 'averages'"):
        load_run(tmp_path, overrides=["model.params.transfer=averages"])


def test_what_was_never_a_default_is_not_taken_from_the_checkpoint(tmp_path):
    """It may be from the hub, and name what is not to be run."""
    make_earlier(tmp_path, "plain", transfer="mlp")
    (tmp_path / "configs" / "now-project.yaml").write_text(yaml.safe_dump(config()))
    with pytest.raises(PriorError, match="the checkpoint's codebook has transfer='mlp', this quantizer 'averages'"):
        load_run(tmp_path)


def test_the_first_version_said_nothing_and_was_the_papers(tmp_path):
    model = make_earlier(tmp_path, "plain")
    quantizer = {f"quantize.{name}": value for name, value in earlier(model.quantize).items()}
    others = {k: v for k, v in model.state_dict().items() if not k.startswith("quantize.")}
    torch.save({"state_dict": {**others, **quantizer}}, tmp_path / "checkpoints" / "last.ckpt")
    trained = load_run(tmp_path)
    assert torch.equal(trained.model.quantize.embedding.weight, model.quantize.embedding.weight)
    assert trained.config.model.params.transfer == "graph"


def test_a_gumbel_run_whose_default_never_changed_is_left_alone(tmp_path, caplog):
    caplog.set_level("INFO", "vqct_plugin")
    steps = {"warm_up_steps": 0, "max_decay_steps": 100, "lr_start": 1.0, "lr_max": 1.0, "lr_min": 0.1}
    scheduler = {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler", "params": steps}
    make_run(tmp_path, target="vqct_plugin.GumbelVQ", temperature_scheduler_config=scheduler)
    trained = load_run(tmp_path)
    assert not {"transfer", "combine"} & set(trained.config.model.params)
    assert "default" not in caplog.text


def test_of_several_starts_the_last_ones_config_counts(tmp_path):
    """Each start writes a whole config; one that was resumed with other data has nothing of the data before."""
    model = make_run(tmp_path)
    whole = yaml.safe_load((tmp_path / "configs" / "now-project.yaml").read_text())
    images = {"target": "vqct_plugin.runs.datasets.Images", "params": {"path": "images", "size": 16}}
    whole["data"]["params"].update(train=images)
    del whole["data"]["params"]["validation"]
    more = {"data": {"params": {"batch_size": 3}}}  # not a whole one: it lies over the one before it
    for name, written in (("now2", whole), ("now3", more)):
        (tmp_path / "configs" / f"{name}-project.yaml").write_text(yaml.safe_dump(written))
    trained = load_run(tmp_path)
    assert trained.config.data.params == {**whole["data"]["params"], "batch_size": 3}
    assert torch.equal(trained.model.quantize.embedding.weight, model.quantize.embedding.weight)
