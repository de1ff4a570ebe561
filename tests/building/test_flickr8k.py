"""The figures of the authors' recipe on the Flickr8k captions, and the shipped prior built again from them."""

import pytest

from vqct_plugin.building.build import assemble_prior, read_words
from vqct_plugin.building.captions import Captions
from vqct_plugin.building.counting import count_captions
from vqct_plugin.building.tagging import PARTS
from vqct_plugin.building.vectors import InputEmbeddings, LanguageModel
from vqct_plugin.building.wordnet import WordNetGlosses, list_wordnet_words
from vqct_plugin.prior import DEFAULT_FILE, CodebookPrior


@pytest.fixture(scope="module")
def corpus(flickr8k):
    return Captions(flickr8k)


@pytest.fixture(scope="module")
def counts(corpus, nltk_data):
    return count_captions([corpus])  # some 12 s


def sizes(counts):
    return {part: len(words) for part, words in counts.words.items()}


def test_every_caption_is_read(corpus, counts):
    assert (corpus.format, corpus.captions, corpus.damaged, corpus.mended) == ("flickr", 40_460, 0, 3)


def test_the_words_and_pairs_before_the_threshold(counts):
    assert sizes(counts) == {"adjective": 2_251, "noun": 4_726}
    assert sum(counts.pairs["adjective", "noun"].values()) == 32_972


def test_the_words_and_pairs_seen_more_than_ten_times(counts):
    kept = counts.more_than(10)
    assert sizes(kept) == {"adjective": 244, "noun": 1_032}
    assert len(kept.pairs["adjective", "noun"]) == 5_029
    assert sum(kept.pairs["adjective", "noun"].values()) == 28_142


def test_the_shipped_prior_is_what_its_recipe_gives(counts, minilm):
    whole = count_captions([WordNetGlosses()])  # some 20 s
    whole.merge(counts)
    kept = whole.among(list_wordnet_words(PARTS)).without(read_words(DEFAULT_FILE.parent / "not-visible.txt"))
    most = {"adjective": 6_384, "noun": 10_000}
    near = {"edges": "filled", "neighbors": 3}
    built, unknown = assemble_prior(
        kept, InputEmbeddings(LanguageModel(minilm)), {}, most=most, dtype="float16", **near
    )
    shipped = CodebookPrior.load("default")
    assert unknown == []
    assert built.words == shipped.words
    assert built.fingerprint == shipped.fingerprint
