"""What is claimed of the prior that the package ships."""

import hashlib

import numpy as np
import pytest

from vqct_plugin.building.build import read_words
from vqct_plugin.prior import DEFAULT_FILE, CodebookPrior


@pytest.fixture(scope="module")
def prior():
    return CodebookPrior.load("default")


def cosine(prior, word, other):
    """Of two words; one that is both adjective and noun has the same vector in both."""
    rows = [[i for i, w in enumerate(prior.words) if w == name] for name in (word, other)]
    assert all(rows), f"{word} or {other} is not in the prior"
    a, b = (prior.vectors[r[0]].astype(np.float64) for r in rows)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_its_readme_names_this_very_file():
    digest = hashlib.sha256(DEFAULT_FILE.read_bytes()).hexdigest()
    assert digest in (DEFAULT_FILE.parent / "README.md").read_text(encoding="utf-8")


def test_it_is_small_and_has_the_words_it_is_said_to_have(prior):
    assert DEFAULT_FILE.stat().st_size < 15e6
    assert prior.sizes == {"adjective": 6_384, "noun": 10_000}
    assert prior.vectors.shape == (16_384, 384)
    assert prior.vectors.dtype == np.float16
    assert prior.edges.shape == (2, 60_512)
    assert prior.count.min() >= 1


@pytest.mark.parametrize("n_e", [7, 8, 20, 100, 256, 1000, 1024, 2048, 4096, 6207, 8192, 10_001, 16_384])
def test_every_code_has_relatives_in_whichever_number_is_taken(prior, n_e):
    chosen = prior.select(n_e)
    assert np.bincount(chosen.edges.reshape(-1), minlength=n_e).min() >= 3


def test_the_added_edges_count_once_and_the_others_are_what_was_seen(prior):
    """By the figures of the README: 17,482 edges of 47,570 occurrences, and one more for each edge that was added."""
    readme = (DEFAULT_FILE.parent / "README.md").read_text(encoding="utf-8")
    assert "60,512 distinct adjective-noun edges: 17,482" in readme
    assert "43,030 more" in readme
    assert prior.edge_count.sum() == 47_570 + 43_168
    assert "each word with fewer than 3 such relatives" in prior.provenance["edges"]


def test_it_says_where_it_comes_from_and_names_no_path(prior):
    assert prior.provenance["language_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert prior.provenance["captions"][0]["file"] == "flickr8k.token.txt"
    assert len(prior.provenance["captions"][0]["sha256"]) == 64
    names = (prior.provenance["captions"][0]["file"], prior.provenance["drop_words"]["file"])
    assert not any("/" in name or "\\" in name for name in names)


@pytest.mark.parametrize(
    ("word", "near", "far"),
    [
        ("orange", ["yellow", "red"], ["blue", "wheel"]),
        ("orange", ["yellow", "red", "purple", "blue", "green", "pink"], ["wheel", "dog", "street"]),
        ("beak", ["bird", "feather"], ["wheel", "car", "beard"]),
        ("wheel", ["tire", "bike"], ["feather", "beak", "bird"]),
        ("dog", ["puppy", "cat", "horse"], ["car", "wheel"]),
        ("car", ["vehicle", "truck"], ["dog", "bird"]),
        ("snow", ["ice", "rain"], ["sand", "dog"]),
        ("grass", ["lawn", "grassy"], ["car", "dog"]),
        ("wooden", ["wood"], ["metal", "stone", "dog"]),
        ("shirt", ["jacket", "sweater"], ["mountain", "wheel"]),
        ("river", ["lake", "stream"], ["dog", "shirt"]),
    ],
)
def test_words_of_like_things_have_vectors_alike(prior, word, near, far):
    """The claim of the paper's Figure 1."""
    assert min(cosine(prior, word, other) for other in near) > max(cosine(prior, word, other) for other in far)


def test_the_nearest_of_orange_are_colors_and_of_beak_parts_of_animals(prior):
    common = prior.select(4096)  # rarer words have many pieces, and are near to what is spelled like them

    def nearest(word):
        others = {other for other in common.words if other != word}
        return sorted(others, key=lambda other: -cosine(common, word, other))[:5]

    # "purple-red" and "red-purple" are the same pieces: which of them is first is rounding, and another machine's
    assert nearest("orange")[:2] == ["orange-red", "yellow"]
    assert set(nearest("orange")) == {"orange-red", "yellow", "purple-red", "red-purple", "purple"}
    assert nearest("beak") == ["snout", "plumage", "muzzle", "swallow", "bird"]
    assert nearest("dog")[:3] == ["puppy", "animal", "pet"]


def test_any_common_config_fits(prior):
    for n_e in (256, 1024, 4096, 8192, 16_384):
        assert len(prior.select(n_e)) == n_e


def test_adjectives_stand_before_the_nouns_they_describe(prior):
    assert prior.neighbors("grass", "noun")[0] == ("green", "adjective", 167)
    assert prior.neighbors("striped", "adjective")[0] == ("shirt", "noun", 61)
    assert {edge.word for edge in prior.neighbors("dog", "noun")[:3]} == {"black", "brown", "white"}


def test_the_1024_commonest_are_words_of_things_seen(prior):
    small = prior.select(1024)
    named = set(zip(small.words, (small.parts[p] for p in small.part_of_speech)))
    assert not named & read_words(DEFAULT_FILE.parent / "not-visible.txt")
    unseen = {"such", "important", "political", "common", "state", "government", "genus", "theory", "atom", "part"}
    assert not unseen & set(small.words)
    assert {("red", "adjective"), ("striped", "adjective"), ("dog", "noun"), ("grass", "noun")} <= named
    assert small.sizes == {"adjective": 399, "noun": 625}
