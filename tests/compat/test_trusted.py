"""What a config from elsewhere may name."""

import pytest

from vqct_plugin.compat.hub import HubError
from vqct_plugin.compat.trusted import is_trusted, refuse_foreign


@pytest.mark.parametrize(
    ("name", "trusted"),
    [
        ("vqct_plugin.Quantizer", True),
        ("vqct_plugin.transfer.LinearTransfer", True),
        ("torch.nn.Identity", True),
        ("torch.hub.load", False),
        ("os.system", False),
        ("vqct_plugin.hosts.patching.patch_host", False),  # a function, and it writes
        ("vqct_plugin.terms.import_by_name", False),
        ("vqct_plugin.state.CodebookPrior", True),  # ours, by another of its ways
        ("vqct_plugin._files.Path", False),  # a class, and not ours
        ("vqct_plugin.none.None", False),
        ("vqct_pluginX.Y", False),
        ("vqct_plugin", False),
        (3, False),
    ],
)
def test_a_class_of_ours_is_trusted(name, trusted):
    assert is_trusted(name) is trusted


def test_a_function_that_takes_tensors_alone():
    assert is_trusted("vqct_plugin.terms.rotation", as_function=True)
    assert not is_trusted("vqct_plugin.prior.CodebookPrior.load", as_function=True)
    assert not is_trusted("vqct_plugin.terms.rotation")


@pytest.mark.parametrize(
    "config",
    [
        {"target": "os.system"},
        {"a": [{"b": {"target": "os.system", "params": {}}}]},
        {"params": {"gradient": "os.system"}},
        {"params": {"transfer": "os.system"}},
        {"params": {"transfer": {"target": "os.system"}}},
        {"params": {"loss_terms": {"commitment": 1.0, "os.system": 1.0}}},
    ],
)
def test_it_is_found_wherever_it_is_named(config):
    with pytest.raises(HubError, match=r"ada/words names 'os\.system' in .*pass trusted=\['os'\]"):
        refuse_foreign(config, (), "ada/words")
    refuse_foreign(config, ["os"], "ada/words")


@pytest.mark.parametrize("file", ["quantizer.yaml", "/somewhere/vqct_plugin.Quantizer", "os.system"])
def test_a_file_that_names_the_quantizer_is_refused(file):
    config = {"params": {"first_stage_config": {"params": {"quantizer_config": file}}}}
    with pytest.raises(HubError, match=r"ada/words names the file '.*' in .*params\.quantizer_config: what it names"):
        refuse_foreign(config, ["os", "quantizer"], "ada/words")
    written = {"target": "vqct_plugin.Quantizer", "params": {"topk": 2}}
    refuse_foreign({"params": {"quantizer_config": written}}, (), "ada/words")


def test_names_of_ours_pass():
    params = {"transfer": "graph", "gradient": "rotation", "loss_terms": {"codebook": 1.0}}
    refuse_foreign({"target": "vqct_plugin.Quantizer", "params": params}, (), "ada/words")
    refuse_foreign({"transfer": {"target": "averages", "params": {"arrange_steps": 20}}}, (), "ada/words")
