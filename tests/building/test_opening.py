"""What captions come packed in, the JSON and tables that people publish, and what is refused as no captions."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile

import pytest

from tests.building.test_captions import THREE, in_format, written
from vqct_plugin.building.captions import Captions, open_captions
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.opening import Ahead, DamagedFileError


def zstd(content):
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.compress(content, codec="zstd", asbytes=True)


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("form", ["text", "flickr", "coco", "jsonl", "csv"])
def test_compressed_captions_are_told_by_their_bytes(tmp_path, form, packing):
    content = PACK[packing](in_format(form, THREE))
    corpus = Captions(written(tmp_path, content, "captions"))
    assert list(corpus) == THREE
    assert (corpus.format, corpus.bytes_read) == (form, len(content))
    written(tmp_path, content, f"folder/captions.json.{packing}")
    assert list(Captions(tmp_path / "folder", form)) == THREE


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_damage_of_compressed_files_is_told_of(tmp_path, packing):
    whole = PACK[packing](b"".join(b"A dog %d .\n" % i for i in range(40_000)))
    with pytest.raises(BuildError, match=r"captions in a: damaged (gzip after [1-9]|xz after [1-9]|bzip2: Comp)"):
        list(Captions(written(tmp_path, whole[:-20], "a")))
    with pytest.raises(BuildError, match=r"captions in a: damaged (gzip|bzip2|xz)"):
        Captions(written(tmp_path, whole[:10] + b"no more", "a"))


def test_zstd_without_a_package_is_a_sentence(tmp_path, monkeypatch):
    path = written(tmp_path, zstd(b"A dog ."), "a.zst")
    for package in ("zstandard", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BuildError, match=r"a\.zst: it is compressed by zstd.*pip install zstandard"):
        Captions(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", ["text", "coco", "csv"])
def test_utf_16_is_read(tmp_path, form, encoding):
    content = in_format(form, THREE).decode().encode(encoding)
    assert list(Captions(written(tmp_path, content))) == THREE
    assert list(Captions(written(tmp_path, gzip.compress(content)))) == THREE


def archive(files, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_archive_is_read_as_a_folder_is(tmp_path, mode):
    files = {
        "cub/b.txt": b"a blue bird\n\xff\n",
        "cub/a.jsonl": in_format("jsonl", ["a brown bird"]),
        "cub/c.txt.gz": gzip.compress(b"a gray bird"),
        "cub/a.jpg": b"\xff\xd8\xff",
        "cub/.hidden.txt": b"nothing",
    }
    corpus = Captions(written(tmp_path, archive(files, mode), "cub.tar"))
    assert list(corpus) == ["a blue bird", "a brown bird", "a gray bird"]
    assert corpus.format == "text, jsonl"
    assert corpus.first_damaged[0].startswith("cub/b.txt, line 2, not UTF-8")
    assert [*Captions(tmp_path)] == ["a blue bird", "a brown bird", "a gray bird"]
    whole = archive({"a.txt": b"A dog .\n" * 9000})
    with pytest.raises(BuildError, match="damaged tar"):
        list(Captions(written(tmp_path, whole[:40_000], "broken.tar")))
    pages = archive({"a.txt": b"a dog", "b.txt": b"<html>404"})
    with pytest.raises(BuildError, match=r"captions in pages\.tar: b\.txt: it is a web page"):
        Captions(written(tmp_path, pages, "pages.tar"))
    with pytest.raises(BuildError, match="no file in the archive ends in"):
        Captions(written(tmp_path, archive({"a.jpg": b"x"}), "none.tar"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html>\n<html><body>404", "a web page and not captions"),
        (b"\n  <html lang='en'>", "a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a Git LFS pointer.*git lfs pull",
        ),
        (b"PK\x03\x04\x14\x00", "a zip archive: unpack it"),
        (b"7z\xbc\xaf\x27\x1c\x00", "an archive: unpack it"),
        (b"Rar!\x1a\x07", "an archive"),
        (b"\x89PNG\r\n\x1a\n", "an image"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x80\x04\x95\x10", "a pickle"),
        pytest.param(gzip.compress(b"<html>"), "a web page", id="gzip"),  # its bytes hold the time, and an id may not
    ],
)
def test_what_is_no_file_of_captions_is_refused_by_name(tmp_path, content, what):
    with pytest.raises(BuildError, match=rf"captions in a\.txt: it is {what}"):
        Captions(written(tmp_path, content, "a.txt"))
    written(tmp_path, "a dog", "folder/1.txt")
    written(tmp_path, content, "folder/2.txt")
    with pytest.raises(BuildError, match=rf"captions in 2\.txt: it is {what}"):
        Captions(tmp_path / "folder")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("z.csv", b"image,text\n1,A dog\n", r"folder/z\.csv: no column 'caption'"),
        ("z.json", b'[{"id": 1}, {"id": 2}]', r"z\.json: no caption in its first 2 lines or records"),
        (
            "z.jsonl",
            b'{"id": 1}\n' * 300,
            r"z\.jsonl: no caption in its first 300 lines or records.*no 'caption' in it",
        ),
        ("z.parquet", b"PAR1", "no whole Parquet file"),
    ],
)
def test_a_wrong_file_of_a_folder_is_refused_before_any_is_read(tmp_path, name, content, sentence):
    written(tmp_path, "a dog\n" * 9, "folder/a.txt")
    written(tmp_path, content, f"folder/{name}")
    with pytest.raises(BuildError, match=sentence):
        open_captions([tmp_path / "folder"])


def test_cocos_folder_of_annotations_is_its_captions(tmp_path):
    for split in ("train", "val"):
        written(tmp_path, in_format("coco", [f"a {split} dog"]), f"annotations/captions_{split}2014.json")
        for other in ("instances", "person_keypoints"):
            content = json.dumps({"annotations": [{"bbox": [1, 2]}, {"bbox": [3, 4]}]})
            written(tmp_path, content, f"annotations/{other}_{split}2014.json")
    corpus = Captions(tmp_path / "annotations")
    assert list(corpus) == ["a train dog", "a val dog"]
    assert (corpus.files, corpus.ignored) == (2, 4)


KARPATHY = {
    "images": [
        {"filename": "a.jpg", "sentences": [{"tokens": ["a", "dog"], "raw": "A dog."}, {"raw": "Dogs."}]},
        {"filename": "b.jpg", "sentences": [{"tokens": ["a", "cat"], "raw": "A cat."}]},
    ],
    "dataset": "coco",
}  # fmt: skip


@pytest.mark.parametrize(
    ("document", "field", "captions"),
    [
        (KARPATHY, "caption", ["A dog.", "Dogs.", "A cat."]),
        ({"dataset": "flickr8k", **KARPATHY}, "sentences.raw", ["A dog.", "Dogs.", "A cat."]),
        ({"a.jpg": ["A dog.", "Dogs."], "b.jpg": ["A cat."]}, "caption", ["A dog.", "Dogs.", "A cat."]),
        ({"a.jpg": "A dog.", "b.jpg": "A cat."}, "caption", ["A dog.", "A cat."]),
        ({"a.jpg": {"caption": "A dog."}, "b.jpg": [{"caption": "A cat."}]}, "caption", ["A dog.", "A cat."]),
        ({"a.jpg": {"text": {"en": "A dog."}}}, "text.en", ["A dog."]),
        ([{"meta": {"texts": [{"en": "A dog."}, {"en": "Dogs."}]}}], "meta.texts.en", ["A dog.", "Dogs."]),
        ([{"a.b": "A dog."}], "a.b", ["A dog."]),
        ({"images": [{"id": 1}] * 9, "annotations": [{"caption": "A dog."}]}, "caption", ["A dog."]),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_json_as_people_publish_it(tmp_path, document, field, captions, indent):
    path = written(tmp_path, json.dumps(document, indent=indent), "captions.json")
    assert list(Captions(path, field=field)) == captions


def test_a_field_in_a_field_of_lines_and_of_parquet(tmp_path):
    records = [{"meta": {"text": "A dog."}}, {"meta": {"text": "A cat."}}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    assert list(Captions(written(tmp_path, lines, "a.jsonl"), field="meta.text")) == ["A dog.", "A cat."]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(records), str(tmp_path / "a.parquet"))
    assert list(Captions(tmp_path / "a.parquet", field="meta.text")) == ["A dog.", "A cat."]


def test_a_table_without_a_header_is_read_by_the_number_of_its_column(tmp_path):
    table = "A dog, sitting .\thttp://a/1\nA cat .\thttp://a/2\nonly one\n"
    for name in ("Train_GCC.tsv", "captions.txt"):
        corpus = Captions(written(tmp_path, table, name), field="1")
        assert list(corpus) == ["A dog, sitting .", "A cat ."]
        assert corpus.format == "tsv"
        assert corpus.first_damaged == ["line 3, 1 fields under a header of 2: 'only one'"]
    assert list(Captions(written(tmp_path, "a.jpg;A dog .\nb.jpg;A cat .\n", "a.csv"), field="2")) == [
        "A dog .",
        "A cat .",
    ]
    assert list(Captions(written(tmp_path, "1,2\nA dog .,x\n", "a.csv"), field="1")) == ["A dog ."]  # so called
    with pytest.raises(BuildError, match=r"no column 3; its first line has 2 columns, the first of them is 1"):
        Captions(written(tmp_path, table, "a.tsv"), field="3")


def test_linked_folders_are_read_and_no_folder_twice(tmp_path):
    written(tmp_path, "a jay", "elsewhere/002.Jay/a.txt")
    written(tmp_path, "a wren", "cub/001.Wren/a.txt")
    (tmp_path / "cub" / "002.Jay").symlink_to(tmp_path / "elsewhere" / "002.Jay")
    (tmp_path / "cub" / "003.Again").symlink_to(tmp_path / "elsewhere" / "002.Jay")
    (tmp_path / "cub" / "round").symlink_to(tmp_path / "cub")
    (tmp_path / "cub" / "broken.txt").symlink_to(tmp_path / "nothing")
    assert list(Captions(tmp_path / "cub")) == ["a wren", "a jay"]


def test_names_and_text_of_files_are_printable(tmp_path):
    os.mkdir(str(tmp_path / "folder"))
    written(tmp_path, "a dog\n\x1b[2J", "folder/a\x1b[2J.txt")
    written(tmp_path, json.dumps(["a cat", 3, {"\x1b[2J": "\u202e"}]), "folder/c.json")
    written(tmp_path, b"\x1b[2J\n\x1b]0;owned\n" * 9 + b"a dog\n" * 99, "folder/b.txt")
    corpus = Captions(tmp_path / "folder")
    assert len(list(corpus)) == 101
    assert "".join(corpus.summary()).isprintable()
    assert [*map(str.isprintable, corpus.first_damaged)] == [True] * 3
    written(tmp_path, "<html>", "folder/a\x1b[2J.txt")
    with pytest.raises(BuildError, match=r"captions in a\\x1b\[2J\.txt: it is a web page"):
        Captions(tmp_path / "folder")


def test_a_file_that_cannot_be_read_is_told_of(tmp_path, monkeypatch):
    path = written(tmp_path, "a dog")
    monkeypatch.setattr(Ahead, "_more", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(BuildError, match=r"captions in captions\.txt cannot be read: .*Input/output error"):
        Captions(path)


def test_damage_has_a_name_of_its_own():
    assert not issubclass(DamagedFileError, (OSError, ValueError))
