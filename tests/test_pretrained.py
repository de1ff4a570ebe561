"""A prior and a quantizer in a folder and back, without the hub's library; and what is a name on it."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, make_prior
from vqct_plugin import CodebookPrior, CodebookTransferQuantizer, PriorError
from vqct_plugin.compat import pretrained
from vqct_plugin.compat.hub import HubError
from vqct_plugin.gumbel import GumbelTransferQuantizer
from vqct_plugin.pretrained import split_name

pytest.importorskip("safetensors.torch")


def make_quantizer(n_e=32, **options):
    return CodebookTransferQuantizer(n_e, 8, prior=make_prior(), **{"transfer": "graph", **options})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ada/words", ("ada/words", None)),
        ("ada/words@v1.2", ("ada/words", "v1.2")),
        ("ada/words@refs/pr/1", ("ada/words", "refs/pr/1")),
        ("Ada-L/bird_words.2", ("Ada-L/bird_words.2", None)),
        ("ada/words.safetensors", None),
        ("words", None),
        ("./words", None),
        ("/ada/words", None),
        ("../ada/words", None),
        ("a/b/c", None),
        ("ada/words@", None),
        ("ada/words@v 1", None),
        ("ada/w\u00f6rter", None),
        (b"ada/words", None),
        (None, None),
        (ROOT, None),
    ],
)
def test_what_is_a_name(name, parts):
    assert split_name(name) == parts


def test_a_prior_there_and_back(prior, tmp_path):
    prior.save_pretrained(tmp_path / "deep" / "words")
    assert (tmp_path / "deep" / "words" / "prior.safetensors").read_bytes() == prior.to_bytes()
    config = json.loads((tmp_path / "deep" / "words" / "config.json").read_text())
    assert config["format"] == "vqct_prior"
    assert config["fingerprint"] == prior.fingerprint
    for again in (
        CodebookPrior.from_pretrained(tmp_path / "deep" / "words"),
        CodebookPrior.load(tmp_path / "deep" / "words"),
        CodebookPrior.load(str(tmp_path / "deep" / "words")),
        CodebookPrior.from_pretrained(tmp_path / "deep" / "words" / "prior.safetensors"),
    ):
        assert again.fingerprint == prior.fingerprint
        assert np.array_equal(again.vectors, prior.vectors)


def test_the_card_of_a_prior_shows_its_words(prior, tmp_path):
    prior.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vqct_plugin\ntags:\n- vqct\n- codebook-prior\n---\n")
    for text in (prior.words[0], "30 of part adjective", "50 of part noun", prior.fingerprint, "made up from seed 0"):
        assert text in card


def test_words_of_a_card_are_text(tmp_path):
    odd = CodebookPrior(["a`b", "<b>|c"], [0, 1], [3, 2], np.eye(2, 4, dtype=np.float32), [], [])
    odd = dataclasses.replace(odd, provenance={"language_model": "d\x1b[2J"})
    odd.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "a'b" in card
    assert "&lt;b>\\|c" in card
    assert "\x1b" not in card  # neither in the line nor in the JSON


@pytest.mark.parametrize("what", [make_prior, make_quantizer])
def test_files_are_replaced_only_on_request_and_a_card_never(what, tmp_path):
    made = what()
    made.save_pretrained(tmp_path)
    with pytest.raises(HubError, match=r"and config\.json; pass overwrite=True"):
        made.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("Mine.")
    (tmp_path / "config.json").write_text("{}")
    made.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "Mine."
    assert json.loads((tmp_path / "config.json").read_text())["format"]


def test_what_was_not_written_to_its_end_is_not_read(tmp_path, monkeypatch):
    """New weights under the old config would be another quantizer than either."""
    make_quantizer().save_pretrained(tmp_path)
    whole = pretrained.write_whole

    def full(path, data, overwrite):
        whole(path, data, overwrite)
        if path.name == "model.safetensors":
            raise OSError("the disk is full")

    monkeypatch.setattr(pretrained, "write_whole", full)
    with pytest.raises(HubError, match="the disk is full"):
        make_quantizer(topk=2).save_pretrained(tmp_path, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(HubError, match="holds what was not written to its end; write it again"):
        CodebookTransferQuantizer.from_pretrained(tmp_path)
    make_quantizer(topk=2).save_pretrained(tmp_path, overwrite=True)
    assert CodebookTransferQuantizer.from_pretrained(tmp_path).tokens_per_position == 3


@pytest.mark.parametrize(
    "options", [{}, {"topk": 2, "legacy": False}, {"parts_of_speech": "joint"}, {"transfer": "mlp"}]
)
def test_a_quantizer_there_and_back(options, tmp_path):
    first = make_quantizer(**options)
    first.save_pretrained(tmp_path)
    second = CodebookTransferQuantizer.from_pretrained(tmp_path)
    assert second.settings == first.settings
    assert second.words == first.words
    z = torch.randn(2, 8, 3, 3)
    z_q, loss, (_, _, indices) = first.eval()(z)
    ours, its_loss, (_, _, its_indices) = second.eval()(z)
    assert torch.equal(ours, z_q)
    assert torch.equal(its_loss, loss)
    assert torch.equal(its_indices, indices)


def test_another_class_there_and_back(tmp_path):
    first = GumbelTransferQuantizer(32, 8, prior=make_prior(), transfer="graph")
    first.save_pretrained(tmp_path / "gumbel")
    second = GumbelTransferQuantizer.from_pretrained(tmp_path / "gumbel")
    assert second.settings == first.settings
    assert [name for name, _ in second.named_parameters()] == [name for name, _ in first.named_parameters()]
    assert all(map(torch.equal, second.parameters(), first.parameters()))
    make_quantizer().save_pretrained(tmp_path / "codes")
    with pytest.raises(HubError, match="it was saved by a CodebookTransferQuantizer: load it with that class"):
        GumbelTransferQuantizer.from_pretrained(tmp_path / "codes")


def test_config_may_be_edited_in_what_leaves_the_weights_alone(tmp_path):
    make_quantizer(beta=0.25).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["settings"].update(beta=0.5, lossconfig={"target": "os.getcwd"}, prior="ada/words")
    file.write_text(json.dumps(config))
    assert CodebookTransferQuantizer.from_pretrained(tmp_path).beta == 0.5
    assert CodebookTransferQuantizer.from_pretrained(tmp_path, beta=0.75).beta == 0.75
    config["settings"]["topk"] = {"adjective": 2, "noun": 1}
    file.write_text(json.dumps(config))
    with pytest.raises(PriorError, match="checkpoint's codebook has topk="):
        CodebookTransferQuantizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        (
            "transfer",
            {"target": "subprocess.Popen", "params": {"args": ["true"]}},
            "'subprocess.Popen' in transfer.targ",
        ),
        ("transfer", "os.system", "'os.system' in transfer"),
        ("gradient", "os.path.join", "'os.path.join' in gradient"),
        ("loss_terms", {"posix.system": 1.0}, "'posix.system' in loss_terms"),
        ("transfer", "vqct_plugin.hosts.patching.patch_host", "'vqct_plugin.hosts.patching.patch_host' in transfer"),
    ],
)
@pytest.mark.parametrize("place", ["config", "state"])
def test_what_a_config_names_is_not_run_unless_trusted(setting, value, named, place, tmp_path, monkeypatch):
    first = make_quantizer()
    if place == "state":
        changed = {**first.settings, setting: value}
        text = torch.tensor(list(json.dumps(changed).encode()), dtype=torch.uint8)
        first._state.tensors["settings"] = text
    first.save_pretrained(tmp_path)
    if place == "config":
        config = json.loads((tmp_path / "config.json").read_text())
        config["settings"][setting] = value
        (tmp_path / "config.json").write_text(json.dumps(config))
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        del config["settings"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(HubError, match=named + r".*pass trusted=\["):
        CodebookTransferQuantizer.from_pretrained(tmp_path)
    with pytest.raises(HubError, match="expected a list of packages"):
        CodebookTransferQuantizer.from_pretrained(tmp_path, trusted="os")


def double(z, q):
    return z + (q - z).detach()


def test_a_function_of_a_trusted_package(tmp_path):
    make_quantizer(gradient="tests.test_pretrained.double").save_pretrained(tmp_path)
    with pytest.raises(HubError, match=r"pass trusted=\['tests'\]"):
        CodebookTransferQuantizer.from_pretrained(tmp_path)
    for options in ({"trusted": ["tests"]}, {"gradient": double}):
        again = CodebookTransferQuantizer.from_pretrained(tmp_path, **options)
        assert again.settings["gradient"] == "tests.test_pretrained.double"


def test_what_is_wrong_with_a_folder_is_said(prior, tmp_path):
    prior.save_pretrained(tmp_path / "words")
    make_quantizer().save_pretrained(tmp_path / "codes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PriorError, match=r"has no prior\.safetensors: it holds a quantizer, which Codebook"):
        CodebookPrior.from_pretrained(tmp_path / "codes")
    with pytest.raises(HubError, match=r"has no config\.json; expected a folder of format vqct_quantizer"):
        CodebookTransferQuantizer.from_pretrained(tmp_path / "empty")
    with pytest.raises(HubError, match=r"has no model\.safetensors: it holds a prior, which CodebookPrior\.from_pre"):
        CodebookTransferQuantizer.from_pretrained(tmp_path / "words")
    with pytest.raises(PriorError, match="is no folder here, and no name on the hub; expected a folder, user/name or"):
        CodebookPrior.from_pretrained(tmp_path / "none")
    with pytest.raises(PriorError, match="a prior takes no n_e"):
        CodebookPrior.from_pretrained(tmp_path / "words", n_e=3)
    (tmp_path / "codes" / "config.json").write_text('{"format": "vqct_quantizer", "version": 9}')
    with pytest.raises(HubError, match="is of version 9, and this release reads 1; update vqct_plugin"):
        CodebookTransferQuantizer.from_pretrained(tmp_path / "codes")
    (tmp_path / "codes" / "config.json").write_text("{")
    with pytest.raises(HubError, match=r"config\.json of .* cannot be read"):
        CodebookTransferQuantizer.from_pretrained(tmp_path / "codes")
    (tmp_path / "file").write_text("")
    with pytest.raises(HubError, match="could not write to"):
        prior.save_pretrained(tmp_path / "file")


def test_the_core_does_not_import_the_hub(tmp_path):
    code = (
        "import sys; from vqct_plugin import CodebookPrior; p = CodebookPrior.load().select(8); "
        "p.save_pretrained(sys.argv[1]); CodebookPrior.from_pretrained(sys.argv[1]); "
        "print('huggingface_hub' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=str(ROOT), stdout=subprocess.PIPE, check=True
    )
    assert done.stdout.decode().split() == ["False", "False"]
