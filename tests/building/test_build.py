import numpy as np
import pytest

from vqct_plugin.building.build import assemble, build_prior, read_words
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.tagging import WordCounts
from vqct_plugin.building.vectors import InputEmbeddings, LanguageModel
from vqct_plugin.prior import CodebookPrior, PriorError

LINES = "A red dog on the grass .\nThe red dog runs on the snowy grass .\nA black cat on the grass .\nA zebra .\n"


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text(LINES)
    return path


def counted(*captions):
    counts = WordCounts()
    for caption in captions:
        counts.add(caption)
    return counts


def test_the_counts_become_codes_and_edges(tiny_bert):
    red, dog, cat, orange = ("red", "adjective"), ("dog", "noun"), ("cat", "noun"), ("red", "noun")
    counts = counted([red, dog], [red, dog, orange], [red, cat], [("black", "adjective"), orange], [dog, orange])
    embeddings = InputEmbeddings(LanguageModel(tiny_bert))
    prior, unknown = assemble(counts, embeddings, {"min_count": 0})
    assert unknown == []
    assert prior.words == ("red", "black", "dog", "red", "cat")
    assert prior.part_of_speech.tolist() == [0, 0, 1, 1, 1]
    assert prior.count.tolist() == [3, 1, 3, 3, 1]
    assert prior.neighbours("red", "adjective") == [("dog", "noun", 2), ("cat", "noun", 1)]
    assert prior.neighbours("red", "noun") == [("black", "adjective", 1)]
    np.testing.assert_array_equal(prior.vectors, embeddings(prior.words)[0])
    assert prior.provenance["language_model"] == "tiny-bert"
    assert prior.provenance["vectors"]["dim"] == 8


def test_unknown_words_are_dropped_with_their_edges_and_reported(tiny_bert):
    red, dog = ("red", "adjective"), ("dog", "noun")
    counts = counted([red, dog], [("stripy", "adjective"), dog], [red, ("zebra", "noun")])
    prior, unknown = assemble(counts, InputEmbeddings(LanguageModel(tiny_bert)), {})
    assert unknown == [("stripy", "adjective"), ("zebra", "noun")]
    assert prior.words == ("red", "dog")
    assert prior.edge_count.tolist() == [1]
    assert prior.provenance["without_vector"] == 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.usefixtures("nltk_data")
def test_the_file_holds_what_was_built(captions, tiny_bert, tmp_path, dtype):
    output = tmp_path / "prior.safetensors"
    report = build_prior(tiny_bert, [captions], output, min_count=0, dtype=dtype)
    loaded = CodebookPrior.load(output)
    assert loaded.fingerprint == report.prior.fingerprint
    assert loaded.vectors.dtype == dtype
    assert loaded.words == ("red", "black", "snowy", "grass", "dog", "cat")
    assert loaded.provenance["min_count"] == 0
    assert loaded.provenance["captions"][0]["file"] == "captions.txt"
    assert loaded.provenance["captions"][0]["captions"] == 4
    assert str(tmp_path) not in str(loaded.provenance)
    assert tiny_bert not in str(loaded.provenance)


@pytest.mark.usefixtures("nltk_data")
def test_the_summary_tells_what_was_done(captions, tiny_bert, tmp_path):
    captions.write_bytes(b"\xff\n" + captions.read_bytes())
    summary = str(build_prior(tiny_bert, [captions], tmp_path / "prior.safetensors", min_count=0))
    for sentence in (
        "4 captions (text)",
        "1 damaged lines skipped",
        "line 1, not UTF-8",
        "3 adjectives + 3 nouns = 6 codes",
        "edges: 3 distinct, 4 occurrences",
        "isolated codes (no edge): 0",
        "dropped, without a vector: 1 words (zebra)",
        "commonest nouns: grass, dog, cat",
        "tagging ",
    ):
        assert sentence in summary


@pytest.mark.usefixtures("nltk_data")
def test_words_can_be_left_out(captions, tiny_bert, tmp_path):
    with captions.open("a") as file:
        file.write("A dog and the catys .\n" * 2)
    assert "catys" in build_prior(tiny_bert, [captions], min_count=0).prior
    drop = tmp_path / "drop.txt"
    drop.write_text("# not these\nblack   # of any part\ndog noun\ncat adjective\n\n")
    prior = build_prior(tiny_bert, [captions], min_count=0, only_wordnet=True, drop_words=drop).prior
    assert prior.words == ("red", "snowy", "grass", "cat")
    assert prior.provenance["drop_words"]["file"] == "drop.txt"
    assert read_words(drop) == {
        ("black", "adjective"), ("black", "noun"), ("dog", "noun"), ("cat", "adjective")
    }  # fmt: skip
    drop.write_text("dog pronoun")
    with pytest.raises(
        BuildError, match=r"line 1: 'dog pronoun'; expected a word, or a word and one of adjective, noun, verb, adverb"
    ):
        read_words(drop)


def test_an_existing_output_is_refused_before_any_work(captions, tmp_path):
    output = tmp_path / "prior.safetensors"
    output.write_text("mine")
    with pytest.raises(BuildError, match="exists; use --force"):
        build_prior("no/model", [captions], output)
    with pytest.raises(BuildError, match="is a folder"):
        build_prior("no/model", [captions], tmp_path)
    with pytest.raises(BuildError, match="does not exist; make it first"):
        build_prior("no/model", [captions], tmp_path / "none" / "prior.safetensors")
    assert output.read_text() == "mine"


@pytest.mark.usefixtures("nltk_data")
def test_force_replaces_and_a_failure_on_the_way_leaves_the_old_file(captions, tiny_bert, tmp_path):
    output = tmp_path / "prior.safetensors"
    output.write_text("mine")
    with pytest.raises(BuildError, match="no adjective is left"):
        build_prior(tiny_bert, [captions], output, min_count=99, force=True)
    assert output.read_text() == "mine"
    build_prior(tiny_bert, [captions], output, min_count=0, force=True)
    assert len(CodebookPrior.load(output)) == 6
    assert {file.name for file in tmp_path.iterdir()} == {"captions.txt", "prior.safetensors"}


def test_vectors_beyond_float16_are_refused(tiny_bert):
    embeddings = InputEmbeddings(LanguageModel(tiny_bert))
    embeddings._table *= 1e8
    counts = counted([("red", "adjective"), ("dog", "noun")])
    with pytest.raises(BuildError, match="overflow float16; store them as float32"):
        assemble(counts, embeddings, {}, dtype="float16")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"min_count": -1}, "min_count is -1"),
        ({"dtype": "int8"}, "expected one of float32, float16"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_options_are_refused(captions, options, sentence):
    with pytest.raises(BuildError, match=sentence):
        build_prior("no/model", [captions], **options)
    assert not issubclass(BuildError, PriorError)
