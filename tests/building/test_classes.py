"""Class lists as they are published are a source of words."""

import gzip
import json

import pytest

from vqct_plugin.building.build import build_prior
from vqct_plugin.building.classes import read_classes
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.wordnet import select_named

IMAGENET = ["tench, Tinca tinca", "great white shark, white shark, Carcharodon carcharias", "man-eater", "Persian cat"]
EXPECTED = ["tench", "tinca", "great", "white", "shark", "carcharodon", "carcharias", "man-eater", "persian", "cat"]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(IMAGENET),
        "\n".join(f"n0144076{i} {name}" for i, name in enumerate(IMAGENET)),
        "{" + "\n".join(f"{i}: '{name}'," for i, name in enumerate(IMAGENET)) + "}",
        "\n".join(f"n0144076{i} {i} {name.replace(' ', '_')}" for i, name in enumerate(IMAGENET)),
        "\r\n".join(f"{i}\t{name}" for i, name in enumerate(IMAGENET)),
        json.dumps({str(i): [f"n0144076{i}", name.replace(" ", "_")] for i, name in enumerate(IMAGENET)}),
        json.dumps(IMAGENET),
        json.dumps({name: i for i, name in enumerate(IMAGENET)}),
        json.dumps([{"id": i, "name": name} for i, name in enumerate(IMAGENET)]),
    ],
)
def test_the_words_of_a_list_whatever_stands_beside_them(tmp_path, text):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    assert read_classes(path) == EXPECTED
    path.write_bytes(gzip.compress(text.encode("utf-16")))
    assert read_classes(path) == EXPECTED


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has no word in it"),
        (b"0 1 2 n01440764", "has no word in it"),
        (b"\xff\xff", "cannot be read"),
        (b"<html>", "it is a web page"),
        (b"version https://git-lfs.github.com", "Git LFS"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, sentence):
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(BuildError, match=rf"the list of classes .*classes\.txt.*{sentence}"):
        read_classes(path)
    with pytest.raises(BuildError, match=r"cannot be read: .*No such file"):
        read_classes(tmp_path / "none")


@pytest.mark.usefixtures("nltk_data")
def test_what_wordnet_knows_as_a_common_word_is_a_code():
    words = [*EXPECTED, "poppies", "sunglasses", "happiness"]
    assert select_named(words, ("adjective", "noun")) == {
        "adjective": ["great", "white"],
        "noun": ["cat", "man-eater", "poppy", "shark", "sunglasses", "tench", "white"],
    }


@pytest.mark.usefixtures("nltk_data")
def test_a_prior_of_class_names(tiny_bert, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("red dog, Canis\nblack cat\nzebra\nphoto album\n")
    (tmp_path / "captions.txt").write_text("a red dog\na red dog\na green dog on the grass\n")
    prior = build_prior(tiny_bert, [tmp_path / "captions.txt"], classes=path).prior
    counts = {(word, prior.parts[part]): n for word, part, n in zip(prior.words, prior.part_of_speech, prior.count)}
    seen = {("red", "adjective"): 2, ("black", "adjective"): 0, ("dog", "noun"): 3, ("cat", "noun"): 0}
    assert seen.items() <= counts.items()
    assert set(prior.words) == {"red", "black", "dog", "cat"}
    assert prior.edge_count.tolist() == [2]
    assert prior.provenance["words"] == "classes"
    assert prior.provenance["classes"]["file"] == "classes.txt"
    for options in ({"words": "classes"}, {"words": "model", "classes": path}):
        with pytest.raises(BuildError, match="a list of classes makes words='classes'"):
            build_prior(tiny_bert, **options)
