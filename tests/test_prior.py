"""The prior and its file: what goes in comes out, and whatever is wrong is refused with one type of error."""

import copy
import hashlib
import json
import os
import pickle
import random
import stat
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load as read_arrays
from safetensors.numpy import save as safetensors_bytes

from tests.conftest import ROOT, make_prior
from vqct_plugin.prior import CodebookPrior, PriorError

PARTS = ("adjective", "noun")


def small(**changes):
    """red, orange the color; wheel, orange the fruit."""
    values = {
        "words": ["wheel", "red", "orange", "orange"],
        "part_of_speech": [1, 0, 0, 1],
        "count": [5, 7, 9, 2],
        "vectors": np.arange(12, dtype=np.float32).reshape(4, 3),
        "edges": [[1, 3, 0], [0, 2, 1]],
        "edge_count": [3, 1, 4],
        "provenance": {"language_model": "by hand"},
    }
    return CodebookPrior(**{**values, **changes})


def same(a, b):
    arrays = ("part_of_speech", "count", "vectors", "edges", "edge_count")
    return (
        (a.words, a.parts, a.provenance) == (b.words, b.parts, b.provenance)
        and a.vectors.dtype == b.vectors.dtype
        and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
    )


def test_words_are_sorted_and_everything_follows():
    prior = small()
    assert prior.words == ("orange", "red", "wheel", "orange")
    assert prior.part_of_speech.tolist() == [0, 0, 1, 1]
    assert prior.count.tolist() == [9, 7, 5, 2]
    assert prior.vectors[:, 0].tolist() == [6, 3, 0, 9]
    assert prior.sizes == {"adjective": 2, "noun": 2}
    # red - wheel was given twice, from either end: once now, 3 + 4
    assert prior.edges.tolist() == [[0, 1], [3, 2]]
    assert prior.edge_count.tolist() == [1, 7]


def test_the_order_things_are_given_in_does_not_matter():
    prior = make_prior()
    order = np.random.RandomState(3).permutation(len(prior))
    place = np.argsort(order)
    edge_order = np.random.RandomState(4).permutation(prior.edges.shape[1])
    shuffled = CodebookPrior(
        [prior.words[i] for i in order],
        prior.part_of_speech[order],
        prior.count[order],
        prior.vectors[order],
        place[prior.edges][::-1][:, edge_order],
        prior.edge_count[edge_order],
        prior.parts,
        prior.provenance,
    )
    assert same(prior, shuffled)
    assert prior.fingerprint == shuffled.fingerprint


def test_words_of_one_count_come_in_alphabetical_order():
    assert small(count=[4, 4, 4, 4]).words == ("orange", "red", "orange", "wheel")


def test_look_up_and_neighbors():
    prior = small()
    assert prior.index("red") == 1
    assert (prior.index("orange", "adjective"), prior.index("orange", "noun")) == (0, 3)
    assert prior.neighbors("wheel") == [("red", "adjective", 7)]
    assert prior.neighbors("orange", "noun") == [("orange", "adjective", 1)]
    assert "red" in prior
    assert "reed" not in prior
    with pytest.raises(PriorError, match="no word 'reed' in this prior; close to it: red"):
        prior.index("reed")
    with pytest.raises(PriorError, match="several parts of speech \\('adjective', 'noun'\\): say which"):
        prior.index("orange")
    with pytest.raises(PriorError, match="unknown part of speech 'verb'"):
        prior.index("orange", "verb")
    with pytest.raises(PriorError, match="no word 'red' of part 'noun'"):
        prior.index("red", "noun")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_saved_is_loaded(tmp_path, dtype):
    prior = make_prior((20, 30, 10))
    prior = CodebookPrior(
        **{**vars_of(prior), "vectors": prior.vectors.astype(dtype), "provenance": {"a": [1, {"ü": None}]}}
    )
    prior.save(tmp_path / "p.safetensors")
    loaded = CodebookPrior.load(tmp_path / "p.safetensors")
    assert same(prior, loaded)
    assert loaded.vectors.dtype == dtype
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "p.safetensors").read_bytes()


def vars_of(prior):
    names = ("words", "part_of_speech", "count", "vectors", "edges", "edge_count", "parts", "provenance")
    return {name: getattr(prior, name) for name in names}


def test_the_same_prior_has_the_same_bytes_in_every_process(tmp_path):
    code = "import sys; from tests.conftest import make_prior; make_prior().save(sys.argv[1])"
    files = [tmp_path / f"{seed}.safetensors" for seed in (0, 1, 2)]
    for seed, file in enumerate(files):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, str(file)], check=True, env=environment, cwd=str(ROOT))
    assert len({file.read_bytes() for file in files}) == 1


def test_saving_refuses_to_overwrite_and_leaves_nothing_behind(tmp_path):
    file = tmp_path / "p.safetensors"
    small().save(file)
    before = file.read_bytes()
    with pytest.raises(PriorError, match="exists; pass overwrite=True"):
        make_prior().save(file)
    assert file.read_bytes() == before
    make_prior().save(file, overwrite=True)
    assert same(CodebookPrior.load(file), make_prior())
    assert os.listdir(tmp_path) == ["p.safetensors"]
    assert stat.S_IMODE(file.stat().st_mode) & 0o400
    with pytest.raises(PriorError, match="could not write the prior"):
        small().save(tmp_path / "no folder" / "p.safetensors")


def test_without_hard_links_too_an_existing_file_is_refused(tmp_path, monkeypatch):
    def no_hard_links(source, target, **how):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_hard_links)
    file = tmp_path / "p.safetensors"
    small().save(file)
    before = file.read_bytes()
    with pytest.raises(PriorError, match="exists; pass overwrite=True"):
        make_prior().save(file)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["p.safetensors"]


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    file = tmp_path / "p.safetensors"
    small().save(file)
    before = file.read_bytes()

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(PriorError, match="No space left on device"):
        make_prior().save(file, overwrite=True)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["p.safetensors"]


@pytest.mark.parametrize(
    "copied", [lambda prior: prior, copy.copy, copy.deepcopy, lambda prior: pickle.loads(pickle.dumps(prior))]
)
def test_arrays_cannot_be_written_into_nor_a_fingerprint_become_untrue(copied):
    prior = small()
    before = prior.fingerprint
    prior.index("red")
    prior = copied(prior)
    assert prior.fingerprint == before
    assert prior.index("red") == 1
    for name in ("part_of_speech", "count", "vectors", "edges", "edge_count"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(prior, name)[..., 0] = 1


def test_the_fingerprint_is_computed_once(monkeypatch):
    prior = small()
    first = prior.fingerprint
    monkeypatch.setattr(CodebookPrior, "to_arrays", None)
    assert prior.fingerprint == first


def test_a_file_has_the_bytes_it_always_had(tmp_path):
    """Whoever made a prior with an earlier release can make it again: these are of the first."""
    small().save(tmp_path / "small.safetensors")
    make_prior().save(tmp_path / "made.safetensors")
    digests = [hashlib.sha256((tmp_path / f"{n}.safetensors").read_bytes()).hexdigest()[:16] for n in ("small", "made")]
    assert digests == ["fca05b6e6b3dfe05", "2e4d8b5ca9bafd1f"]


def test_any_words_are_sorted_as_python_sorts_them():
    """By part, then count, then word, letter by letter: also beyond ASCII and beyond 16 bits."""
    rng = random.Random(0)
    words = sorted({"".join(rng.choices("aAzé\u03a9\uffe6\U0001f34a-", k=rng.randint(1, 4))) for _ in range(600)})
    rng.shuffle(words)
    part, count = [rng.randint(0, 2) for _ in words], [rng.randint(0, 5) for _ in words]
    vectors = np.arange(len(words), dtype=np.float32).reshape(-1, 1)
    prior = CodebookPrior(words, part, count, vectors, [], [], parts=("a", "b", "c"))
    order = sorted(range(len(words)), key=lambda i: (part[i], -count[i], words[i]))
    assert prior.words == tuple(words[i] for i in order)
    assert prior.vectors[:, 0].tolist() == order


def test_repeated_edges_are_merged_as_a_dictionary_merges_them():
    prior, rng = make_prior((40, 50), n_edges=1), np.random.RandomState(0)
    ends = np.stack([rng.randint(0, 40, 3000), rng.randint(40, 90, 3000)])
    counts = rng.randint(1, 9, 3000)
    ends[:, ::3] = ends[::-1, ::3]
    merged = {}
    for (a, b), c in zip(ends.T.tolist(), counts.tolist()):
        merged[min(a, b), max(a, b)] = merged.get((min(a, b), max(a, b)), 0) + c
    prior = CodebookPrior(**{**vars_of(prior), "edges": ends, "edge_count": counts})
    assert list(zip(map(tuple, prior.edges.T.tolist()), prior.edge_count.tolist())) == sorted(merged.items())


def test_sums_of_counts_too_large_are_refused_also_where_they_would_wrap_round():
    for repeats in (2, 2048):
        with pytest.raises(PriorError, match=r"add up to .*at most 2\*\*53"):
            small(edges=np.tile([[1], [0]], repeats), edge_count=[2**53] * repeats)


def within_parts():
    """wheel - orange the fruit, which are both nouns, and wheel - red."""
    return small(edges=[[0, 0], [3, 1]], edge_count=[6, 2], edges_within_parts=True)


def test_edges_within_a_part_are_kept_where_they_are_asked_for(tmp_path):
    prior = within_parts()
    assert prior.neighbors("wheel") == [("orange", "noun", 6), ("red", "adjective", 2)]
    prior.save(tmp_path / "p.safetensors")
    loaded = CodebookPrior.load(tmp_path / "p.safetensors")
    assert loaded.edges_within_parts
    assert same(prior, loaded)
    # a release that reads version 1 only says so, and does not find an edge that it thinks is wrong
    assert b'\\"version\\":2' in (tmp_path / "p.safetensors").read_bytes()
    assert prior.select(2, ["noun"]).neighbors("wheel") == [("orange", "noun", 6)]
    # the same codebook, whether or not more edges would have been allowed
    assert small(edges_within_parts=True).fingerprint == small().fingerprint
    with pytest.raises(PriorError, match="edge 0 ties 'wheel' to itself"):
        small(edges=[[0], [0]], edge_count=[1], edges_within_parts=True)
    with pytest.raises(PriorError, match="edges_within_parts is 'yes'; expected True or False"):
        small(edges_within_parts="yes")


def test_select_keeps_the_most_frequent_and_the_edges_among_them():
    prior = make_prior((30, 60))
    chosen = prior.select(30)
    assert chosen.sizes == {"adjective": 10, "noun": 20}
    assert chosen.words == prior.words[:10] + prior.words[30:50]
    kept = {(prior.words[a], prior.words[b]): c for (a, b), c in zip(prior.edges.T, prior.edge_count)}
    kept = {pair: c for pair, c in kept.items() if pair[0] in chosen.words[:10] and pair[1] in chosen.words[10:]}
    found = {(chosen.words[a], chosen.words[b]): c for (a, b), c in zip(chosen.edges.T, chosen.edge_count)}
    assert found == kept
    assert len(found) > 0


def test_select_by_hand_by_part_and_all():
    prior = make_prior((30, 60))
    assert prior.select({"noun": 2, "adjective": 5}).sizes == {"adjective": 5, "noun": 2}
    assert prior.select(7, ["noun"]).words == prior.words[30:37]
    assert prior.select(90).fingerprint == prior.fingerprint
    # in whichever order the parts are named, they come in the prior's
    assert prior.select(9, ["noun", "adjective"]).parts == PARTS


@pytest.mark.parametrize("sizes", [(1, 1), (1, 99), (50, 50), (3, 1000, 7)])
def test_shares_add_up_and_every_part_keeps_one(sizes):
    prior = make_prior(sizes)
    for n_e in {len(sizes), len(sizes) + 1, sum(sizes) // 2 + 1, sum(sizes) - 1, sum(sizes)}:
        if not len(sizes) <= n_e <= sum(sizes):
            continue
        shares = list(prior.select(n_e).sizes.values())
        assert sum(shares) == n_e
        assert all(1 <= share <= size for share, size in zip(shares, sizes))
        # never more than one word from the exact share, but for the one word that a tiny part keeps
        assert all(abs(s - n_e * size / sum(sizes)) < len(sizes) for s, size in zip(shares, sizes))


SELECT_REFUSALS = [
    (91, "only 90 words.*write 90 \\(in a host's YAML: n_embed: 90\\)"),
    (1, "expected an integer from 2"),
    (True, "expected an integer"),
    (10.0, "expected an integer"),
    ({"adjective": 3}, "expected a number for each"),
    ({"adjective": 3, "noun": 61}, "asks for 61 of part 'noun'; this prior has 1 to 60"),
    ({"adjective": 0, "noun": 6}, "asks for 0"),
]


@pytest.mark.parametrize(("n_e", "sentence"), SELECT_REFUSALS)
def test_select_refuses(n_e, sentence):
    with pytest.raises(PriorError, match=sentence):
        make_prior((30, 60)).select(n_e)


REFUSALS = [
    ({"words": "abcd"}, "words has to be a list of strings"),
    ({"words": ["wheel", "red", "orange", ""]}, "words\\[3\\] is ''"),
    ({"words": ["wheel", "red", "orange", 5]}, "words\\[3\\] is 5"),
    ({"words": ["wheel", "red", "orange", "a\nb"]}, "printable"),
    ({"words": ["wheel", "orange", "orange", "orange"]}, "'orange' stands twice in part 'adjective'"),
    ({"words": []}, "words is empty"),
    ({"part_of_speech": [0, 1, 2, 0]}, "part_of_speech holds 2; expected values from 0 to 1"),
    ({"part_of_speech": [0.0, 1.0, 1.0, 0.0]}, "dtype float64; expected integers"),
    ({"part_of_speech": [0, 1]}, "part_of_speech has shape \\(2,\\); expected \\(4,\\)"),
    ({"count": [5, -7, 9, 2]}, "count holds -7"),
    ({"count": [5, 2**60, 9, 2]}, "count holds"),
    ({"vectors": np.full((4, 3), np.nan, dtype=np.float32)}, "vector of word 0 holds NaN"),
    ({"vectors": np.full((4, 3), np.inf, dtype=np.float16)}, "NaN or infinite"),
    ({"vectors": np.zeros((4, 3))}, "dtype float64; expected float16 or float32"),
    ({"vectors": np.zeros((5, 3), dtype=np.float32)}, "expected \\(4, d\\)"),
    ({"vectors": np.zeros((4, 0), dtype=np.float32)}, "expected \\(4, d\\)"),
    ({"edges": [[0], [4]], "edge_count": [1]}, "edges holds 4; expected values from 0 to 3"),
    ({"edges": [[0], [-1]], "edge_count": [1]}, "edges holds -1"),
    ({"edges": [[0], [3]], "edge_count": [1]}, "ties 'wheel' and 'orange', both of part 'noun'"),
    ({"edges": [[2], [2]], "edge_count": [1]}, "both of part 'adjective'"),
    ({"edges": [[0, 1]], "edge_count": [1, 1]}, "edges has shape \\(1, 2\\); expected \\(2, E\\)"),
    ({"edge_count": [3, 0, 1]}, "edge_count holds 0; expected values from 1"),
    ({"edge_count": [3, 1]}, "edge_count has shape \\(2,\\); expected \\(3,\\)"),
    ({"parts": ("noun", "noun")}, "named once"),
    ({"parts": []}, "parts is empty"),
    ({"provenance": {"when": np.zeros(3)}}, "plain JSON"),
    ({"provenance": {"loss": float("nan")}}, "plain JSON"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSALS)
def test_refuses_what_is_no_prior(changes, sentence):
    with pytest.raises(PriorError, match=sentence):
        small(**changes)


def parts_of_a_file(tmp_path):
    """The header and the arrays of a good file, to be damaged one by one."""
    file = tmp_path / "good.safetensors"
    small().save(file)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["vqct_prior"])
    return header, read_arrays(data)


FILE_REFUSALS = {
    "another format": (lambda h, a: h.update(format="words"), "does not say it is a 'vqct_prior'"),
    "another version": (lambda h, a: h.update(version=3), "format version 3; this release .* reads 1 and 2"),
    "version 2 without its key": (lambda h, a: h.update(version=2), "has no bool called 'edges_within_parts'"),
    "no version": (lambda h, a: h.pop("version"), "format version None"),
    "no words": (lambda h, a: h.pop("words"), "no list called 'words'"),
    "fewer words": (lambda h, a: h["words"].pop(), "expected \\(3,\\)"),
    "no fingerprint": (lambda h, a: h.pop("fingerprint"), "no str called 'fingerprint'"),
    "provenance not JSON": (lambda h, a: h["provenance"].update(loss=float("nan")), "plain JSON"),
    "provenance no mapping": (lambda h, a: h.update(provenance=3), "no dict called 'provenance'"),
    "a missing array": (lambda h, a: a.pop("edges"), "the array 'edges' is missing"),
    "float64 vectors": (lambda h, a: a.update(vectors=np.zeros((4, 3))), "vectors is stored as F64; expected F16 or"),
    "int64 edges": (lambda h, a: a.update(edges=a["edges"].astype(np.int64)), "edges is stored as I64; expected I32"),
    "a wrong shape": (lambda h, a: a.update(count=a["count"][:2]), "count has shape \\(2,\\)"),
    "NaN": (lambda h, a: a["vectors"].__setitem__((0, 0), np.nan), "holds NaN"),
    "an edge out of range": (lambda h, a: a["edges"].__setitem__((0, 0), 9), "edges holds 9"),
    "an edge within a part": (lambda h, a: a["edges"].__setitem__((1, 0), 1), "both of part 'adjective'"),
    "a negative count": (lambda h, a: a["count"].__setitem__(0, -1), "count holds -1"),
    "a duplicate": (lambda h, a: h["words"].__setitem__(1, "orange"), "'orange' stands twice"),
    "other vectors": (lambda h, a: a["vectors"].__setitem__((0, 0), 7), "is damaged: its content does not match"),
}


@pytest.mark.parametrize("name", FILE_REFUSALS)
def test_refuses_a_file_that_is_no_prior(tmp_path, name):
    damage, sentence = FILE_REFUSALS[name]
    header, arrays = parts_of_a_file(tmp_path)
    arrays = {key: array.copy() for key, array in arrays.items()}
    damage(header, arrays)
    file = tmp_path / "bad.safetensors"
    file.write_bytes(safetensors_bytes(arrays, metadata={"vqct_prior": json.dumps(header)}))
    with pytest.raises(PriorError, match=sentence) as caught:
        CodebookPrior.load(file)
    assert "bad.safetensors" in str(caught.value)


def test_refuses_other_files(tmp_path):
    with pytest.raises(PriorError, match=r"does not exist; build a prior with vqct_plugin\.build_prior"):
        CodebookPrior.load(tmp_path / "none.safetensors")
    with pytest.raises(PriorError, match="is a folder"):
        CodebookPrior.load(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PriorError, match="does not exist"):
        CodebookPrior.load(tmp_path / "file" / "inside")
    with pytest.raises(PriorError, match=r"^a{60}\.\.\. \(5,000 letters\) cannot be opened: .*expected the path of a"):
        CodebookPrior.load("a" * 5000)
    with pytest.raises(PriorError, match=r"cannot be opened: .*null"):
        CodebookPrior.load("a\0b")
    with pytest.raises(PriorError, match="expected a path"):
        CodebookPrior.load(b"bytes")
    if os.path.exists("/dev/null"):
        with pytest.raises(PriorError, match="/dev/null is not a regular file"):
            CodebookPrior.load("/dev/null")

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    renamed = tmp_path / "pickle.safetensors"
    renamed.write_bytes(pickle.dumps({"adj_code_book_vec": Harmful()}))
    with pytest.raises(PriorError, match="not a readable safetensors file"):
        CodebookPrior.load(renamed)
    assert not (tmp_path / "ran").exists()
    plain = tmp_path / "model.safetensors"
    plain.write_bytes(safetensors_bytes({"weight": np.zeros(3, dtype=np.float32)}))
    with pytest.raises(PriorError, match="but not a prior"):
        CodebookPrior.load(plain)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(PriorError, match="not a readable"):
        CodebookPrior.load(tmp_path / "empty.safetensors")


def test_a_folder_that_may_not_be_read_is_told_of(tmp_path, monkeypatch):
    def forbidden(path, **how):
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "p.safetensors"
    small().save(file)
    monkeypatch.setattr(os, "stat", forbidden)  # root, who may be running this, may read everything
    with pytest.raises(PriorError, match=r"p\.safetensors cannot be opened: Permission denied"):
        CodebookPrior.load(file)


def test_no_damage_to_a_good_file_gives_anything_but_a_prior_error(tmp_path):
    """4,000 seeded mutations: bytes changed, inserted, cut out, and files cut short."""
    file = tmp_path / "fuzz.safetensors"
    small().save(file)
    good, good_prior = file.read_bytes(), small()
    rng = random.Random(0)
    refused = 0
    for trial in range(4000):
        data = bytearray(good)
        kind = trial % 4
        at = rng.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 2:
            del data[at:]
        else:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        file.write_bytes(bytes(data))
        try:
            loaded = CodebookPrior.load(file)
        except PriorError:
            refused += 1
        else:  # what the mutation left readable is the same prior, or its provenance alone differs
            assert loaded.fingerprint == good_prior.fingerprint
    assert refused > 3500


def test_every_single_byte_of_the_header_length(tmp_path):
    """The eight bytes that say how much to read: no value of them makes the reader allocate what is not there."""
    file = tmp_path / "length.safetensors"
    small().save(file)
    good = file.read_bytes()
    for at in range(8):
        for value in range(256):
            if good[at] != value:
                file.write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
                with pytest.raises(PriorError):
                    CodebookPrior.load(file)
