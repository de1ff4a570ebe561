import numpy as np
import pytest
import torch

from tests.building.conftest import save_tiny_bert
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.vectors import InputEmbeddings, LanguageModel


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
    with pytest.raises(BuildError, match="expected what save_pretrained writes"):
        embeddings_of(str(tmp_path))

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(BuildError, match=r"hub.*cannot be reached.*pass the folder: --plm FOLDER"):
        embeddings_of("someone/some-model")


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
