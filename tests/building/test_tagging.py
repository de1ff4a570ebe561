import pytest

from vqct_plugin.building import tagging
from vqct_plugin.building.captions import BuildError
from vqct_plugin.building.tagging import CaptionTagger, WordCounts, known_to_wordnet

CAPTIONS = [
    "A Black dog chases two small orange cats near the red and white geese .",
    "Two women's bright hats ; a man in a blue - green jacket can't swim .",
    "Children playing",
]


def test_an_edge_is_an_adjective_with_a_noun_as_the_very_next_token():
    counts = WordCounts()
    a, n = "adjective", "noun"
    counts.add(
        [("the", None), ("big", a), ("red", a), ("barn", n), ("door", n), ("old", a), ("and", None), ("tree", n)]
    )
    counts.add([("tree", n), ("red", a)])
    counts.add([("barn", n), ("red", a), ("barn", n)])  # the caption before ended in an adjective: no edge across
    assert counts.words == {"adjective": {"big": 1, "red": 3, "old": 1}, "noun": {"barn": 3, "door": 1, "tree": 2}}
    assert counts.pairs == {("red", "barn"): 2}


def test_thresholds_keep_words_seen_more_often_and_the_pairs_among_them():
    counts = WordCounts()
    for _ in range(3):
        counts.add([("red", "adjective"), ("dog", "noun")])
    counts.add([("red", "adjective"), ("cat", "noun")])
    assert counts.more_than(3).words == {"adjective": {"red": 4}, "noun": {}}
    assert counts.more_than(2).pairs == {("red", "dog"): 3}
    assert counts.more_than(0) == counts
    assert counts.without({("red", "noun"), ("dog", "noun")}).pairs == {("red", "cat"): 1}


@pytest.mark.usefixtures("nltk_data")
def test_words_are_those_of_nltks_own_functions():
    import nltk
    from nltk.stem import WordNetLemmatizer

    tagger, lemma = CaptionTagger(), WordNetLemmatizer().lemmatize
    for caption in CAPTIONS:
        expected = []
        for token, tag in nltk.pos_tag(nltk.word_tokenize(caption.lower(), preserve_line=True)):
            if tag == "JJ":
                expected.append((token, "adjective"))
            elif tag in ("NN", "NNS", "NNP", "NNPS"):
                expected.append((lemma(token, "n"), "noun"))
            else:
                expected.append((token, None))
        assert tagger(caption) == expected
    assert ("goose", "noun") in tagger(CAPTIONS[0])


@pytest.mark.usefixtures("nltk_data")
def test_wordnet_knows_words_by_part_of_speech():
    assert known_to_wordnet("orange", "adjective")
    assert known_to_wordnet("orange", "noun")
    assert not known_to_wordnet("girl", "adjective")
    assert not known_to_wordnet("retreiver", "noun")
    assert not known_to_wordnet("dogs", "noun")  # another form of a word that it knows


def test_missing_data_is_asked_of_the_downloader_and_then_of_the_user(monkeypatch, tmp_path, capsys):
    import nltk

    asked = []
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk, "download", lambda name, **_: asked.append(name))
    with pytest.raises(BuildError, match=r"python -m nltk\.downloader averaged\w* wordnet\n(.|\n)*NLTK_DATA"):
        CaptionTagger()
    assert asked == ["averaged_perceptron_tagger_eng", "wordnet"]
    assert "trying NLTK's downloader" in capsys.readouterr().err


def test_data_that_the_downloader_brings_is_enough(monkeypatch):
    import nltk

    answers = [["wordnet"], []]
    monkeypatch.setattr(tagging, "_missing_nltk_data", lambda: answers.pop(0))
    monkeypatch.setattr(nltk, "download", lambda name, **_: True)
    tagging.ensure_nltk_data()
    assert answers == []
