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
    assert prior.neighbors("wheel", "noun") == [("red", "adjective", 2), ("orange", "adjective", 1)]
    assert prior.provenance["edges_left_out"] == 2
    assert prior.provenance["language_model"] == "openai/clip-vit-base-patch32"


def made_up(adjectives=40, nouns=60, both=15, dim=8, seed=0):
    """A larger file of their layout: words of both parts, (w, w), and words that are a code in the other part only."""
    rng = np.random.RandomState(seed)
    spelled = [f"both{i}" for i in range(both)]
    adj = [f"adj{i}" for i in range(adjectives - both)] + spelled
    noun = spelled + [f"noun{i}" for i in range(nouns - both)]
    rng.shuffle(adj), rng.shuffle(noun)
    before = [*adj, "noun3", "rare"]  # noun3 stood as an adjective too, but seldom
    after = [*noun, "adj2", "rarer"]
    ends = zip(rng.randint(len(before), size=600), rng.randint(len(after), size=600))
    edges = [(before[a], after[b]) for a, b in ends]
    edges += [(word, word) for word in spelled[:6]] + [("both1", "both1"), ("both0", "both1"), ("both1", "both0")]
    rng.shuffle(edges)
    return {
        "adj_code_book": adj,
        "noun_code_book": noun,
        "adj_code_book_vec": {word: torch.randn(dim) for word in adj},
        "noun_code_book_vec": {word: torch.randn(dim) for word in noun},
        "adj_code_book_num": {**{word: int(rng.randint(11, 99)) for word in adj}, "noun3": 2, "rare": 3},
        "noun_code_book_num": {**{word: int(rng.randint(11, 99)) for word in noun}, "adj2": 2, "rarer": 1},
        "adj_noun_edges": [(str(a), str(b)) for a, b in edges],
    }


def codes_of_their_module(content, layers):
    """(part, word) -> code, as their module computes it: one dictionary, an edge per occurrence, PyG's GCNConv."""
    pairs = [(0, word) for word in content["adj_code_book_vec"]] + [(1, word) for word in content["noun_code_book_vec"]]
    number = {word: i for i, (_, word) in enumerate(pairs)}
    ends = [(number[a], number[b]) for a, b in content["adj_noun_edges"] if a in number and b in number]
    edges = torch.tensor(ends + [(b, a) for a, b in ends]).t()
    vectors = [content[("adj_code_book_vec", "noun_code_book_vec")[part]][word] for part, word in pairs]
    hidden = torch.relu(layers[0](torch.stack(vectors), edges))
    return dict(zip(pairs, layers[1](hidden, edges)))


def test_with_the_authors_edges_their_weights_give_their_codes_and_without_them_others(tmp_path):
    gcn = pytest.importorskip("torch_geometric.nn").GCNConv
    from vqct_plugin.transfer import GraphTransfer

    content, layers = made_up(), (gcn(8, 6), gcn(6, 6))
    for layer in layers:
        layer.bias.data.normal_()
    theirs = codes_of_their_module(content, layers)

    def differences(prior):
        transfer = GraphTransfer(prior, 6)
        with torch.no_grad():
            for ours, layer in zip((transfer.layer1, transfer.layer2), layers):
                ours.weight.copy_(layer.lin.weight)
                ours.bias.copy_(layer.bias)
        pairs = zip(prior.part_of_speech.tolist(), prior.words)
        expected = torch.stack([theirs[pair] for pair in pairs])
        return (transfer() - expected).norm(dim=1) / expected.norm(dim=1)

    path, output = pickled(tmp_path, content), tmp_path / "p.safetensors"
    assert differences(import_prior(path, output, authors_edges=True)).max() < 1e-5
    assert differences(CodebookPrior.load(output)).max() < 1e-5
    assert (differences(import_prior(path)) > 0.1).float().mean() > 0.2  # a tie of one word changes its relatives too


def test_the_authors_edges_by_hand(tmp_path):
    content = authors()
    # orange the noun stands for both; (orange, orange) is a loop; wheel as an adjective is the noun; red as a noun the
    # adjective, and (red, red) a loop of it
    content["adj_noun_edges"] += [("orange", "orange"), ("wheel", "orange"), ("orange", "red"), ("red", "red")]
    path = pickled(tmp_path, content)
    prior = import_prior(path, authors_edges=True)
    assert prior.neighbors("orange", "adjective") == []
    assert prior.neighbors("orange", "noun") == [("wheel", "noun", 2), ("red", "adjective", 1)]
    assert prior.neighbors("red") == [("wheel", "noun", 2), ("orange", "noun", 1)]
    assert (prior.provenance["edges_left_out"], prior.provenance["loops_left_out"]) == (2, 2)
    assert "authors' module" in prior.provenance["edges"]
    ours = import_prior(path)
    assert ours.neighbors("orange", "adjective") == [("wheel", "noun", 1), ("orange", "noun", 1)]
    assert ours.provenance["edges_left_out"] == 5
    assert not ours.edges_within_parts


def test_an_import_has_the_bytes_it_always_had(tmp_path):
    import_prior(pickled(tmp_path, authors()), tmp_path / "p.safetensors")
    prior = CodebookPrior.load(tmp_path / "p.safetensors")
    assert prior.fingerprint.startswith("467e8cce5c5e35fa")
    assert set(prior.provenance) == {
        "imported_from", "language_model", "edges", "edges_left_out", "vectors", "tool"
    }  # fmt: skip
    assert prior.provenance["edges"] == "adjective right before noun"


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
    with pytest.raises(BuildError, match=r"it names (posix|nt)\.mkdir, which is neither a tensor nor a plain value"):
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
    assert "edges left out because a word of theirs is not a code: 2 occurrences" in told
    assert CodebookPrior.load("big_nlp_word_knowledge_clip.safetensors").sizes == {"adjective": 2, "noun": 2}
    assert main([str(tmp_path / "big_nlp_word_knowledge_clip.pkl")]) == 1
    assert "exists" in capsys.readouterr().err
    theirs = pickled(tmp_path, changed(adj_noun_edges=[("orange", "wheel"), ("orange", "orange")]))
    assert main([str(theirs), "--authors-edges", "--output", "theirs.safetensors"]) == 0
    assert "of a noun with itself left out (as GCNConv does): 1 occurrences" in capsys.readouterr().out
    assert CodebookPrior.load("theirs.safetensors").neighbors("orange", "noun") == [("wheel", "noun", 1)]
    assert main([str(theirs), "-q", "--output", "quiet.safetensors"]) == 0
    assert capsys.readouterr().out == ""
