import hashlib

import pytest

from vqct_plugin.building.captions import BuildError, CaptionsFile, open_captions


def written(tmp_path, content, name="captions.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_plain_text_is_a_caption_a_line(tmp_path):
    corpus = CaptionsFile(written(tmp_path, "A dog .\r\n\n  Two cats\tsit .\nlast"))
    assert list(corpus) == ["A dog .", "Two cats\tsit .", "last"]
    assert (corpus.format, corpus.captions, corpus.damaged) == ("text", 3, 0)


def test_flickr_lines_lose_the_image_and_a_space_for_the_tab_is_read_as_meant(tmp_path):
    content = "1_a.jpg#0 A child .\n1_a.jpg#1\tA girl #1 .\nmy photo.jpg#2\tA boy .\n"
    corpus = CaptionsFile(written(tmp_path, content))
    assert list(corpus) == ["A child .", "A girl #1 .", "A boy ."]
    assert (corpus.format, corpus.spaces_for_tabs, corpus.damaged) == ("flickr", 1, 0)


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
    corpus = CaptionsFile(written(tmp_path, b"A dog .\n" + (line + b"\n") * 4 + b"A cat .\n" * 4))
    assert list(corpus) == ["A dog ."] + ["A cat ."] * 4
    assert (corpus.captions, corpus.damaged) == (5, 4)
    assert len(corpus.first_damaged) == 3
    assert corpus.first_damaged[0].startswith(f"line 2, {reason}")


def test_a_flickr_line_without_its_image_is_damaged(tmp_path):
    corpus = CaptionsFile(written(tmp_path, "a.jpg#0\tA dog .\na.jpg#1\tA cat .\nonly words\na.jpg#2\tA cow .\n"))
    assert len(list(corpus)) == 3
    assert "no image#k" in corpus.first_damaged[0]


def test_the_digest_is_of_the_whole_file_and_a_second_pass_is_the_same(tmp_path):
    content = b"A dog .\n" * 9 + b"y" * 200_000 + b"\n\xff\nlast"
    corpus = CaptionsFile(written(tmp_path, content))
    first = list(corpus), corpus.describe()
    assert first == (list(corpus), corpus.describe())
    assert corpus.sha256 == hashlib.sha256(content).hexdigest()
    assert first[1]["bytes"] == len(content)
    assert first[1]["file"] == "captions.txt"


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    assert list(CaptionsFile(written(tmp_path, b"\xef\xbb\xbfred dog\n"))) == ["red dog"]


def test_a_mostly_damaged_file_is_an_error(tmp_path):
    corpus = CaptionsFile(written(tmp_path, b"A dog .\n\xff\n\xfe\n"))
    with pytest.raises(BuildError, match=r"2 damaged lines and only 1 captions.*line 2, not UTF-8"):
        list(corpus)


@pytest.mark.parametrize(
    ("content", "sentence"), [("", "no caption in it"), ("\n \n", "no caption in it"), ('{"annotations": []}', "JSON")]
)
def test_files_without_captions_are_refused(tmp_path, content, sentence):
    with pytest.raises(BuildError, match=sentence):
        list(CaptionsFile(written(tmp_path, content)))


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(BuildError, match="does not exist"):
        CaptionsFile(tmp_path / "nothing.txt")
    with pytest.raises(BuildError, match="is a folder"):
        CaptionsFile(tmp_path)
    with pytest.raises(BuildError, match="'coco' is not known; expected one of auto, text, flickr"):
        CaptionsFile(written(tmp_path, "a"), "coco")
    with pytest.raises(BuildError, match="name at least one"):
        open_captions([])


def test_the_format_can_be_forced(tmp_path):
    assert list(CaptionsFile(written(tmp_path, "a.jpg#0\tA dog .\n"), "text")) == ["a.jpg#0\tA dog ."]
