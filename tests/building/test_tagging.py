import pytest

from vqct_plugin.building import tagging
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.tagging import CaptionTagger, DensePerceptron, WordCounts, is_in_wordnet, make_lemmatizer

CAPTIONS = [
    "A Black dog chases two small orange cats near the red and white geese .",
    "Two women's bright hats ; a man in a blue - green jacket can't swim .",
    "Children playing",
]
A, N, V, R = "adjective", "noun", "verb", "adverb"


def counted(*captions, parts=(A, N)):
    counts = WordCounts(parts)
    for caption in captions:
        counts.add(caption)
    return counts


def test_an_edge_is_an_adjective_with_a_noun_as_the_very_next_token():
    counts = counted(
        [("the", None), ("big", A), ("red", A), ("barn", N), ("door", N), ("old", A), ("and", None), ("tree", N)],
        [("tree", N), ("red", A)],
        [("barn", N), ("red", A), ("barn", N)],  # the caption before ended in an adjective: no edge across
    )
    assert counts.words == {A: {"big": 1, "red": 3, "old": 1}, N: {"barn": 3, "door": 1, "tree": 2}}
    assert counts.pairs == {(A, N): {("red", "barn"): 2}}


def test_verbs_and_adverbs_have_edges_of_their_own_and_change_nothing_else():
    caption = [("very", R), ("big", A), ("dog", N), ("run", V), ("fast", R), ("catch", V), ("ball", N), ("red", A)]
    counts = counted(caption, parts=(A, N, V, R))
    assert {edge: dict(pairs) for edge, pairs in counts.pairs.items()} == {
        (A, N): {("big", "dog"): 1},
        (N, V): {("dog", "run"): 1},
        (V, N): {("catch", "ball"): 1},
        (R, A): {("very", "big"): 1},
        (R, V): {("fast", "catch"): 1},
        (V, R): {("run", "fast"): 1},
    }
    assert counted(caption).words == {part: counts.words[part] for part in (A, N)}
    assert counted(caption).pairs == {(A, N): counts.pairs[A, N]}
    assert counted(caption, parts=(V, A)).pairs == {}  # no edge between these two


def test_thresholds_keep_words_seen_more_often_and_the_pairs_among_them():
    counts = counted(*[[("red", A), ("dog", N)]] * 3, [("red", A), ("cat", N)])
    assert counts.more_than(3).words == {A: {"red": 4}, N: {}}
    assert counts.more_than(2).pairs == {(A, N): {("red", "dog"): 3}}
    assert counts.more_than(0) == counts
    assert counts.without({("red", N), ("dog", N)}).pairs == {(A, N): {("red", "cat"): 1}}
    assert counts.commonest({N: 1}).words == {A: {"red": 4}, N: {"dog": 3}}
    assert counts.commonest({A: 9}) == counts
    among = counts.among({A: ["blue", "red"], N: ["cat"]})
    assert among.words == {A: {"red": 4, "blue": 0}, N: {"cat": 1}}
    assert among.pairs == {(A, N): {("red", "cat"): 1}}
    assert among.more_than(-1) == among


def test_of_equally_common_words_the_first_by_spelling_are_kept():
    words = ["wren", "ant", "zebu", "cow"]
    assert set(counted([(word, N) for word in words]).commonest({N: 2}).words[N]) == {"ant", "cow"}


def test_merging_counts_is_counting_it_all():
    captions = [[("red", A), ("dog", N)], [("dog", N), ("red", A), ("cat", N)]]
    merged = counted(captions[0])
    merged.merge(counted(captions[1]))
    assert merged == counted(*captions)


def test_words_that_are_renamed_to_one_add_up():
    counts = counted([("red", A), ("dogs", N)], [("red", A), ("dog", N), ("red", N)])
    renamed = counts.rename(lambda word, part: word.rstrip("s") if part == N else word.upper())
    assert renamed.words == {A: {"RED": 2}, N: {"dog": 2, "red": 1}}
    assert renamed.pairs == {(A, N): {("RED", "dog"): 2}}


@pytest.mark.usefixtures("nltk_data")
def test_tags_and_lemmas_are_those_of_nltks_own_functions():
    import nltk
    from nltk.stem import WordNetLemmatizer

    tagger, lemma, theirs = CaptionTagger(), make_lemmatizer(), WordNetLemmatizer().lemmatize
    letters = {"NN": (N, "n"), "VB": (V, "v")}
    for caption in CAPTIONS:
        expected = []
        for token, tag in nltk.pos_tag(nltk.word_tokenize(caption.lower(), preserve_line=True)):
            if tag in ("JJ", "RB"):
                expected.append((token, A if tag == "JJ" else R))
            elif tag[:2] in letters:
                part, letter = letters[tag[:2]]
                expected.append((theirs(token, letter), part))
            else:
                expected.append((token, None))
        assert [(lemma(token, part) if part else token, part) for token, part in tagger(caption)] == expected
    assert ("geese", N) in tagger(CAPTIONS[0])
    assert lemma("geese", N) == "goose"
    assert lemma("chases", V) == "chase"
    assert lemma("better", A) == "better"


def test_the_dense_model_breaks_ties_as_nltks_own():
    from nltk.tag.perceptron import AveragedPerceptron

    theirs = AveragedPerceptron({"f": {"NN": 1.0, "JJ": 1.0}, "g": {"RB": 2.0}})
    theirs.classes = {"JJ", "NN", "RB", "VB"}
    for features in ({"f": 1}, {"f": 1, "g": 1}, {"h": 1}):
        assert DensePerceptron(theirs).predict(features)[0] == theirs.predict(features)[0]


@pytest.mark.usefixtures("nltk_data")
def test_the_dense_model_tags_as_nltks_own(flickr8k):
    from nltk.tag.perceptron import PerceptronTagger
    from nltk.tokenize import word_tokenize

    theirs, ours = PerceptronTagger(), CaptionTagger()._tagger
    lines = flickr8k.read_text(encoding="utf-8").splitlines()[::20]
    for line in lines:
        tokens = word_tokenize(line.split("\t")[-1], preserve_line=True)  # in upper case too, and the three without tab
        assert ours.tag(tokens) == theirs.tag(tokens)


@pytest.mark.usefixtures("nltk_data")
def test_a_token_with_an_invisible_character_is_no_code():
    assert all(part is None for token, part in CaptionTagger()("a re\u200bd do\u200bg") if "\u200b" in token)


@pytest.mark.usefixtures("nltk_data")
def test_wordnet_knows_words_by_part_of_speech():
    assert is_in_wordnet("orange", A)
    assert is_in_wordnet("orange", N)
    assert not is_in_wordnet("girl", A)
    assert not is_in_wordnet("retreiver", N)
    assert not is_in_wordnet("dogs", N)  # another form of a word that it knows
    assert is_in_wordnet("quickly", R)


def test_missing_data_is_asked_of_the_downloader_and_then_of_the_user(monkeypatch, tmp_path, caplog):
    import nltk

    asked = []
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk, "download", lambda name, **_: asked.append(name))
    with pytest.raises(BuildError, match=r"python -m nltk\.downloader averaged\w*\n(.|\n)*NLTK_DATA"):
        CaptionTagger()
    with pytest.raises(BuildError, match=r"python -m nltk\.downloader wordnet\n(.|\n)*NLTK_DATA"):
        make_lemmatizer()
    assert asked == ["averaged_perceptron_tagger_eng", "wordnet"]
    assert "trying NLTK's downloader" in caplog.text


def test_data_that_the_downloader_brings_is_enough(monkeypatch):
    import nltk

    answers = [["wordnet"], []]
    monkeypatch.setattr(tagging, "_missing_nltk_data", lambda wanted: answers.pop(0))
    monkeypatch.setattr(nltk, "download", lambda name, **_: True)
    tagging.ensure_nltk_data()
    assert answers == []
