"""What of a language model is read, how each kind is pooled, and on which device."""

import json

import numpy as np
import pytest
import torch

from tests.building import models
from tests.building.test_vectors import PARTS, TEXTS, WORDS
from vqct_plugin.building.build import build_prior
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.vectors import InputEmbeddings, LanguageModel, PromptEncodings

KINDS = ("gpt2", "llama", "t5", "t5encoder", "clip", "siglip")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("models"), {}

    def of(kind, **options):
        key = (kind, *options)
        if key not in made:
            made[key] = getattr(models, f"save_{kind}")(folder / "-".join(key), **options)
        return made[key]

    return of


def never(*_, **__):
    raise AssertionError("the whole model was read")


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_need_the_table_only(model_of, kind, monkeypatch):
    import transformers

    folder = model_of(kind)
    expected = InputEmbeddings(read_whole(LanguageModel(folder)))(WORDS)[0]
    for name in ("AutoModel", "T5EncoderModel", "CLIPTextModelWithProjection"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", never)
    state = torch.random.get_rng_state()
    np.testing.assert_array_equal(InputEmbeddings(LanguageModel(folder))(WORDS)[0], expected)
    assert torch.equal(torch.random.get_rng_state(), state)


def read_whole(language_model):
    assert language_model.model is not None
    return language_model


def test_of_a_model_in_several_files_the_one_with_the_table_is_read(tiny_bert, tmp_path, monkeypatch):
    import transformers
    from safetensors.torch import load_file, save_file

    weights = load_file(f"{tiny_bert}/model.safetensors")
    table = next(key for key in weights if key.endswith("word_embeddings.weight"))
    transformers.AutoConfig.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    save_file({f"bert.{table}": weights[table]}, str(tmp_path / "model-00001-of-00002.safetensors"))
    places = {f"bert.{key}": "model-00002-of-00002.safetensors" for key in weights}  # which is not there
    places[f"bert.{table}"] = "model-00001-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", never)
    np.testing.assert_array_equal(
        InputEmbeddings(LanguageModel(str(tmp_path)))(["dog"])[0], weights[table][7:8].numpy()
    )


def test_weights_in_a_pickle_are_read_as_a_whole(tiny_bert, tmp_path):
    import transformers

    model = transformers.AutoModel.from_pretrained(tiny_bert)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), str(tmp_path / "pytorch_model.bin"))
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    expected = InputEmbeddings(LanguageModel(tiny_bert))(["dog"])[0]
    np.testing.assert_array_equal(InputEmbeddings(LanguageModel(str(tmp_path)))(["dog"])[0], expected)


@pytest.mark.parametrize("text_only", [False, True])
def test_siglips_features_are_those_of_padded_prompts(model_of, text_only):
    """As its makers' processor does it: ``padding="max_length"``, no mask, the last position."""
    from transformers import AutoModel, AutoTokenizer, SiglipTextModel

    folder = model_of("siglip", text_only=text_only) if text_only else model_of("siglip")
    kind = SiglipTextModel if text_only else AutoModel
    model, tokenizer = kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
    assert inputs.shape == (5, 24)
    text = model if text_only else model.text_model
    with torch.no_grad():
        expected = text(input_ids=inputs).pooler_output
    encodings = PromptEncodings(LanguageModel(folder))
    assert encodings.pooling == "text features, padded to 24, last position"
    np.testing.assert_allclose(encodings(WORDS, PARTS)[0], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_encoder_of_t5_by_itself(model_of):
    from transformers import AutoTokenizer, T5EncoderModel

    folder = model_of("t5encoder")
    model, tokenizer = T5EncoderModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    language_model = LanguageModel(folder)
    assert type(language_model.model).__name__ == "T5EncoderModel"
    encodings = PromptEncodings(language_model)
    assert encodings.pooling == "mean over the encoder's tokens"
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0] for text in TEXTS]
    np.testing.assert_allclose(encodings(WORDS, PARTS)[0], torch.stack(rows).numpy(), rtol=1e-4, atol=1e-5)


def with_pooling(folder, copy, config):
    import shutil

    shutil.copytree(folder, copy)
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(copy)


@pytest.mark.parametrize(
    ("config", "pooling", "pool"),
    [
        ({"pooling_mode_cls_token": True}, "first token", lambda s: s[:, 0]),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean over tokens", lambda s: s.mean(1)),
        ({"pooling_mode": "lasttoken"}, "last token", lambda s: s[:, -1]),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "sum over tokens by", lambda s: s.sum(1) / s.shape[1] ** 0.5),
        (
            {"pooling_mode_weightedmean_tokens": True},
            "the later the heavier",
            lambda s: sum((i + 1) * s[:, i] for i in range(s.shape[1])) / sum(range(1, s.shape[1] + 1)),
        ),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "first token, then maximum over tokens",
            lambda s: torch.cat([s[:, 0], s.max(1).values], 1),
        ),
    ],
)
def test_a_model_is_pooled_by_its_own_config(tiny_bert, tmp_path, config, pooling, pool):
    from transformers import AutoModel, AutoTokenizer

    folder = with_pooling(tiny_bert, tmp_path / "bge", config)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    encodings = PromptEncodings(LanguageModel(folder), {"noun": "the {} run on grass"})
    assert pooling in encodings.pooling
    with torch.no_grad():
        states = model(**tokenizer("the dog run on grass", return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(encodings(["dog"], ["noun"])[0], pool(states).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"pooling_mode": "attention"}, r"says 'attention'; expected some of cls, max"),
        ({"word_embedding_dimension": 8}, "says nothing"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(tiny_bert, tmp_path, config, sentence):
    with pytest.raises(BuildError, match=rf"1_Pooling/config\.json of 'odd' {sentence}"):
        PromptEncodings(LanguageModel(with_pooling(tiny_bert, tmp_path / "odd", config)))


@pytest.fixture
def on_the_hub(tiny_bert, tmp_path, monkeypatch):
    """A name on the hub whose model is in a cache of its own, and no network: the cache's folder and its commit."""
    import shutil

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache, commit = tmp_path / "models--someone--bge", "0" * 40
    shutil.copytree(tiny_bert, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    return cache, commit


def test_a_pooling_that_cannot_be_told_is_refused(on_the_hub, caplog):
    cache, commit = on_the_hub
    sentence = (
        r"how 'someone/bge' is pooled cannot be told: its 1_Pooling/config\.json is not in the cache, and the hub was "
        r"not reached.*hf download NAME --local-dir FOLDER.*pooling is one of cls, max"
    )
    with pytest.raises(BuildError, match=sentence):
        PromptEncodings(LanguageModel("someone/bge"))
    assert PromptEncodings(LanguageModel("someone/bge"), pooling="cls").pooling == "first token"
    known_absent = cache / ".no_exist" / commit / "1_Pooling" / "config.json"
    known_absent.parent.mkdir(parents=True)
    known_absent.touch()
    assert PromptEncodings(LanguageModel("someone/bge")).pooling == "mean over tokens"
    own = cache / "snapshots" / commit / "1_Pooling" / "config.json"
    known_absent.unlink()
    own.parent.mkdir()
    own.write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert PromptEncodings(LanguageModel("someone/bge")).pooling == "first token"
    assert not caplog.messages


def test_the_hubs_own_answer_tells_what_is_absent_and_it_is_asked_once(on_the_hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
    from transformers.utils import hub

    def answer(error):
        asked = []

        def download(*_, **__):
            asked.append(1)
            raise error

        model = LanguageModel("someone/bge")
        with monkeypatch.context() as patch:
            for module in (hub, huggingface_hub):
                patch.setattr(module, "hf_hub_download", download)
            told = [(model.file("1_Pooling/config.json"), model.lacks("1_Pooling/config.json")) for _ in range(2)]
        assert told[0] == told[1]
        assert told[0][0] is None
        assert len(asked) == 1
        return told[0][1]

    assert answer(EntryNotFoundError("404"))
    assert not answer(LocalEntryNotFoundError("not in the cache"))
    assert not answer(ConnectionError("no route"))
    assert not answer(PermissionError("the cache is another's"))
    assert not answer(OSError(30, "the cache is read only"))
    assert not answer(ValueError("no such name"))


def test_the_pooling_of_a_folder_that_does_not_say_it_is_a_guess_and_said_to_be(tiny_bert, tmp_path, caplog):
    assert PromptEncodings(LanguageModel(tiny_bert)).pooling == "mean over tokens"
    (message,) = caplog.messages
    assert "how 'tiny-bert' is pooled is a guess, mean over tokens: its folder has no 1_Pooling/config.json" in message
    assert "hf download NAME --local-dir FOLDER" in message
    caplog.clear()
    PromptEncodings(LanguageModel(tiny_bert), pooling="mean")
    PromptEncodings(LanguageModel(with_pooling(tiny_bert, tmp_path / "own", {"pooling_mode": "mean"})))
    assert not caplog.messages


def test_the_pooling_named_is_taken_before_the_models_own(tiny_bert, tmp_path, model_of):
    folder = with_pooling(tiny_bert, tmp_path / "own", {"pooling_mode": "mean"})
    named = PromptEncodings(LanguageModel(folder), pooling="lasttoken")
    assert named.describe()["kind"] == "prompt encodings, last token"
    same = with_pooling(tiny_bert, tmp_path / "same", {"pooling_mode": "lasttoken"})
    np.testing.assert_array_equal(named(WORDS, PARTS)[0], PromptEncodings(LanguageModel(same))(WORDS, PARTS)[0])
    with pytest.raises(BuildError, match=r"pooling is 'first'; expected one of cls, max"):
        PromptEncodings(LanguageModel(folder), pooling="first")
    for kind in ("clip", "siglip"):
        with pytest.raises(BuildError, match=r"pooling is 'cls', but .* has text features of its own"):
            PromptEncodings(LanguageModel(model_of(kind)), pooling="cls")
    with pytest.raises(BuildError, match=r"pooling is 'cls', but nothing is encoded; pass vectors='prompts'"):
        build_prior(tiny_bert, pooling="cls")


def test_the_device_is_the_one_named(tiny_bert, tmp_path):
    encodings = PromptEncodings(LanguageModel(tiny_bert), device="cpu")
    assert next(encodings._language_model.model.parameters()).device.type == "cpu"
    for device in ("cuda:99", "abacus"):
        with pytest.raises(BuildError, match=rf"device is '{device}', which cannot be used: .*expected cpu, cuda"):
            PromptEncodings(LanguageModel(tiny_bert), device=device)
    with pytest.raises(BuildError, match="device is 'cpu', but input embeddings are read and not computed"):
        build_prior(tiny_bert, output=tmp_path / "p.safetensors", device="cpu")


def test_the_revision_is_asked_for_and_recorded(tiny_bert, monkeypatch):
    import transformers

    asked = []
    kinds = {name: getattr(transformers, name) for name in ("AutoConfig", "AutoTokenizer", "AutoModel")}
    found = {name: kind.from_pretrained(tiny_bert) for name, kind in kinds.items()}

    def answer(name):
        return lambda *_, revision=None: asked.append(revision) or found[name]

    for name, kind in kinds.items():
        monkeypatch.setattr(kind, "from_pretrained", answer(name))
    embeddings = InputEmbeddings(LanguageModel("someone/some-model", revision="v1.5"))
    assert asked == ["v1.5"] * 3
    assert embeddings.describe()["revision"] == "v1.5"
    with pytest.raises(BuildError, match=r"revision is 'v1', but .* is a folder"):
        LanguageModel(tiny_bert, revision="v1")
    with pytest.raises(BuildError, match="revision is 'v1', but there is no model on the hub"):
        build_prior(word_vectors="glove.txt", revision="v1")
