import collections
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch

from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.imported import import_prior
from vqct_plugin.prior import CodebookPrior, PriorError


def authors(dtype=torch.float16):
    """A file of the authors' layout, as their script makes it."""
    vectors = torch.arange(24.0).view(4, 6).to(dtype)  # rows of one storage, as rows of a batch would be
    return {
        "adj_code_book": ["red", "orange"],
        "noun_code_book": ["orange", "wheel"],
        "adj_code_book_vec": {"red": vectors[0], "orange": vectors[1]},
        "noun_code_book_vec": {"wheel": vectors[3], "orange": vectors[2].clone()},
        "adj_code_book_num": {"red": 30, "orange": 12, "rare": 3},
        "noun_code_book_num": {"orange": 11, "wheel": 50, "rarer": 1},
        "adj_noun_edges": [
            ("red", "wheel"),
            ("orange", "wheel"),
            ("red", "wheel"),
            ("rare", "wheel"),
            ("red", "rarer"),
        ],
    }


def pickled(folder, content, protocol=pickle.HIGHEST_PROTOCOL):
    path = folder / "big_nlp_word_knowledge_clip.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_codes_vectors_counts_and_edges_are_those_of_the_file(tmp_path, dtype, protocol):
    prior = import_prior(pickled(tmp_path, authors(dtype), protocol))
    assert prior.words == ("red", "orange", "wheel", "orange")
    assert prior.part_of_speech.tolist() == [0, 0, 1, 1]
    assert prior.count.tolist() == [30, 12, 50, 11]
    expected = np.arange(24.0).reshape(4, 6)[[0, 1, 3, 2]]
    np.testing.assert_array_equal(prior.vectors, expected)
    assert prior.vectors.dtype == (np.float16 if dtype == torch.float16 else np.float32)
    assert prior.neighbours("wheel", "noun") == [("red", "adjective", 2), ("orange", "adjective", 1)]
    assert prior.provenance["edges_left_out"] == 2
    assert prior.provenance["language_model"] == "openai/clip-vit-base-patch32"


def test_the_file_is_written_and_an_existing_one_refused(tmp_path):
    source, output = pickled(tmp_path, authors()), tmp_path / "prior.safetensors"
    prior = import_prior(source, output, plm_name="mine")
    assert CodebookPrior.load(output).fingerprint == prior.fingerprint
    assert CodebookPrior.load(output).provenance["language_model"] == "mine"
    assert str(tmp_path) not in str(prior.provenance)
    with pytest.raises(PriorError, match="exists"):
        import_prior(source, output)


def test_the_quantizer_takes_it(tmp_path):
    from vqct_plugin import CodebookTransferQuantizer

    output = tmp_path / "prior.safetensors"
    import_prior(pickled(tmp_path, authors()), output)
    quantizer = CodebookTransferQuantizer(n_e=4, e_dim=8, prior=str(output))
    assert quantizer(torch.randn(1, 8, 2, 2))[0].shape == (1, 8, 2, 2)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def harm(folder):
    return str(folder / "harm")


HOSTILE = {
    "os.mkdir": lambda folder: Call(os.mkdir, harm(folder)),
    "subprocess": lambda folder: Call(subprocess.call, ["touch", harm(folder)]),
    "eval": lambda folder: Call(eval, f"open({harm(folder)!r}, 'w')"),
    "exec": lambda folder: Call(exec, f"open({harm(folder)!r}, 'w')"),
    "getattr": lambda folder: Call(getattr, collections.OrderedDict, "__class__"),
    "torch.load": lambda folder: Call(torch.load, harm(folder)),
    "a pickle for torch.load inside": lambda folder: Call(
        torch.storage._load_from_bytes, pickle.dumps(Call(os.mkdir, harm(folder)))
    ),
    "numpy's loader": lambda folder: Call(np.load, harm(folder)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["whole", "among edges", "as a vector"])
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path, name, place):
    hostile, content = HOSTILE[name](tmp_path), authors()
    if place == "among edges":
        content["adj_noun_edges"].append(hostile)
    elif place == "as a vector":
        content["adj_code_book_vec"]["red"] = hostile
    with pytest.raises(BuildError, match=r"big_nlp_word_knowledge_clip\.pkl (is refused|has no)"):
        import_prior(pickled(tmp_path, hostile if place == "whole" else content))
    assert [file.name for file in tmp_path.iterdir()] == ["big_nlp_word_knowledge_clip.pkl"]


def test_the_refusal_names_what_the_pickle_wanted(tmp_path):
    with pytest.raises(BuildError, match=r"it names (posix|nt)\.mkdir, which is no tensor and no plain value"):
        import_prior(pickled(tmp_path, Call(os.mkdir, harm(tmp_path))))


def changed(**changes):
    return {**authors(), **changes}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "has no adj_code_book_num, noun_code_book_num"),
        (
            {key: value for key, value in authors().items() if key != "adj_noun_edges"},
            "has no adj_noun_edges; expected",
        ),
        (changed(adj_noun_edges={}), "has no adj_noun_edges"),
        (changed(adj_code_book_vec={}), "adj_code_book_vec is empty"),
        (changed(adj_code_book_num={"red": 1}), "adj_code_book_num has no count for 'orange'"),
        (changed(adj_code_book_vec={"red": torch.ones(6)}), None),
        (changed(adj_code_book_vec={"red": torch.ones(5)}), r"vectors of \[5, 6\] numbers"),
        (
            changed(adj_code_book_vec={"red": torch.ones(2, 3)}),
            "the vector of 'red' has to be a tensor of one dimension",
        ),
        (changed(adj_code_book_vec={"red": [1.0] * 6}), "the vector of 'red' has to be a tensor"),
        (changed(adj_noun_edges=["red"]), "has to be a list of"),
        (changed(adj_noun_edges=[("red", [])]), "has to be a list of"),
    ],
)
def test_other_layouts_are_refused(tmp_path, content, sentence):
    path = pickled(tmp_path, content)
    if sentence is None:
        assert import_prior(path).sizes == {"adjective": 1, "noun": 2}
    else:
        with pytest.raises(BuildError, match=sentence):
            import_prior(path)


def test_what_is_no_pickle_is_refused(tmp_path):
    path = tmp_path / "text.pkl"
    path.write_text("a caption")
    with pytest.raises(BuildError, match="is refused"):
        import_prior(path)
    path.write_bytes(pickle.dumps(authors())[:-40])
    with pytest.raises(BuildError, match="is refused"):
        import_prior(path)
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        import_prior(tmp_path / "none.pkl")
    with pytest.raises(PriorError, match="NaN"):
        import_prior(pickled(tmp_path, changed(adj_code_book_vec={"red": torch.full((6,), float("nan"))})))


def test_the_command_says_what_is_in_it_and_where_it_went(tmp_path, capsys, monkeypatch):
    from vqct_plugin.commands.import_prior import main

    monkeypatch.chdir(tmp_path)
    assert main([str(pickled(tmp_path, authors()))]) == 0
    told = capsys.readouterr().out
    assert "2 adjectives + 2 nouns = 4 codes" in told
    assert "edges left out, with a word that is no code: 2 occurrences" in told
    assert CodebookPrior.load("big_nlp_word_knowledge_clip.safetensors").sizes == {"adjective": 2, "noun": 2}
    assert main([str(tmp_path / "big_nlp_word_knowledge_clip.pkl")]) == 1
    assert "exists" in capsys.readouterr().err
