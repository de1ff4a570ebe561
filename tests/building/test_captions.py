import gzip
import hashlib
import io
import json
import tracemalloc

import pytest

from vqct_plugin.building.captions import Captions, open_captions
from vqct_plugin.building.formats import FORMATS, BuildError, recognize_format

THREE = ["A red dog .", "Zwei Hunde, café", "last one"]


def written(tmp_path, content, name="captions.txt"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def in_format(form, captions, field="caption"):
    """The captions as bytes of a format."""
    if form == "text":
        return "\n".join(captions).encode()
    if form == "flickr":
        return "".join(f"img {i}.jpg#{i % 5}\t{caption}\n" for i, caption in enumerate(captions)).encode()
    if form == "coco":
        return json.dumps({"info": {}, "annotations": [{"id": 1, field: caption} for caption in captions]}).encode()
    if form == "jsonl":
        return "".join(json.dumps({"id": 1, field: caption}) + "\n" for caption in captions).encode()
    if form == "csv":
        return (f'image,"{field}"\n' + "".join(f'a.jpg,"{caption}"\n' for caption in captions)).encode()
    if form == "tsv":
        return (f"image\t{field}\n" + "".join(f"a.jpg\t{caption}\n" for caption in captions)).encode()
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"id": list(range(len(captions))), field: captions})
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "auto"])
@pytest.mark.parametrize("forced", [False, True])
def test_every_format_gives_back_the_captions_and_is_recognized(tmp_path, form, forced):
    content = in_format(form, THREE)
    path = written(tmp_path, content, "captions.tsv" if form == "tsv" else "captions.dat")
    corpus = Captions(path, form if forced else "auto")
    assert list(corpus) == THREE
    assert (corpus.format, corpus.captions, corpus.damaged, corpus.files) == (form, 3, 0, 1)
    assert corpus.sha256 == hashlib.sha256(content).hexdigest()
    assert corpus.describe()["bytes"] == len(content)
    assert list(corpus) == THREE  # and again


@pytest.mark.parametrize("form", ["text", "flickr", "coco", "jsonl", "csv", "tsv"])
def test_gzip_is_told_by_its_bytes_and_not_by_the_name(tmp_path, form):
    content = gzip.compress(in_format(form, THREE))
    corpus = Captions(written(tmp_path, content, "captions.tsv" if form == "tsv" else "captions"))
    assert list(corpus) == THREE
    assert corpus.format == form
    assert corpus.sha256 == hashlib.sha256(content).hexdigest()
    assert corpus.bytes_read == len(content)


@pytest.mark.parametrize("form", ["coco", "jsonl", "csv", "tsv", "parquet"])
def test_another_field_is_named_and_a_wrong_one_is_told_of(tmp_path, form):
    path = written(tmp_path, in_format(form, THREE, field="raw text"), "captions.tsv" if form == "tsv" else "captions")
    assert list(Captions(path, form, field="raw text")) == THREE
    with pytest.raises(BuildError, match=r"'raw text'|no 'caption' in it"):
        list(Captions(path, form))


def test_plain_text_is_a_caption_a_line(tmp_path):
    corpus = Captions(written(tmp_path, "A dog .\r\n\n  Two cats\tsit .\nlast"))
    assert list(corpus) == ["A dog .", "Two cats\tsit .", "last"]
    assert (corpus.format, corpus.captions, corpus.damaged) == ("text", 3, 0)


def test_flickr_lines_lose_the_image_and_a_space_for_the_tab_is_read_as_meant(tmp_path):
    content = "1_a.jpg#0 A child .\n1_a.jpg#1\tA girl #1 .\nmy photo.jpg#2\tA boy .\n"
    corpus = Captions(written(tmp_path, content))
    assert list(corpus) == ["A child .", "A girl #1 .", "A boy ."]
    assert (corpus.format, corpus.mended, corpus.damaged) == ("flickr", 1, 0)
    assert "1 lines with a space for the tab" in "\n".join(corpus.summary())


def test_json_may_be_a_list_of_records_or_of_strings_and_a_record_may_hold_several(tmp_path):
    assert list(Captions(written(tmp_path, '[{"caption": "a dog"}, {"caption": ["a cat", "a cow"]}]'))) == [
        "a dog", "a cat", "a cow"
    ]  # fmt: skip
    assert list(Captions(written(tmp_path, '["a dog", "a\\ncat"]'))) == ["a dog", "a cat"]
    assert list(Captions(written(tmp_path, '"a dog"\n"a cat"\n', "x.jsonl"))) == ["a dog", "a cat"]


def test_a_table_with_bars_or_semicolons_is_told_by_its_header(tmp_path):
    for mark in "|;":
        content = f"image_name{mark} number{mark} caption\na.jpg{mark} 0{mark} A dog, sitting .\n"
        corpus = Captions(written(tmp_path, content))
        assert list(corpus) == ["A dog, sitting ."]
        assert corpus.format == "csv"


def test_a_comma_in_a_text_is_no_table(tmp_path):
    corpus = Captions(written(tmp_path, "a dog, a cat\na caption\n"))
    assert list(corpus) == ["a dog, a cat", "a caption"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"caf\xe9 \xff", "not UTF-8"),
        (b"a \x00 dog", "control characters"),
        (b"12 345", "no letter"),
        (b"x" * 70_000, "longer than"),
    ],
)
def test_damaged_lines_are_counted_shown_and_skipped(tmp_path, line, reason):
    corpus = Captions(written(tmp_path, b"A dog .\n" + (line + b"\n") * 4 + b"A cat .\n" * 4))
    assert list(corpus) == ["A dog ."] + ["A cat ."] * 4
    assert (corpus.captions, corpus.damaged) == (5, 4)
    assert len(corpus.first_damaged) == 3
    assert corpus.first_damaged[0].startswith(f"line 2, {reason}")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.token", b"a.jpg#0\tA dog .\na.jpg#1\tA cat .\nonly words\na.jpg#2\tA cow .\n", "line 3, no image#k"),
        ("a.jsonl", b'{"caption": "A dog"}\n{"caption": "A c\n{"caption": "A cat"}\n', "line 2, not JSON"),
        ("b.jsonl", b'{"caption": "A dog"}\n{"text": "x"}\n{"caption": "A cat"}\n', "line 2, no 'caption' in it"),
        ("c.jsonl", b'{"caption": "A dog"}\n{"caption": 7}\n{"caption": "A cat"}\n', "line 2, a caption has to be a"),
        ("d.jsonl", b'{"caption": "A dog"}\n{"caption": "\xff"}\n{"caption": "A cat"}\n', "line 2, not UTF-8"),
        ("a.csv", b"image,caption\n1,A dog\n2,A cat, sitting\n3,A cow\n", "line 3, 3 fields under a header of 2"),
        ("b.csv", b"image,caption\n1,A dog\n2,caf\xe9\n3,A cow\n", "line 3, not UTF-8"),
        ("c.csv", b"image,caption\n1,A dog\n2,\x01 cat\n3,A cow\n", "line 3, control characters"),
        (
            "d.csv",
            b'image,caption\n1,A dog\n2,"' + b"x" * 200_000 + b'"\n3,A cow\n4,A cat\n',
            "line 3, longer than 65536",
        ),
        ("a.json", b'{"annotations": [{"caption": "A dog"}, {"id": 2}, {"caption": "A"}]}', "record 2, no 'caption'"),
        ("b.json", b'["A dog", "caf\xe9 noir", "A cat"]', "record 2, undecodable bytes"),
        ("c.json", b'["A dog", 3, "A cat"]', "record 2, a caption has to be a string, not"),
    ],
)
def test_damage_in_every_format_is_counted_shown_and_skipped(tmp_path, name, content, reason):
    corpus = Captions(written(tmp_path, content, name))
    captions = list(corpus)
    assert len(captions) == corpus.captions >= 2
    assert captions[0] == "A dog"[: len(captions[0])] or captions[0] == "A dog ."
    assert corpus.damaged == 1
    assert reason in corpus.first_damaged[0]
    assert "1 damaged lines skipped" in "\n".join(corpus.summary())


def test_a_quote_that_is_not_closed_costs_the_lines_it_swallows_and_they_are_counted(tmp_path):
    lines = [f"{i},A dog {i} .\n" for i in range(200)]
    lines[50] = '50,"A dog .\n'
    lines[120] = '120,"A dog ."\n'
    corpus = Captions(written(tmp_path, "image,caption\n" + "".join(lines)))
    assert len(list(corpus)) == 200 - 71
    assert corpus.damaged == 71
    assert corpus.first_damaged[0].startswith("line 52, in a field of 71 lines")


def test_a_quoted_caption_may_run_over_a_few_lines(tmp_path):
    corpus = Captions(written(tmp_path, 'image,caption\n1,"A dog\nand ""a"" cat"\n2,A cow\n'))
    assert list(corpus) == ['A dog and "a" cat', "A cow"]


def test_null_in_parquet_is_damage(tmp_path):
    corpus = Captions(written(tmp_path, in_format("parquet", ["A dog", None, "A cat"]), "a.parquet"))
    assert list(corpus) == ["A dog", "A cat"]
    assert "row 2, a caption has to be a string, not NoneType" in corpus.first_damaged[0]


def test_lists_in_parquet_are_captions(tmp_path):
    corpus = Captions(written(tmp_path, in_format("parquet", [["A dog", "A cat"], ["A cow"]]), "a.parquet"))
    assert list(corpus) == ["A dog", "A cat", "A cow"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", b'{"annotations": [{"caption": "A dog"}, {"capt', "captions in a.json: no whole JSON document"),
        ("a.json", b'{"images": []}', "without captions; expected"),
        ("a.parquet", b"PAR1 and no more", "captions in a.parquet: no whole Parquet file"),
        ("a.gz", gzip.compress(b"A dog .\n" * 9999, mtime=0)[:-9], "damaged gzip after 9,999 captions"),
        ("a.gz", b"\x1f\x8b and no more", "damaged gzip"),
        ("a.csv", b"image,text\n1,A dog\n", "no column 'caption'; its columns are 'image', 'text'"),
        ("a.txt", b"", "no caption in it"),
        ("a.txt", b"\n \n", "no caption in it"),
    ],
)
def test_files_that_break_off_or_hold_no_captions_are_refused(tmp_path, name, content, sentence):
    with pytest.raises(BuildError, match=sentence):
        list(Captions(written(tmp_path, content, name)))


def test_a_wrong_file_is_refused_before_the_others_are_read(tmp_path):
    good, bad = written(tmp_path, "A dog"), written(tmp_path, "image,text\n1,A dog\n", "bad.csv")
    with pytest.raises(BuildError, match="no column 'caption'"):
        open_captions([good, bad])


def test_the_digest_is_of_the_whole_file_and_a_second_pass_is_the_same(tmp_path):
    content = b"A dog .\n" * 9 + b"y" * 200_000 + b"\n\xff\nlast"
    corpus = Captions(written(tmp_path, content))
    first = list(corpus), corpus.describe()
    assert first == (list(corpus), corpus.describe())
    assert corpus.sha256 == hashlib.sha256(content).hexdigest()
    assert first[1]["bytes"] == len(content)
    assert first[1]["file"] == "captions.txt"


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfred dog\n", b'\xef\xbb\xbf["red dog"]', b"\xef\xbb\xbfcaption,n\nred dog,1\n"]
)
def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path, content):
    assert list(Captions(written(tmp_path, content))) == ["red dog"]


def test_a_mostly_damaged_file_is_an_error(tmp_path):
    corpus = Captions(written(tmp_path, b"A dog .\n\xff\n\xfe\n"))
    with pytest.raises(BuildError, match=r"2 damaged lines, but only 1 captions.*line 2, not UTF-8"):
        list(corpus)


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(BuildError, match="does not exist"):
        Captions(tmp_path / "nothing.txt")
    with pytest.raises(BuildError, match="'word' is not known; expected one of auto, text, flickr, coco"):
        Captions(written(tmp_path, "a"), "word")
    with pytest.raises(BuildError, match="an empty name"):
        Captions("")
    with pytest.raises(BuildError, match="name at least one"):
        open_captions([])
    with pytest.raises(BuildError, match="expected a list of paths"):
        open_captions("captions.txt")
    with pytest.raises(BuildError, match="only once"):
        open_captions(["-", "-"])


def test_the_format_can_be_forced(tmp_path):
    assert list(Captions(written(tmp_path, "a.jpg#0\tA dog .\n"), "text")) == ["a.jpg#0\tA dog ."]


def test_a_folder_is_read_in_the_order_of_names_whatever_its_files(tmp_path):
    """CUB and Flowers as published: a folder of text files for each class, and other things beside them."""
    written(tmp_path, "a blue bird\nits red beak", "cub/002.Jay/b.txt")
    written(tmp_path, "a brown bird", "cub/001.Wren/a.txt")
    written(tmp_path, gzip.compress(in_format("jsonl", ["a bird"])), "cub/more.jsonl.gz")
    written(tmp_path, b"\x89HDF", "cub/001.Wren/a.h5")
    written(tmp_path, "nothing", "cub/.cache/hidden.txt")
    written(tmp_path, "", "cub/003.None/empty.txt")
    corpus = Captions(tmp_path / "cub")
    assert list(corpus) == ["a brown bird", "a blue bird", "its red beak", "a bird"]
    assert (corpus.files, corpus.ignored, corpus.format) == (4, 1, "text, jsonl")
    assert corpus.describe()["files"] == 4
    assert corpus.describe()["file"] == "cub"
    digest = corpus.sha256
    for name, text in (("cub/001.Wren/a.txt", "a brown bird!"), ("cub/002.Jay/b.txt", "a blue bird\nits red beak!")):
        written(tmp_path, text, name)
        list(corpus)
        assert corpus.sha256 != digest
        digest = corpus.sha256
    assert "1 other files in the folder ignored" in "\n".join(corpus.summary())


def test_a_folder_tells_which_file_is_damaged_and_one_without_captions_is_refused(tmp_path):
    written(tmp_path, b"a bird\n\xff\na wing\n", "cub/1/a.txt")
    corpus = Captions(tmp_path / "cub")
    assert list(corpus) == ["a bird", "a wing"]
    assert corpus.first_damaged[0].startswith("1/a.txt, line 2, not UTF-8")
    written(tmp_path, '["a bird", ', "cub/2/b.json")
    with pytest.raises(BuildError, match=r"captions in cub/2/b\.json: no whole JSON document"):
        list(Captions(tmp_path / "cub"))
    written(tmp_path, b"GIF89a", "pictures/a.gif")
    with pytest.raises(BuildError, match=r"none of its 1 files ends in \.txt"):
        Captions(tmp_path / "pictures")


@pytest.mark.parametrize("form", ["text", "flickr", "coco", "jsonl", "csv"])
def test_standard_input_is_read_like_a_file(monkeypatch, form):
    content = in_format(form, THREE)
    stream = io.BytesIO(gzip.compress(content) if form == "text" else content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
    corpus = Captions("-")
    assert list(corpus) == THREE
    assert corpus.describe()["file"] == "standard input"
    assert not stream.closed


def test_parquet_cannot_come_through_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(in_format("parquet", THREE))))
    with pytest.raises(BuildError, match="it has to be a file"):
        list(Captions("-"))


def test_captions_at_an_address_are_read_by_fsspec(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for form in ("text", "parquet", "coco"):
        memory.pipe(f"/captions/{form}", in_format(form, THREE))
        corpus = Captions(f"memory://captions/{form}")
        assert list(corpus) == THREE
        assert (corpus.format, corpus.describe()["file"]) == (form, form)
    memory.pipe("/folder/b.txt", b"b one")
    memory.pipe("/folder/a.txt", b"a one")
    assert list(Captions("memory://folder")) == ["a one", "b one"]
    with pytest.raises(BuildError, match="does not exist"):
        Captions("memory://nothing")
    with pytest.raises(BuildError, match="cannot be read"):
        Captions("nosuchsystem://nothing")


@pytest.mark.parametrize("form", ["text", "flickr", "coco", "jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_captions(tmp_path, form):
    peaks = []
    for number in (2_000, 60_000):
        corpus = Captions(written(tmp_path, in_format(form, [f"a red dog {i % 50}" for i in range(number)])), form)
        tracemalloc.start()
        assert sum(1 for _ in corpus) == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_500_000  # all of them are megabytes more


@pytest.mark.parametrize(
    ("head", "name", "form"),
    [
        (b"{ not json } is what it says\n", "a.txt", "text"),
        (b"[UNK] a dog\n", "a.txt", "text"),
        (b'{"caption": "a"}', "a.json", "jsonl"),
        (b'{"text": "a"}', "a.json", "coco"),
        (b'{"text": "a"}\n{"caption": "a"}', "a.json", "jsonl"),
        (b'{"annotations": []}', "a.json", "coco"),
        (b'{"info": 1,\n "annotations": []}', "a.json", "coco"),
        (b'[]', "a.json", "coco"),
        (b"", "a.csv.gz", "text"),
        (b"caption\na dog\n", "a.csv.gz", "csv"),
        (b"caption\na dog\n", "a.txt", "text"),
        (b"image,caption\n", "captions.txt", "csv"),
    ],
)  # fmt: skip
def test_formats_that_look_alike_are_told_apart(head, name, form):
    assert recognize_format(head, name, "caption") == form
