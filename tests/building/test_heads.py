"""Files beside captions: told by their beginnings, before anything is tagged."""

import doctest
import io
import json
import re
import tarfile

import numpy as np
import pytest

from tests.building.test_captions import in_format, written
from vqct_plugin.building import captions as captions_module
from vqct_plugin.building import heads
from vqct_plugin.building.captions import Captions, open_captions
from vqct_plugin.building.formats import BuildError

CAPTIONS = [f"A {color} {animal} is running on the grass ." for color in ("red", "black", "brown") for animal in
            ("dog", "cat", "horse", "goat", "cow", "sheep")]  # fmt: skip
IMAGES = [f"10002682{number:02}_693b08cb0e.jpg" for number in range(18)]
README = """If you use this corpus / data:

Please cite: M. Hodosh, P. Young and J. Hockenmaier (2013) "Framing Image Description as a Ranking Task"
http://www.jair.org/papers/paper3994.html

Captions, Dataset Splits, and Human Annotations :

Flickr8k.token.txt - the raw captions of the Flickr8k Dataset .
Flickr8k.lemma.txt - the lemmatized version of the above captions
ExpertAnnotations.txt is the expert judgments. The first two columns are the image and caption IDs.
"""


def lemmas(caption):
    return caption.lower().replace("is running", "be run")


def flickr(captions, images=IMAGES):
    return "".join(f"{image}#0\t{caption}\n" for image, caption in zip(images, captions))


SCORES = [(image, other, 1, 1, 4) for image, other in zip(IMAGES, IMAGES[::-1])]
SIDE = {
    "Flickr_8k.trainImages.txt": ("\n".join(IMAGES), "names of images"),
    "ExpertAnnotations.txt": ("".join("{}\t{}#2\t{}\t{}\t{}\n".format(*line) for line in SCORES), "names and numbers"),
    "CrowdFlowerAnnotations.txt": ("".join(f"{a}\t{a}#2\t0.33\t1\t2\n" for a in IMAGES), "names and numbers"),
    "train_test_split.txt": ("".join(f"{number} 1\n" for number in range(99)), "numbers"),
    "classes.txt": ("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n", "names and numbers"),
    "readme.txt": (README, "about the data"),
    "Flickr8k.lemma.token.txt": (flickr(map(lemmas, CAPTIONS)), "the captions of Flickr8k.token.txt again"),
}  # fmt: skip
TOKEN = flickr(CAPTIONS)


def folder_of(tmp_path, files):
    for name, content in files.items():
        written(tmp_path, content, f"folder/{name}")
    return tmp_path / "folder"


def tar_of(tmp_path, files, mode="w"):
    with tarfile.open(str(tmp_path / "folder.tar"), mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"text/{name}")
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    return tmp_path / "folder.tar"


def test_flickr8ks_folder_is_its_captions_each_once(tmp_path):
    folder = folder_of(tmp_path, {"Flickr8k.token.txt": TOKEN, **{name: side[0] for name, side in SIDE.items()}})
    corpus = Captions(folder)
    assert corpus.passed_over == {name: side[1] for name, side in SIDE.items()}
    assert list(corpus) == CAPTIONS
    assert corpus.describe()["passed_over"] == 7
    (line,) = [line for line in corpus.summary() if "ignored" in line]
    assert line.startswith("  7 other files in the folder ignored: CrowdFlowerAnnotations.txt (names and numbers), ")
    assert "readme.txt (about the data)" in line


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_so_is_an_archive_of_it(tmp_path, mode):
    files = {"a/Flickr8k.token.txt": TOKEN, **{f"a/{name}": side[0] for name, side in SIDE.items()}}
    corpus = Captions(tar_of(tmp_path, files, mode))
    names = {f"text/a/{name}": side[1].replace("of Fl", "of text/a/Fl") for name, side in SIDE.items()}
    assert corpus.passed_over == names
    assert list(corpus) == CAPTIONS
    assert "  7 other files in the archive ignored: text/a/CrowdFlower" in "\n".join(corpus.summary())
    assert list(Captions(tmp_path)) == CAPTIONS  # the archive in a folder


def test_an_archive_from_standard_input_is_looked_at_as_it_comes(tmp_path, monkeypatch):
    files = {"1.txt": SIDE["ExpertAnnotations.txt"][0], "2.txt": TOKEN, "readme.txt": README}
    for content, sentence in ((files, None), ({**files, "3.txt": README}, r"text/3\.txt: no captions but prose")):
        data = tar_of(tmp_path, content).read_bytes()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        corpus = Captions("-")
        if sentence is None:
            assert list(corpus) == CAPTIONS
            assert corpus.ignored == 2
        else:
            with pytest.raises(BuildError, match=sentence):
                list(corpus)


@pytest.mark.parametrize("name", [name for name in SIDE if "lemma" not in name])
def test_by_itself_it_is_refused_and_named(tmp_path, name):
    content, what = SIDE[name]
    what = what if name != "readme.txt" else "prose about files and data"
    sentence = (
        rf"captions in {re.escape(name)}: no captions but {what} in its first \d+ lines or records, read as text: "
    )
    with pytest.raises(BuildError, match=sentence):
        open_captions([written(tmp_path, content, name)])


@pytest.mark.parametrize("make", [folder_of, tar_of])
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("SplitInfo.txt", README, r"SplitInfo\.txt: no captions but prose about files and data in its first"),
        ("z.csv", "caption,n\n" + ",1\n".join([*IMAGES, ""]), r"z\.csv: no captions but names of images"),
        ("z.json", '[{"id": 1}, {"id": 2}]', r"z\.json: no caption in its first 2 lines or records"),
        ("z.csv", "image,text\n1,A dog\n", r"z\.csv: no column 'caption'"),
        ("z.txt", "<html>", r"z\.txt: it is a web page"),
    ],
)  # fmt: skip
def test_what_is_not_plainly_beside_captions_is_refused_before_any_is_read(tmp_path, make, name, content, sentence):
    with pytest.raises(BuildError, match=sentence):
        Captions(make(tmp_path, {"a.txt": "\n".join(CAPTIONS), name: content}))


def test_of_cocos_folder_and_archive_only_captions_are_read(tmp_path):
    boxes = json.dumps({"images": [{"id": 1}], "annotations": [{"bbox": [1, 2]}, {"bbox": [3, 4]}]})
    files = {"captions_val2014.json": in_format("coco", CAPTIONS).decode(), "instances_val2014.json": boxes,
             "person_keypoints_val2014.json": boxes}  # fmt: skip
    for path in (folder_of(tmp_path, files), tar_of(tmp_path, files)):
        corpus = Captions(path)
        assert [name.rsplit("/", 1)[-1] for name in corpus.passed_over] == [*files][1:]
        assert list(corpus) == CAPTIONS
    del files["captions_val2014.json"]
    (tmp_path / "folder" / "captions_val2014.json").unlink()
    for path in (tmp_path / "folder", tar_of(tmp_path, files)):
        with pytest.raises(BuildError, match=r"none in it, but .*instances_val2014\.json \(no captions\)"):
            Captions(path)


def test_a_folder_of_side_files_alone_is_refused_and_says_what_they_are(tmp_path):
    folder = folder_of(tmp_path, {"a.txt": "\n".join(IMAGES), "readme.txt": README})
    with pytest.raises(BuildError, match=r"none in it, but a\.txt \(names of images\), readme\.txt \(about the data\)"):
        Captions(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(BuildError, match=r"none of its 1 files .*, except readme\.txt \(about the data\)"):
        Captions(folder)


@pytest.mark.parametrize(
    "lines",
    [
        ["dog", "cat", "sea"],
        ["red dog", "blue car 2"],
        ["a 12-year-old boy", "3 dogs", "it is 7.30"],
        ["A dog .", IMAGES[0]],
        ["两个年轻的白人男子在外面靠近灌木丛。"] * 2,
        ["दो युवा पुरुष बाहर हैं", "एक छोटी लड़की"],
        ["a license plate", "a caption under a picture", *CAPTIONS],  # words of a readme, in a few captions
        ["see http://a.b/c.jpg", "a dog"],
        ["A red car with a license plate ."] * 3 + ["A car ."] * 2,
        ["Sunset over sea", "Copyright John", "www.john.com", "license: see there"],
        ["a meme of a dog with the caption runs"] * 20,
    ],
)
def test_captions_are_captions(lines):
    assert heads.find_flaw(lines, "text") is None


def test_prose_can_be_said_to_be_captions(tmp_path):
    assert len(list(Captions(written(tmp_path, README, "a.txt"), "text"))) == 7


@pytest.mark.parametrize("name", ["a.lemma.txt", "lemmatized.txt", "a_stemmed.txt", "x-tokenized.txt"])
def test_captions_that_a_tool_rewrote_count_once_in_a_folder(tmp_path, name):
    files = {name: flickr(map(lemmas, CAPTIONS[::-1]), IMAGES[::-1]), "token.txt": TOKEN}
    corpus = Captions(folder_of(tmp_path, files))
    assert corpus.passed_over == {name: "the captions of token.txt again"}
    assert list(corpus) == CAPTIONS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a.txt", "\n".join(CAPTIONS)), ("b.txt", "\n".join(CAPTIONS))),
        (("a.csv", in_format("csv", CAPTIONS).decode()), ("b.txt", "\n".join(map(str.upper, CAPTIONS)))),
        (("system.txt", "\n".join(CAPTIONS * 50)), ("sample.txt", "\n".join(CAPTIONS))),  # the whole and its beginning
    ],
)
def test_files_that_begin_alike_are_warned_of_and_all_counted(tmp_path, caplog, one, other):
    folder = folder_of(tmp_path, dict([one, other]))
    both = sum(len(list(Captions(folder / name))) for name, _ in (one, other))
    for paths in ([folder], [folder / one[0], folder / other[0]]):
        caplog.clear()
        assert sum(len(list(corpus)) for corpus in open_captions(paths)) == both
        (message,) = caplog.messages
        assert re.search(r"captions in \S*(txt|csv) and \S*(txt|csv) begin alike", message)


def test_captions_of_few_words_and_of_the_same_images_are_not_taken_for_the_same(tmp_path, caplog):
    rng = np.random.default_rng(0)
    kinds = [f"a photo of a {name}" for name in ("cat", "dog", "bird", "ship", "frog", "deer", "car", "horse")]
    shuffled = ("\n".join(rng.choice(kinds, 300)) for _ in range(2))
    others = [f"There is an animal of kind {number} in a field" for number in range(18)]
    corpora = [
        folder_of(tmp_path / "1", dict(zip(("train.txt", "val.txt"), shuffled))),
        folder_of(tmp_path / "2", {"human.token.txt": TOKEN, "model.token.txt": flickr(others)}),
    ]
    assert [len(list(open_captions([path])[0])) for path in corpora] == [600, 36]
    assert not caplog.messages


def test_files_of_classes_are_not_taken_for_what_lies_beside_data(tmp_path):
    names = ["license_plate", "notice_board", "copying machine", "manifest_1", "sha256_0001"]
    corpus = Captions(folder_of(tmp_path, {f"{name}.txt": "\n".join(CAPTIONS) for name in names}))
    assert len(list(corpus)) == len(names) * len(CAPTIONS)


def test_a_member_that_is_twice_in_an_archive_is_read(tmp_path):
    path = tar_of(tmp_path, {"a.txt": "\n".join(CAPTIONS)})
    with tarfile.open(str(path), "a") as archive:
        member = tarfile.TarInfo("text/a.txt")
        member.size = len("\n".join(CAPTIONS))
        archive.addfile(member, io.BytesIO("\n".join(CAPTIONS).encode()))
    assert set(open_captions([path])[0]) == set(CAPTIONS)


def test_odd_lines_before_the_captions_do_not_decide(tmp_path):
    odd = [*map(str, range(120)), *(f"{number}.jpg" for number in range(110))]
    corpus = Captions(folder_of(tmp_path, {"a.txt": "\n".join([*odd, *CAPTIONS * 100]), "b.txt": "\n".join(CAPTIONS)}))
    assert not corpus.passed_over
    assert set(CAPTIONS) < set(corpus)


def test_who_names_one_file_and_its_format_is_believed(tmp_path):
    lines = [f"color=red object=cube{number}" for number in range(60)]
    path = written(tmp_path, "\n".join(lines))
    with pytest.raises(BuildError, match="names and numbers"):
        Captions(path)
    assert list(Captions(path, "text")) == lines


def test_files_that_are_alike_in_part_are_all_counted(tmp_path):
    files = {"a.txt": "\n".join(CAPTIONS[:12]), "b.txt": "\n".join(CAPTIONS[6:]), "c.txt": "\n".join(CAPTIONS[:5]),
             "d.txt": "\n".join(CAPTIONS[:5])}  # fmt: skip
    corpus = open_captions([folder_of(tmp_path, files)])[0]
    assert len(list(corpus)) == 34
    assert not corpus.passed_over
    assert not corpus.heads  # only kept to be compared
    assert not Captions(tmp_path / "folder" / "c.txt").heads  # too small for that: an archive may have a million such


def test_of_each_file_only_the_beginning_is_read_before_the_work(tmp_path, monkeypatch):
    path = written(tmp_path, "\n".join(f"A dog and a cat on the grass number {i}" for i in range(50_000)))
    read = []
    more = captions_module.Watched.readinto

    def watch(self, buffer):
        read.append(more(self, buffer))
        return read[-1]

    monkeypatch.setattr(captions_module.Watched, "readinto", watch)
    Captions(path)
    assert sum(read) < 200_000 < path.stat().st_size


def test_the_examples_hold():
    assert doctest.testmod(heads).failed == 0
