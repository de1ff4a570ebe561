import pytest

from vqct_plugin.building.vectors import LanguageModel
from vqct_plugin.building.wordnet import WordNetGlosses, list_wordnet_words, select_known

pytestmark = pytest.mark.usefixtures("nltk_data")
PARTS = ("adjective", "noun")


@pytest.fixture(scope="module")
def of_bert(minilm, nltk_data):
    """MiniLM has the vocabulary of bert-base-uncased."""
    return select_known(LanguageModel(minilm).whole_words(), PARTS)


def test_the_words_of_berts_vocabulary(of_bert):
    assert {part: len(words) for part, words in of_bert.items()} == {"adjective": 4_094, "noun": 7_286}
    assert {"red", "wooden", "striped", "furry"} <= set(of_bert["adjective"])
    assert {"dog", "wheel", "feather", "beak", "snow", "orange"} <= set(of_bert["noun"])
    assert "orange" in of_bert["adjective"]


def test_words_for_what_cannot_be_seen_and_slips_of_part_of_speech_are_left_out(of_bert):
    assert not {"theory", "jealousy", "sadness"} & set(of_bert["noun"])
    assert not {"then", "about", "world"} & set(of_bert["adjective"])  # adjectives in WordNet, hardly ever in texts
    assert not {"be", "have", "go"} & set(of_bert["noun"])


def test_only_words_in_lower_case_that_wordnet_has():
    found = select_known(
        ["dog", "Dog", "dogs", "gril", "##og", "a", "snow-white", "dog's", "42", "\u0142\u00f3d\u017a"], PARTS
    )
    assert found == {"adjective": ["snow-white"], "noun": ["dog"]}


def test_other_parts_of_speech_come_on_request():
    assert select_known(["run", "quickly", "red"], ("verb", "adverb")) == {"verb": ["run"], "adverb": ["quickly"]}


def test_wordnets_own_words_are_single_and_no_names():
    words = list_wordnet_words(PARTS)
    assert {part: len(found) for part, found in words.items()} == {"adjective": 19_929, "noun": 24_177}
    assert {"dachshund", "feather", "staircase"} <= set(words["noun"])
    assert not {"paris", "einstein", "ice_cream", "theory"} & set(words["noun"])
    assert words == {part: sorted(set(found)) for part, found in words.items()}


def test_glosses_are_a_corpus_of_definitions_and_examples():
    from nltk.corpus import wordnet

    glosses = WordNetGlosses()
    texts = list(glosses)
    assert len(texts) == glosses.captions == 96_025
    dog, red, theory = (wordnet.synset(name) for name in ("dog.n.01", "red.a.01", "theory.n.01"))
    assert {dog.definition(), *dog.examples(), red.definition()} <= set(texts)
    assert theory.definition() not in texts
    first = glosses.describe()
    assert list(glosses) == texts
    assert glosses.describe() == first
    assert first["captions"] == 96_025
