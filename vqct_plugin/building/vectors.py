"""Words -> the vectors that a language model has for them."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from vqct_plugin.building.captions import BuildError


class InputEmbeddings:
    """The input embeddings of a ``transformers`` model: a word's vector is the mean of its pieces' rows.

    Loading reads the whole model and keeps the table only.

    Args:
        plm: a local folder, as ``save_pretrained`` writes it, or a name on the Hugging Face hub.
        name: what to call the model in the prior; the folder's base name or the hub name by default.

    Raises:
        BuildError: the model or its tokenizer cannot be loaded, or takes no text.
    """

    def __init__(self, plm: str, name: Optional[str] = None) -> None:
        is_folder = Path(plm).is_dir()
        if not is_folder and (Path(plm).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", plm) or plm[0] in "./~"):
            raise BuildError(f"language model {plm!r} is neither a folder that exists nor a name on the hub")
        self.name = name or (Path(plm).resolve().name if is_folder else plm)
        import transformers  # seconds of import: only once something is to be loaded

        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(plm)
            model: Any = transformers.AutoModel.from_pretrained(plm)
        except Exception as error:
            raise BuildError(
                f"{_cannot_load(plm, is_folder)}\n({type(error).__name__}: {_first_line(error)})"
            ) from error
        try:
            table = model.get_input_embeddings().weight
        except (NotImplementedError, AttributeError) as error:
            raise BuildError(f"language model {self.name!r} ({type(model).__name__}) has no text input") from error
        if table.ndim != 2 or table.shape[0] < len(self._tokenizer):
            raise BuildError(
                f"the input embeddings of {self.name!r} ({type(model).__name__}) have shape {tuple(table.shape)}; "
                f"expected at least one row for each of the tokenizer's {len(self._tokenizer):,} pieces"
            )
        self._table = table.detach().float().cpu().numpy().copy()

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return int(self._table.shape[1])

    def __call__(
        self, words: Sequence[str], batch_size: int = 1024, progress: bool = False
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Vectors (n, dim) float32, and known (n,) bool.

        A word is unknown where the tokenizer has its unknown piece, or no piece at all, for it or a part of it. Its row
        is NaN, so that it cannot pass for a vector.
        """
        vectors = np.full((len(words), self.dim), np.nan, dtype=np.float32)
        known = np.zeros(len(words), dtype=bool)
        starts = range(0, len(words), batch_size)
        for start in tqdm(starts, desc="word vectors", unit="batch", disable=not progress):
            pieces = self._pieces(words[start : start + batch_size])
            usable = [i for i, ids in enumerate(pieces) if ids and self._tokenizer.unk_token_id not in ids]
            if not usable:
                continue
            lengths = np.array([len(pieces[i]) for i in usable])
            rows = self._table[np.concatenate([pieces[i] for i in usable])].astype(np.float64)
            sums = np.add.reduceat(rows, np.cumsum(lengths) - lengths, axis=0)
            vectors[start + np.array(usable)] = sums / lengths[:, None]
            known[start + np.array(usable)] = True
        return vectors, known

    def _pieces(self, words: Sequence[str]) -> List[List[int]]:
        """A word's pieces as it stands inside a sentence.

        Byte-level tokenizers (GPT-2) have another, commoner piece for a word after a space; for others the space is
        nothing, or (Llama) a piece of its own, and then the word without it is meant.
        """

        def tokenized(texts: List[str]) -> List[List[int]]:
            return list(self._tokenizer(texts, add_special_tokens=False)["input_ids"])

        after_space, bare = tokenized([f" {word}" for word in words]), tokenized(list(words))
        return [a if len(a) <= len(b) else b for a, b in zip(after_space, bare)]

    def describe(self) -> Dict[str, Any]:
        """How the vectors were made, for a prior's record."""
        table_digest = hashlib.sha256(np.ascontiguousarray(self._table).tobytes()).hexdigest()
        return {"kind": "input embeddings, mean over a word's pieces", "dim": self.dim, "table_sha256": table_digest}


def _cannot_load(plm: str, is_folder: bool) -> str:
    if is_folder:
        return (
            f"no language model could be loaded from the folder {plm}; expected what save_pretrained writes: "
            "config.json, the weights, and the tokenizer's files"
        )
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") else ""
    return (
        f"language model {plm!r} could not be loaded from the Hugging Face hub{offline}: it is not there, or the hub "
        "cannot be reached. Without a network, save it on a machine that has one (AutoModel and AutoTokenizer, "
        "from_pretrained then save_pretrained) and pass the folder: --plm FOLDER"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
