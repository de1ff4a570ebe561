"""A taming YAML is read as taming reads it, and what is wrong in it is said."""

import pytest

pytest.importorskip("pytorch_lightning")
pytest.importorskip("omegaconf")
import yaml

from tests.runs.tiny import config as tiny
from vqct_plugin.runs import config as config_module
from vqct_plugin.runs.config import (
    ConfigError,
    find,
    instantiate,
    load_config,
    locate_config,
    shipped_configs,
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(tiny()))
    return path


def test_files_are_merged_from_left_to_right_and_overrides_last(file, tmp_path):
    second = tmp_path / "b.yaml"
    second.write_text("model: {params: {n_embed: 96, topk: 2}}\n")
    config = load_config([file, second], ["model.params.n_embed=128", "model.params.ddconfig.ch_mult=[1,2]"])
    assert config.model.params.n_embed == 128
    assert config.model.params.topk == 2
    assert list(config.model.params.ddconfig.ch_mult) == [1, 2]
    assert config.model.params.embed_dim == 16


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["modle.params.n_embed=1"], "the config has an unknown key `modle`; did you mean model"),
        (["model.parms.n_embed=1"], "`model` has an unknown key `parms`; did you mean params"),
        (["lightning.trainr.max_epochs=1"], "`lightning` has an unknown key `trainr`; did you mean trainer"),
        (["data.target="], "`data` has no `target`"),
        (["model.base_learning_rate=fast"], "model.base_learning_rate is 'fast'; expected a number above 0"),
        (["model.base_learning_rate=0"], "expected a number above 0"),
        (["n_embed"], "cannot use the argument 'n_embed'; overrides are key=value"),
        (["=3"], "overrides are key=value"),
        (["model=3"], "`model` is 3; expected a mapping"),
        (["model.params.n_embed=${nothing.here}"], "cannot be merged: .*nothing"),
    ],
)
def test_what_cannot_be_used_is_refused(file, overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config([file], overrides)


def test_files_that_cannot_be_read_are_refused(file, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config .*missing\.yaml"):
        load_config([tmp_path / "missing.yaml"])
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [1, 2\ndata: 3\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml cannot be read as YAML: .*"):
        load_config([file, broken])
    broken.write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml holds no mapping"):
        load_config([broken])
    broken.write_text("data: {target: x.Y}\n")
    with pytest.raises(ConfigError, match="the config has no `model`; expected model and data"):
        load_config([broken])


def test_a_config_of_the_package_is_named_with_a_prefix(file):
    by_name, by_path = (f"vqct:{name}" for name in ("cub_vqct.yaml", "over/topk_1.yaml")), shipped_configs()
    paths = ["data.params.train.params.path=x", "data.params.validation.params.path=x"]
    assert load_config(by_name, paths) == load_config([by_path["cub_vqct.yaml"], by_path["over/topk_1.yaml"]], paths)
    assert locate_config(str(file)) == locate_config(file) == file


def test_a_config_that_the_package_does_not_have_is_refused_with_those_it_has():
    for name in ("cub.yaml", "", "../pyproject.toml", "over"):
        with pytest.raises(
            ConfigError, match=rf"no config '{name}' in the package; expected .*cub_vqct\.yaml, .*over/mlp"
        ):
            load_config([f"vqct:{name}"])


def test_a_wheel_has_its_configs_inside_the_package(tmp_path, monkeypatch):
    (tmp_path / "configs" / "over").mkdir(parents=True)
    (tmp_path / "configs" / "over" / "mine.yaml").touch()
    monkeypatch.setattr(config_module, "_PACKAGE", tmp_path)
    assert locate_config("vqct:over/mine.yaml") == tmp_path / "configs" / "over" / "mine.yaml"


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("VQModel", "model.target is 'VQModel'; expected package.module.Class"),
        ("vqct_plugn.VQModel", "there is no module vqct_plugn"),
        ("vqct_plugin.hosts.tamming.VQModel", "there is no module vqct_plugin.hosts.tamming"),
        ("vqct_plugin.hosts.taming.VQModle", "has no VQModle; did you mean VQModel"),
    ],
)
def test_a_target_that_is_not_there_is_named(target, sentence):
    pytest.importorskip("taming")
    with pytest.raises(ConfigError, match=sentence):
        find(target, "model")


def test_a_module_whose_own_import_fails_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="whose module needs not_installed_anywhere, which is missing"):
        find("needs_more.Thing", "model")


def test_the_launchers_classes_of_2021_have_stand_ins():
    from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
    from pytorch_lightning.loggers import TensorBoardLogger

    from vqct_plugin.runs.datasets import DataModuleFromConfig
    from vqct_plugin.training.callbacks import ImageLogger
    from vqct_plugin.training.trainer import STAND_INS

    for main in ("main", "taming.main"):
        assert find(f"{main}.DataModuleFromConfig", "data") is DataModuleFromConfig
        assert find(f"{main}.ImageLogger", "x", STAND_INS) is ImageLogger
        assert find(f"{main}.LearningRateMonitor", "x") is LearningRateMonitor
    assert find("pytorch_lightning.loggers.TestTubeLogger", "x") is TensorBoardLogger
    assert find("pytorch_lightning.callbacks.ModelCheckpoint", "x") is ModelCheckpoint


def test_parameters_are_checked_before_anything_is_built():
    target = "vqct_plugin.runs.datasets.Images"
    with pytest.raises(ConfigError, match=r"Images takes no d\.params\.siez; did you mean size\?"):
        instantiate({"target": target, "params": {"path": "x", "siez": 3}}, "d")
    with pytest.raises(ConfigError, match=r"Images needs d\.params\.size, which is not there"):
        instantiate({"target": target, "params": {"path": "x"}}, "d")
    with pytest.raises(ConfigError, match="expected a mapping with the key `target`"):
        instantiate({"params": {}}, "d")
    assert instantiate({"target": "builtins.dict", "params": {"a": 1}}, "d") == {"a": 1}
