import os
import stat

import numpy as np
import pytest

from vqct_plugin.building.build import assemble_prior, build_prior, read_words
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
    prior, unknown = assemble_prior(counts, embeddings, {"min_count": 0})
    assert unknown == []
    assert prior.words == ("red", "black", "dog", "red", "cat")
    assert prior.part_of_speech.tolist() == [0, 0, 1, 1, 1]
    assert prior.count.tolist() == [3, 1, 3, 3, 1]
    assert prior.neighbors("red", "adjective") == [("dog", "noun", 2), ("cat", "noun", 1)]
    assert prior.neighbors("red", "noun") == [("black", "adjective", 1)]
    np.testing.assert_array_equal(prior.vectors, embeddings(prior.words)[0])
    assert prior.provenance["language_model"] == "tiny-bert"
    assert prior.provenance["vectors"]["dim"] == 8


def test_unknown_words_are_dropped_with_their_edges_and_reported(tiny_bert):
    red, dog = ("red", "adjective"), ("dog", "noun")
    counts = counted([red, dog], [("stripy", "adjective"), dog], [red, ("zebra", "noun")])
    prior, unknown = assemble_prior(counts, InputEmbeddings(LanguageModel(tiny_bert)), {})
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
        "dropped because they have no vector: 1 words (zebra)",
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
    with pytest.raises(BuildError, match="exists; pass force=True"):
        build_prior("no/model", [captions], output)
    with pytest.raises(BuildError, match="is a folder"):
        build_prior("no/model", [captions], tmp_path)
    with pytest.raises(BuildError, match="does not exist; make it first"):
        build_prior("no/model", [captions], tmp_path / "none" / "prior.safetensors")
    assert output.read_text() == "mine"


@pytest.mark.usefixtures("nltk_data")
def test_force_replaces_files_only(captions, tiny_bert, tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        for what in ("output", "picture"):
            places = {"output": tmp_path / "p.safetensors", what: tmp_path / name}
            if what == "picture":
                (tmp_path / f"{name}.png").symlink_to("pipe")
                places[what] = tmp_path / f"{name}.png"
            with pytest.raises(BuildError, match=r"is a pipe; only a file can be replaced"):
                build_prior(tiny_bert, [captions], min_count=0, force=True, **places)
    assert stat.S_ISFIFO(os.lstat(str(tmp_path / "pipe")).st_mode)
    real = tmp_path / "real"
    real.mkdir()
    (real / "prior").write_bytes(b"old")
    (real / "prior").chmod(0o640)
    (tmp_path / "to_prior").symlink_to(os.path.join("real", "prior"))
    with pytest.raises(BuildError, match="to_prior exists; pass force=True"):
        build_prior(tiny_bert, [captions], tmp_path / "to_prior", min_count=0)
    build_prior(tiny_bert, [captions], tmp_path / "to_prior", min_count=0, force=True)
    assert (tmp_path / "to_prior").is_symlink()
    assert len(CodebookPrior.load(real / "prior")) > 0
    assert stat.S_IMODE((real / "prior").stat().st_mode) == 0o640


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
        assemble_prior(counts, embeddings, {}, dtype="float16")


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


@pytest.fixture
def tiny_glosses(monkeypatch):
    """A dictionary of three entries in place of WordNet's, which takes half a minute."""
    from vqct_plugin.building.wordnet import WordNetGlosses

    texts = ["a red dog of the snow", "a black cat", "the green grass of a dog"]

    def few(self):
        self.captions, self.bytes_read, self.sha256 = len(texts), 60, "0" * 64
        return iter(texts)

    monkeypatch.setattr(WordNetGlosses, "__iter__", few)


@pytest.mark.usefixtures("nltk_data", "tiny_glosses")
def test_without_captions_the_words_are_the_models_and_the_edges_the_glosses(tiny_bert):
    report = build_prior(tiny_bert)
    assert report.prior.words == ("black", "red", "on", "dog", "cat", "grass", "snow", "black", "red", "run")
    assert report.prior.count.tolist() == [1, 1, 0, 2, 1, 1, 1, 0, 0, 0]  # words that no gloss has are codes too
    assert report.prior.neighbors("dog", "noun") == [("red", "adjective", 1)]
    assert report.prior.provenance["words"] == "model"
    assert report.prior.provenance["min_count"] is None
    assert "definitions and examples" in str(report)
    assert build_prior(tiny_bert, min_count=0).prior.words == ("black", "red", "dog", "cat", "grass", "snow")
    with pytest.raises(BuildError, match="no adjective is left"):
        build_prior(tiny_bert, words="captions", min_count=1)


@pytest.mark.usefixtures("nltk_data", "tiny_glosses")
def test_glosses_count_beside_captions_and_wordnets_words_are_all_of_it(captions, tmp_path, tiny_bert):
    alone = build_prior(tiny_bert, [captions], min_count=0).prior
    both = build_prior(tiny_bert, [captions], min_count=0, glosses=True).prior
    assert both.count[both.index("dog")] == alone.count[alone.index("dog")] + 2
    assert [corpus["captions"] for corpus in both.provenance["captions"]] == [4, 3]
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("".join(f"{word} 1 2 {i}\n" for i, word in enumerate(("furry", "red", "dog", "paris", "beak"))))
    keep = tmp_path / "keep.txt"
    keep.write_text("furry\nred adjective\ndog\nbeak\nparis\n")
    report = build_prior(word_vectors=vectors, keep_words=keep)
    prior = report.prior
    assert prior.words == ("red", "furry", "dog", "beak")
    assert prior.provenance["words"] == "wordnet"
    assert prior.provenance["keep_words"]["file"] == "keep.txt"
    assert report.not_found == ["paris"]
    assert "words to keep that are not codes: 1 (paris)" in str(report)
    assert prior.provenance["language_model"] == "vectors.txt"
    assert prior.vectors[prior.index("beak")].tolist() == [1, 2, 4]


@pytest.mark.usefixtures("nltk_data")
def test_neighbor_edges_alone_or_added_leave_no_word_alone(tmp_path, tiny_bert):
    path = tmp_path / "captions.txt"
    path.write_text("A red dog .\nThe red grass .\nA black cat .\nThe snow and the snow .\n" * 2)
    options = {"min_count": 0, "neighbors": 1}
    beside = build_prior(tiny_bert, [path], **options).prior
    near = build_prior(tiny_bert, [path], edges="neighbors", **options).prior
    both = build_prior(tiny_bert, [path], edges="both", **options).prior
    assert len(np.unique(beside.edges)) < len(beside)
    assert len(np.unique(near.edges)) == len(np.unique(both.edges)) == len(both)
    assert (near.edge_count == 1).all()

    def table(prior):
        return {(int(a), int(b)): int(c) for (a, b), c in zip(prior.edges.T, prior.edge_count)}

    for edge in set(table(beside)) | set(table(near)):
        assert table(both)[edge] == table(beside).get(edge, 0) + table(near).get(edge, 0)
    assert set(table(both)) == set(table(beside)) | set(table(near))
    for word in range(len(near)):  # each is tied to its nearest of the other part
        others = np.flatnonzero(near.part_of_speech != near.part_of_speech[word])
        unit = near.vectors / np.linalg.norm(near.vectors, axis=1, keepdims=True)
        nearest = int(others[(unit[others] @ unit[word]).argmax()])
        assert (min(word, nearest), max(word, nearest)) in table(near)
    assert "nearest by cosine" in both.provenance["edges"]
    assert "adjective right before noun" in both.provenance["edges"]


@pytest.mark.usefixtures("nltk_data")
def test_filled_edges_are_those_seen_and_more_where_there_are_few(tmp_path, tiny_bert):
    path = tmp_path / "captions.txt"
    path.write_text("A red dog .\nThe red grass .\nA black cat .\nThe snow and the snow .\n" * 2)
    beside = build_prior(tiny_bert, [path], min_count=0).prior
    filled = build_prior(tiny_bert, [path], min_count=0, edges="filled", neighbors=1).prior
    assert filled.words == beside.words == ("red", "black", "snow", "cat", "dog", "grass")
    # red - snow: the commonest of either part, and snow had no relative. The others have one that is no rarer, but
    # black and cat: of two adjectives only red is no rarer than cat, and of nouns snow and cat no rarer than black.
    assert [(beside.words[a], beside.words[b]) for a, b in beside.edges.T] == [
        ("red", "dog"), ("red", "grass"), ("black", "cat")
    ]  # fmt: skip
    assert [(filled.words[a], filled.words[b]) for a, b in filled.edges.T] == [
        ("red", "snow"), ("red", "cat"), ("red", "dog"), ("red", "grass"), ("black", "cat")
    ]  # fmt: skip
    assert filled.edge_count.tolist() == [1, 1, 2, 2, 2]
    assert "each word with fewer than 1 such relatives" in filled.provenance["edges"]


@pytest.mark.usefixtures("nltk_data")
def test_standardized_vectors_have_mean_0_and_deviation_1_and_it_is_recorded(captions, tiny_bert):
    plain = build_prior(tiny_bert, [captions], min_count=0).prior
    prior = build_prior(tiny_bert, [captions], min_count=0, standardize=True).prior
    np.testing.assert_allclose(prior.vectors.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(prior.vectors.std(0), 1, atol=1e-5)
    assert (plain.provenance["vectors"]["standardized"], prior.provenance["vectors"]["standardized"]) == (False, True)
    np.testing.assert_allclose(prior.vectors * plain.vectors.std(0) + plain.vectors.mean(0), plain.vectors, atol=1e-6)


@pytest.mark.usefixtures("nltk_data")
def test_at_most_so_many_words_of_each_part_the_commonest(captions, tiny_bert):
    assert build_prior(tiny_bert, [captions], min_count=0, max_words=1).prior.words == ("red", "grass")
    prior = build_prior(tiny_bert, [captions], min_count=0, max_words={"noun": 2}).prior
    assert prior.words == ("red", "black", "snowy", "grass", "dog")
    assert prior.provenance["max_words"] == {"noun": 2}


@pytest.mark.usefixtures("nltk_data")
def test_an_unknown_word_takes_no_place_among_the_commonest(tmp_path, tiny_bert):
    path = tmp_path / "captions.txt"
    path.write_text("A red zebra .\n" * 3 + "A black dog and a cat .\n")
    report = build_prior(tiny_bert, [path], min_count=0, max_words=2)
    assert report.prior.words == ("red", "black", "cat", "dog")
    assert report.unknown == [("zebra", "noun")]


@pytest.mark.usefixtures("nltk_data")
def test_more_parts_of_speech_have_codes_and_edges(tmp_path, tiny_bert):
    path = tmp_path / "captions.txt"
    path.write_text("The red dog runs on the grass .\nThe black cat runs on the grass .\n")
    prior = build_prior(tiny_bert, [path], min_count=0, parts=["noun", "adjective", "verb"]).prior
    assert prior.parts == ("noun", "adjective", "verb")
    assert prior.sizes == {"noun": 3, "adjective": 2, "verb": 1}
    assert {edge.word for edge in prior.neighbors("run", "verb")} == {"dog", "cat"}
    assert "noun right before verb" in prior.provenance["edges"]


@pytest.mark.usefixtures("nltk_data")
def test_prompts_are_recorded_and_another_prompt_gives_another_prior(captions, tiny_bert):
    options = {"min_count": 0, "vectors": "prompts"}
    default = build_prior(tiny_bert, [captions], **options).prior
    own = build_prior(tiny_bert, [captions], prompts={"noun": "the {}"}, **options).prior
    assert default.provenance["vectors"]["prompts"] == {"adjective": "a photo of {} object", "noun": "a photo of {}"}
    assert own.provenance["vectors"]["prompts"]["noun"] == "the {}"
    assert own.fingerprint != default.fingerprint
    np.testing.assert_array_equal(own.vectors[own.index("red")], default.vectors[default.index("red")])


@pytest.mark.usefixtures("nltk_data")
def test_mostly_unknown_words_are_an_error(tmp_path, tiny_bert):
    path = tmp_path / "captions.txt"
    path.write_text("A striped zebra .\nA wooden table .\nA red dog .\n")
    with pytest.raises(
        BuildError, match=r"'tiny-bert' has no vector for 4 of 6 words \(striped, wooden, table, zebra\)"
    ):
        build_prior(tiny_bert, [path], min_count=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"word_vectors": "glove.txt"}, "one source of vectors"),
        ({"plm": None}, "one source of vectors"),
        ({"plm": None, "word_vectors": "glove.txt", "vectors": "prompts"}, "takes no prompts"),
        ({"plm": None, "word_vectors": "glove.txt", "words": "model"}, "no model's vocabulary"),
        ({"prompts": {"noun": "a {}"}}, "pass vectors='prompts'"),
        ({"prompts": {"noun": "a"}, "vectors": "prompts"}, "expected a text with one"),
        ({"scheduler": "tcp://here", "workers": 2}, "pass workers or scheduler, not both"),
        ({"parts": ["noun", "pronoun"]}, "expected some of adjective, noun, verb, adverb"),
        ({"parts": ["noun", "noun"]}, "each once"),
        ({"parts": []}, "expected some of"),
        ({"words": "all"}, "words is 'all'; expected one of captions, model, wordnet"),
        ({"vectors": "mean"}, "expected one of embeddings, prompts"),
        ({"edges": "none"}, "expected one of cooccurrence, neighbors, both, filled"),
        ({"neighbors": 0}, "neighbors is 0; expected an integer from 1"),
        ({"workers": 0}, "workers is 0"),
        ({"captions": []}, "no captions given; name at least one"),
        ({"max_words": 0}, "max_words is 0 for adjectives"),
        ({"max_words": {"verb": 3}}, "max_words names 'verb'; expected one of adjective, noun"),
        ({"picture": "a.txt"}, "expected a name that ends in"),
        ({"keep_words": "no/list.txt"}, r"the list of words no/list\.txt cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(captions, options, sentence):
    with pytest.raises(BuildError, match=sentence):
        build_prior(**{"plm": "no/model", "captions": [captions], **options})


@pytest.mark.usefixtures("nltk_data")
def test_the_summary_shows_what_is_near(flickr8k, minilm):
    summary = str(build_prior(minilm, [flickr8k], max_words=40))
    assert "nearest to red: blue" in summary
    assert "nearest to dog: " in summary


@pytest.mark.usefixtures("nltk_data")
def test_a_picture_comes_with_the_prior_and_an_existing_one_is_refused_before_any_work(captions, tiny_bert, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    picture = tmp_path / "prior.png"
    build_prior(tiny_bert, [captions], min_count=0, picture=picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(BuildError, match=r"prior\.png exists; pass force=True"):
        build_prior("no/model", [captions], picture=picture)
