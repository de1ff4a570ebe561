"""Priors and quantizers by their names on the hub, against a stand-in of it on loopback; no test asks the network."""

import sys

import pytest
import torch

from tests.conftest import make_prior
from vqct_plugin import CodebookPrior, CodebookTransferQuantizer, PriorError
from vqct_plugin.compat.hub import HubError

TRANSFER = {"transfer": "graph"}  # no test here depends on the default


@pytest.fixture
def words(hub, prior, tmp_path):
    """A prior on the hub, ``ada/words``."""
    prior.save_pretrained(tmp_path / "words")
    hub.put_folder("ada/words", tmp_path / "words")
    return prior


def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def gets(hub):
    return [path for method, path in hub.asked if method == "GET"]


def test_a_prior_by_its_name(hub, words):
    assert CodebookPrior.from_pretrained("ada/words").fingerprint == words.fingerprint
    assert CodebookPrior.load("ada/words").fingerprint == words.fingerprint
    assert len(gets(hub)) == 1  # the second time it is in the cache


def test_a_quantizer_takes_the_name_where_it_takes_a_file(hub, words):
    quantizer = CodebookTransferQuantizer(32, 8, prior="ada/words", **TRANSFER)
    assert quantizer.prior.fingerprint == words.select(32).fingerprint


def test_a_local_file_and_a_local_folder_come_first(hub, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada").mkdir()
    other = make_prior(seed=7)
    other.save(tmp_path / "ada" / "words")
    assert CodebookPrior.load("ada/words").fingerprint == other.fingerprint
    (tmp_path / "ada" / "words").unlink()
    other.save_pretrained(tmp_path / "ada" / "words")
    assert CodebookPrior.load("ada/words").fingerprint == other.fingerprint
    assert CodebookPrior.from_pretrained("ada/words").fingerprint == other.fingerprint
    assert hub.asked == []


@pytest.mark.parametrize("way", ["name", "argument"])
def test_a_revision(hub, words, tmp_path, way):
    newer = make_prior(seed=3)
    newer.save_pretrained(tmp_path / "newer")
    number = hub.put_folder("ada/words", tmp_path / "newer", branch="v2/rare")
    for revision in ("v2/rare", number):
        if way == "name":
            found = CodebookPrior.load(f"ada/words@{revision}")
        else:
            found = CodebookPrior.from_pretrained("ada/words", revision=revision)
        assert found.fingerprint == newer.fingerprint
    assert CodebookPrior.load("ada/words").fingerprint == words.fingerprint


def test_offline_it_comes_from_the_cache(hub, words, monkeypatch):
    CodebookPrior.load("ada/words")
    offline(monkeypatch)
    asked = list(hub.asked)
    assert CodebookPrior.load("ada/words").fingerprint == words.fingerprint
    assert CodebookPrior.from_pretrained("ada/words", local_files_only=True).fingerprint == words.fingerprint
    assert hub.asked == asked


def test_where_the_hub_is_gone_it_comes_from_the_cache(hub, words):
    CodebookPrior.load("ada/words")
    hub.close()
    assert CodebookPrior.load("ada/words").fingerprint == words.fingerprint


def test_offline_and_not_in_the_cache(hub, words, monkeypatch, tmp_path):
    with pytest.raises(PriorError, match="not in the cache, and local_files_only is True; set it to False once"):
        CodebookPrior.from_pretrained("ada/words", local_files_only=True)
    with pytest.raises(PriorError, match="ada/words is no file and no folder here, and on the hub: prior"):
        CodebookPrior.from_pretrained("ada/words", local_files_only=True)
    offline(monkeypatch)
    with pytest.raises(PriorError, match="not in the cache, and HF_HUB_OFFLINE is set; unset it once"):
        CodebookPrior.load("ada/words")
    assert hub.asked == []


def test_the_hub_cannot_be_reached(hub, words, monkeypatch):
    hub.close()
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(PriorError, match=r"not in the cache, and http://127.0.0.1:\d+ cannot be reached"):
        CodebookPrior.load("ada/words")


def test_a_cache_of_ones_own(hub, words, tmp_path):
    CodebookPrior.from_pretrained("ada/words", cache_dir=tmp_path / "mine")
    assert list((tmp_path / "mine").glob("models--ada--words/snapshots/*/prior.safetensors"))
    assert not (tmp_path / "cache").exists()


def test_a_download_that_breaks_off_is_resumed(hub, words):
    hub.cut = 1
    assert CodebookPrior.load("ada/words").fingerprint == words.fingerprint
    assert len(gets(hub)) == 2


def test_a_download_that_goes_on_breaking_off_leaves_nothing_half_done(hub, words, tmp_path):
    hub.cut, hub.resumable = 100, False
    with pytest.raises(
        PriorError,
        match=r"prior.safetensors of ada/words could not be downloaded, and no part of it is kept: .*try again",
    ):
        CodebookPrior.load("ada/words")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    hub.cut = 0
    assert CodebookPrior.load("ada/words").fingerprint == words.fingerprint


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ada/wrods", r"there is no repository ada/wrods at http://127.0.0.1:\d+, or a private one: check the name"),
        ("ada/words@v3", "ada/words has no revision 'v3'; expected one of its branches, tags or commits"),
        ("ada/other", "ada/other has no prior.safetensors; expected a repository of format vqct_prior"),
        ("ada/codes", "it holds a quantizer, which CodebookTransferQuantizer.from_pretrained loads; expected"),
        ("ada/broken", r"prior\.safetensors.* is not a readable safetensors file"),
        ("ada/foreign", r"prior\.safetensors: .*vqct_prior"),
    ],
)
def test_what_is_wrong_is_said(hub, words, tmp_path, name, sentence):
    from safetensors.numpy import save as safetensors_bytes

    CodebookTransferQuantizer(32, 8, prior=words, **TRANSFER).save_pretrained(tmp_path / "codes")
    hub.put_folder("ada/codes", tmp_path / "codes")
    hub.put("ada/other", {"model.bin": b"x"})
    hub.put("ada/broken", {"prior.safetensors": b"x" * 50})
    hub.put("ada/foreign", {"prior.safetensors": safetensors_bytes({"vectors": words.vectors})})
    with pytest.raises(PriorError, match=sentence) as caught:
        CodebookPrior.load(name)
    assert str(caught.value).isprintable()
    with pytest.raises(PriorError, match=sentence):
        CodebookTransferQuantizer(32, 8, prior=name, **TRANSFER)


def test_two_revisions_are_one_too_many(hub, words, tmp_path):
    with pytest.raises(PriorError, match="names the revision v1, and revision is 'v2'; give one of them"):
        CodebookPrior.from_pretrained("ada/words@v1", revision="v2")
    with pytest.raises(PriorError, match="is a folder, which has no revision"):
        CodebookPrior.from_pretrained(tmp_path / "words", revision="v2")


def test_a_private_one_wants_its_token(hub, words):
    hub.private.add("ada/words")
    with pytest.raises(PriorError, match="or a private one: check the name; for a private one pass token"):
        CodebookPrior.from_pretrained("ada/words")
    assert CodebookPrior.from_pretrained("ada/words", token=hub.token).fingerprint == words.fingerprint


def test_without_the_extra(monkeypatch, tmp_path, prior):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PriorError, match=r"not installed .*: pip install 'vqct-plugin\[hub\]'"):
        CodebookPrior.load("ada/words")
    prior.save_pretrained(tmp_path / "words")
    assert CodebookPrior.from_pretrained(tmp_path / "words").fingerprint == prior.fingerprint  # folders need none
    with pytest.raises(HubError, match="pip install"):
        prior.push_to_hub("ada/words")


@pytest.mark.parametrize("lfs", [None, ".safetensors"])
def test_a_prior_is_pushed_and_comes_back(hub, prior, lfs):
    hub.lfs = lfs
    address = prior.push_to_hub("ada/words", token=hub.token, private=True, message="Words of birds")
    assert address == f"{hub.url}/ada/words/commit/{hub.number_of('ada/words', 'main')}"
    assert hub.message == "Words of birds"
    assert hub.private == {"ada/words"}
    files = hub.commits["ada/words"]["main"]
    assert set(files) == {".gitattributes", "prior.safetensors", "config.json", "README.md"}
    assert b'CodebookPrior.from_pretrained("ada/words")' in files["README.md"]
    assert any(method == "PUT" for method, _ in hub.asked) == bool(lfs)
    again = CodebookPrior.from_pretrained("ada/words", token=hub.token)
    assert again.fingerprint == prior.fingerprint


def test_a_card_on_the_hub_is_its_owners(hub, prior):
    hub.put("ada/words", {"README.md": b"Mine."})
    prior.push_to_hub("ada/words", token=hub.token)
    files = hub.commits["ada/words"]["main"]
    assert files["README.md"] == b"Mine."
    assert "prior.safetensors" in files
    prior.push_to_hub("ada/words", token=hub.token, card="Also mine, of user/name.")
    assert hub.commits["ada/words"]["main"]["README.md"] == b"Also mine, of user/name."


@pytest.mark.parametrize(("before", "asked"), [(False, True), (True, False)])
def test_nothing_is_put_where_others_can_or_cannot_see_it(hub, prior, before, asked):
    prior.push_to_hub("ada/words", token=hub.token, private=before)
    files = dict(hub.commits["ada/words"]["main"])
    there = "private" if before else "public"
    with pytest.raises(HubError, match=rf"ada/words is {there}, and private is {asked}: nothing was put there"):
        make_prior(seed=7).push_to_hub("ada/words", token=hub.token, private=asked)
    assert hub.commits["ada/words"]["main"] == files
    for private in (None, before):
        make_prior(seed=7).push_to_hub("ada/words", token=hub.token, private=private)
    assert hub.commits["ada/words"]["main"] != files


def test_what_cannot_be_pushed(hub, prior, monkeypatch):
    with pytest.raises(HubError, match="repo_id is 'words'; expected user/name"):
        prior.push_to_hub("words")
    with pytest.raises(HubError, match=r"refuses ada/words to this token \(401\); pass a token that may write it"):
        prior.push_to_hub("ada/words", token="hf_wrong")
    with pytest.raises(HubError, match="ada/words has no revision 'draft'"):
        prior.push_to_hub("ada/words", token=hub.token, revision="draft")
    offline(monkeypatch)
    with pytest.raises(HubError, match="ada/words cannot be written to, and HF_HUB_OFFLINE is set"):
        prior.push_to_hub("ada/words", token=hub.token)


def test_a_quantizer_is_pushed_and_comes_back(hub, prior):
    first = CodebookTransferQuantizer(32, 8, prior=prior, topk=2, beta=0.5, **TRANSFER).eval()
    first.push_to_hub("ada/codes", token=hub.token)
    second = CodebookTransferQuantizer.from_pretrained("ada/codes@main").eval()
    assert second.settings == first.settings
    z = torch.randn(2, 8, 3, 3)
    for ours, theirs in zip(second(z)[:2], first(z)[:2]):
        assert torch.equal(ours, theirs)


def test_files_are_of_one_commit(hub, prior, tmp_path, monkeypatch):
    """A branch that moves between two files does not mix them."""
    first = CodebookTransferQuantizer(32, 8, prior=prior, **TRANSFER)
    first.save_pretrained(tmp_path / "first")
    CodebookTransferQuantizer(16, 8, prior=prior, **TRANSFER).save_pretrained(tmp_path / "second")
    hub.put_folder("ada/codes", tmp_path / "first")
    import huggingface_hub

    real = huggingface_hub.hf_hub_download

    def download(*args, **keywords):
        found = real(*args, **keywords)
        hub.put_folder("ada/codes", tmp_path / "second")
        return found

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert CodebookTransferQuantizer.from_pretrained("ada/codes").n_e == 32
