import gzip
import hashlib

import numpy as np
import pytest
import torch

from tests.building import models
from tests.building.conftest import save_tiny_bert
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.vectors import (
    InputEmbeddings,
    LanguageModel,
    PromptEncodings,
    WordVectors,
    check_prompts,
)


def embeddings_of(plm, name=None):
    return InputEmbeddings(LanguageModel(plm, name))


def table_of(folder):
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder).get_input_embeddings().weight.detach().numpy()


def test_a_vector_is_the_mean_of_a_words_pieces(tiny_bert):
    table = table_of(tiny_bert)  # pieces: 5 red, 6 black, 7 dog, 11 -, 12 snow, 13 ##y, 14 ##s
    vectors, known = embeddings_of(tiny_bert)(["dog", "snowy", "red-dog", "dogs"])
    assert known.all()
    assert vectors.dtype == np.float32
    expected = [table[7], table[[12, 13]].mean(0), table[[5, 11, 7]].mean(0), table[[7, 14]].mean(0)]
    np.testing.assert_allclose(vectors, expected, atol=1e-7)


def test_a_word_with_an_unknown_piece_is_unknown_and_never_zero(tiny_bert):
    vectors, known = embeddings_of(tiny_bert)(["dog", "zebra", "red-zebra", "cat"])
    assert known.tolist() == [True, False, False, True]
    assert np.isnan(vectors[1:3]).all()
    assert np.isfinite(vectors[[0, 3]]).all()


def test_batches_do_not_change_a_bit(tiny_bert):
    embeddings = embeddings_of(tiny_bert)
    words = ["dog", "zebra", "snowy", "red-dog", "cat", "zebu", "dogs"]
    whole = embeddings(words)
    for batch_size in (1, 2, 3, 7):
        for got, expected in zip(embeddings(words, batch_size=batch_size), whole):
            np.testing.assert_array_equal(got, expected)


def test_a_byte_level_word_is_taken_as_it_stands_inside_a_sentence(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["dog", "a dog", "the dog", "red dog", "dog"] * 20, trainer)
    assert tokenizer.encode(" dog").ids != tokenizer.encode("dog").ids
    save_tiny_bert(tmp_path / "bytes", tokenizer)
    table = table_of(tmp_path / "bytes")
    vectors, known = embeddings_of(str(tmp_path / "bytes"))(["dog"])
    assert known.all()
    np.testing.assert_allclose(vectors[0], table[tokenizer.encode(" dog").ids].mean(0), atol=1e-7)


def test_the_model_is_named_by_its_folder_never_by_its_path(tiny_bert):
    embeddings = embeddings_of(tiny_bert)
    assert embeddings.name == "tiny-bert"
    assert embeddings_of(tiny_bert, name="mine").name == "mine"
    assert tiny_bert not in str(embeddings.describe())


def test_models_that_cannot_be_loaded_are_refused(tmp_path, monkeypatch):
    import transformers

    with pytest.raises(BuildError, match="neither a folder that exists nor a name on the hub"):
        embeddings_of("./not/there")
    (tmp_path / "glove.txt").write_text("dog 1 2")
    with pytest.raises(BuildError, match="pass a file of word vectors as word_vectors"):
        embeddings_of(str(tmp_path / "glove.txt"))
    with pytest.raises(BuildError, match="neither a folder"):
        embeddings_of("")
    with pytest.raises(BuildError, match="expected what save_pretrained writes"):
        embeddings_of(str(tmp_path))

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(
        BuildError,
        match=r"hub.*cannot be reached.*hf download someone/some-model --local-dir FOLDER.*pass the folder: plm=FOLDER",
    ):
        embeddings_of("someone/some-model")


@pytest.mark.parametrize("name", ["x" * 5000, "/" + "x" * 5000, "a/" * 3000, "a\0b"])
def test_a_name_that_no_file_can_have_is_a_sentence(name):
    with pytest.raises(BuildError, match=r"language model .* is neither a folder that exists nor a name") as caught:
        embeddings_of(name)
    assert len(str(caught.value)) < 400
    with pytest.raises(BuildError, match=r"the file of word vectors .* does not exist") as caught:
        WordVectors(name)
    assert len(str(caught.value)) < 400


def test_a_table_shorter_than_the_tokenizer_is_refused(tiny_bert, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(tiny_bert)
    model.resize_token_embeddings(9)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    with pytest.raises(BuildError, match=r"shape \(9, 8\); expected at least one row for each of the tokenizer's 15"):
        embeddings_of(str(tmp_path))


def test_reading_a_model_leaves_the_random_state_alone(tiny_bert):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    embeddings_of(tiny_bert)
    assert torch.equal(torch.rand(1), expected)


WORDS, PARTS = ["dog", "red", "wheel", "feather", "red"], ["noun", "adjective", "noun", "noun", "noun"]
TEXTS = [
    "a photo of dog", "a photo of red object", "a photo of wheel", "a photo of feather", "a photo of red"
]  # fmt: skip


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """kind -> the folder of a tiny model of this kind."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def of(kind, **options):
        if kind not in made:
            made[kind] = getattr(models, f"save_{kind.split('-')[0]}")(folder / kind, **options)
        return made[kind]

    return of


def one_at_a_time(folder, encode):
    """The rows of ``encode(model, inputs)`` for each prompt by itself: the slow way."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([encode(model, dict(tokenizer([text], return_tensors="pt"))) for text in TEXTS]).numpy()


def text_features(model, inputs):
    """CLIP's by hand: the state where the sentence ends, projected."""
    states = model.text_model(input_ids=inputs["input_ids"]).last_hidden_state
    return model.text_projection(states[:, -1])


@pytest.mark.parametrize(
    ("kind", "pooling", "encode"),
    [
        ("gpt2", "last token", lambda model, inputs: model(**inputs).last_hidden_state[:, -1]),
        ("llama", "last token", lambda model, inputs: model(**inputs).last_hidden_state[:, -1]),
        (
            "t5",
            "mean over the encoder's tokens",
            lambda model, inputs: model(
                **inputs, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)
            ).encoder_last_hidden_state.mean(1),
        ),
        ("clip", "projected text features", text_features),
    ],
)
def test_prompts_are_pooled_as_the_architecture_wants(model_of, kind, pooling, encode):
    encodings = PromptEncodings(LanguageModel(model_of(kind)))
    assert encodings.pooling == pooling
    vectors, known = encodings(WORDS, PARTS)
    assert known.all()
    np.testing.assert_allclose(vectors, one_at_a_time(model_of(kind), encode), rtol=1e-4, atol=1e-5)
    assert np.abs(vectors[1] - vectors[4]).max() > 1e-3  # the adjective's prompt is another


def test_bert_is_pooled_by_the_mean_over_tokens(minilm):
    encodings = PromptEncodings(LanguageModel(minilm))
    assert encodings.pooling == "mean over tokens"
    by_hand = one_at_a_time(minilm, lambda model, inputs: model(**inputs).last_hidden_state.mean(1))
    np.testing.assert_allclose(encodings(WORDS, PARTS)[0], by_hand, rtol=1e-3, atol=1e-4)


def test_clips_text_half_alone_gives_the_same_features(model_of):
    from transformers import AutoModel

    whole, half = AutoModel.from_pretrained(model_of("clip")), LanguageModel(model_of("clip-text", text_only=True))
    half.tokenizer = LanguageModel(model_of("clip")).tokenizer  # training BPE twice may give two vocabularies
    half.model.text_model.load_state_dict(whole.text_model.state_dict())
    half.model.text_projection.load_state_dict(whole.text_projection.state_dict())
    ours = PromptEncodings(half)
    assert ours.pooling == "projected text features"
    theirs = PromptEncodings(LanguageModel(model_of("clip")))
    np.testing.assert_allclose(ours(WORDS, PARTS)[0], theirs(WORDS, PARTS)[0], rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "clip"])
def test_every_architecture_has_input_embeddings(model_of, kind):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(model_of(kind))
    table = (model.text_model.embeddings.token_embedding if kind == "clip" else model.get_input_embeddings()).weight
    tokenizer = AutoTokenizer.from_pretrained(model_of(kind))
    text = " feather" if kind == "gpt2" else "feather"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    vectors, known = embeddings_of(model_of(kind))(["feather"])
    assert known.all()
    np.testing.assert_allclose(vectors[0], table[ids].mean(0).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_a_word_that_is_unknown_to_the_tokenizer_has_no_encoding(model_of, kind):
    vectors, known = PromptEncodings(LanguageModel(model_of(kind)))(["dog", "z\u00fcrich", "red"], ["noun"] * 3)
    assert known.tolist() == [True, False, True]
    assert np.isnan(vectors[1]).all()
    assert np.isfinite(vectors[[0, 2]]).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_bytes_know_every_word(model_of, kind):
    assert LanguageModel(model_of(kind)).knows(["dog", "z\u00fcrich", "\u72ac"]).all()


def test_batches_of_prompts_differ_in_the_last_digits_at_most(minilm):
    encodings = PromptEncodings(LanguageModel(minilm))
    whole = encodings(WORDS, PARTS)[0]
    for batch_size in (1, 2):
        np.testing.assert_allclose(encodings(WORDS, PARTS, batch_size=batch_size)[0], whole, rtol=1e-3, atol=1e-5)


def test_a_prompt_of_ones_own_replaces_the_authors(minilm):
    model = LanguageModel(minilm)
    own = PromptEncodings(model, {"noun": "the color of a {} is red"})
    assert own.prompts["noun"] == "the color of a {} is red"
    assert own.prompts["adjective"] == "a photo of {} object"
    assert np.abs(own(["dog"], ["noun"])[0] - PromptEncodings(model)(["dog"], ["noun"])[0]).max() > 1e-2


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ({"noun": "a photo"}, r"the prompt for 'noun' is 'a photo'; expected a text with one \{\}"),
        ({"noun": "{} and {}"}, "expected a text with one"),
        ({"pronoun": "{}"}, "a prompt for 'pronoun'; expected one of adjective, noun"),
    ],
)
def test_prompts_without_a_place_for_the_word_are_refused(prompts, sentence):
    with pytest.raises(BuildError, match=sentence):
        check_prompts(prompts)


def test_a_prompt_longer_than_the_model_takes_is_refused(model_of):
    encodings = PromptEncodings(LanguageModel(model_of("clip")), {"noun": "a photo of a photo of " * 5 + "{}"})
    with pytest.raises(BuildError, match=r"has 3\d pieces; 'clip' takes 24"):
        encodings(["dog"], ["noun"])


def test_a_model_without_text_input_is_refused(model_of):
    with pytest.raises(BuildError, match=r"'vit' \(vit\) has no text input"):
        LanguageModel(model_of("vit"))


def test_the_whole_words_of_a_vocabulary(model_of, tiny_bert):
    assert LanguageModel(tiny_bert).whole_words() == ["black", "cat", "dog", "grass", "on", "red", "run", "snow", "the"]
    for kind in ("gpt2", "llama", "clip"):
        words = LanguageModel(model_of(kind)).whole_words()
        assert {"dog", "cat", "blue", "feather"} <= set(words)
        assert "ogs" not in words


@pytest.mark.parametrize("mark", ["\u0120{}", "\u2581{}", "{}</w>"])
def test_a_piece_without_the_mark_of_a_word_is_a_part_of_one(tiny_bert, monkeypatch, mark):
    plm = LanguageModel(tiny_bert)
    monkeypatch.setattr(plm.tokenizer, "get_vocab", lambda: {mark.format("dog"): 0, "cat": 1}, raising=False)
    assert plm.whole_words() == ["dog"]


NUMBERS = {"dog": [0.5, -1.25, 3], "red": [1e-3, 2, 0], "New York": [1, 2, 3]}


def vector_file(folder, header=False, name="vectors.txt", end=""):
    lines = [f"{word} {' '.join(map(str, numbers))}{end}" for word, numbers in NUMBERS.items()]
    content = "\n".join(([f"{len(lines)} 3"] if header else []) + lines) + "\n"
    path = folder / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
@pytest.mark.parametrize(
    ("header", "end"), [(False, ""), (True, ""), (True, " ")], ids=["GloVe", "word2vec", "fastText"]
)
def test_word_vectors_are_those_of_the_file(tmp_path, header, end, name):
    path = vector_file(tmp_path, header, name, end)
    vectors, known = WordVectors(path)(["red", "zebra", "dog", "New York"])
    assert known.tolist() == [True, False, True, True]
    expected = np.array([NUMBERS["red"], NUMBERS["dog"], NUMBERS["New York"]], dtype=np.float32)
    np.testing.assert_array_equal(vectors[[0, 2, 3]], expected)
    assert np.isnan(vectors[1]).all()
    source = WordVectors(path)
    assert source.knows(["dog", "zebra"]).tolist() == [True, False]
    assert source.describe()["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.name == name


def test_damaged_lines_of_word_vectors_are_counted_and_never_zero(tmp_path):
    path = vector_file(tmp_path)
    with path.open("a") as file:
        file.write("cat 1 2\nred 9 9 9\nnan nan 1 2\ntext a b c\nbird 1 2 3\n")
    source = WordVectors(path)
    vectors, known = source(["cat", "red", "nan", "text", "bird"])
    assert known.tolist() == [False, True, False, False, True]
    np.testing.assert_array_equal(vectors[1], np.array(NUMBERS["red"], dtype=np.float32))  # the first line of a word
    assert source.describe()["damaged_lines"] == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a text file of word vectors"),
        (b"one caption per line\nand another\n", "is not a text file of word vectors"),
        (b"3 4\n\x00\x01\x02 binary", "is not a text file of word vectors"),
        (b"dog 1 2 3\n" + b"a caption\n" * 3, "3 of 4 lines do not have 3 numbers"),
        (gzip.compress(b"dog 1 2 3\ncat 4 5 6\n" * 9, mtime=0)[:-9], "cannot be read to its end"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, content, sentence):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(BuildError, match=sentence):
        WordVectors(path)(["dog", "bird"])
    with pytest.raises(BuildError, match="does not exist"):
        WordVectors(tmp_path / "none.txt")
