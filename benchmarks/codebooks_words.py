"""Whether words still mean something in a trained codebook: two figures for benchmarks/codebooks.py."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from codebooks_data import list_photographs, to_tensor
from torch import Tensor

from vqct_plugin.runs.image_files import read_image

NEAREST = 10
#: of the words' vectors, for each part; how often words are dealt to codes at random
COMPONENTS, SHUFFLES = 32, 5
#: the folder of each part below --data; the first part of a file's name is its class
CLOTHING = {name: f"photographs/clothing/{name}" for name in ("train", "validation", "test")}


def kept_neighbors(vectors: Tensor, codes: Tensor, nearest: int = NEAREST) -> Tuple[float, float]:
    """The share of a word's nearest words whose codes are among the nearest codes of its own code, and the share that
    chance would give.

    Args:
        vectors: (n, C), of a language model; compared by the cosine of what differs from their mean.
        codes: (n, D); compared by distance.
        nearest: how many neighbors of each word.
    """
    x = F.normalize(vectors.double() - vectors.double().mean(0), dim=1)
    of_words = _nearest_rows(-(x @ x.t()), nearest)
    of_codes = _nearest_rows(torch.cdist(codes.double(), codes.double()), nearest)
    kept = (of_words.unsqueeze(2) == of_codes.unsqueeze(1)).any(dim=2).double().mean()
    return float(kept), nearest / (len(vectors) - 1)


def _nearest_rows(distances: Tensor, nearest: int) -> Tensor:
    distances.fill_diagonal_(float("inf"))
    return distances.topk(nearest, dim=1, largest=False)[1]


@torch.no_grad()
def count_codes(model: Any, quantizer: Any, sizes: Sequence[int], files: Sequence[Path], side: int) -> np.ndarray:
    """(photographs, codes of all parts): how often each photograph chooses each code, in a square from its middle."""
    device = next(model.parameters()).device
    counts = np.zeros((len(files), sum(sizes)), np.float32)
    starts = np.cumsum([0, *sizes[:-1]])
    for first in range(0, len(files), 32):
        squares = np.stack([_cut_middle(np.asarray(read_image(file)), side) for file in files[first : first + 32]])
        indices = quantizer(model.encoder(to_tensor(squares).to(device)))[2].cpu().numpy()
        for row, own in enumerate(indices.reshape(len(squares), -1, len(sizes)), first):
            np.add.at(counts[row], (own + starts).reshape(-1), 1)
    return counts


def _cut_middle(pixels: np.ndarray, side: int) -> np.ndarray:
    top, left = ((n - side) // 2 for n in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def classify_clothing(
    model: Any, quantizer: Any, sizes: Sequence[int], data: Path, side: int = 144, vectors: Sequence[Tensor] = ()
) -> Dict[str, float]:
    """How many of the test photographs of clothes a linear classifier tells by the counts of their codes alone.

    Logistic regression on roots of counts; its penalty is chosen on the validation photographs.

    To that classifier a code is a column, whatever its word. With the words' vectors, (n, C) of each part, a second one
    sees only what the words say: of each part the mean of the vectors of a photograph's words, in COMPONENTS principal
    components. It is compared with the same after the words were dealt to the codes at random.

    Returns:
        ``accuracy``; ``chance``, the share of the most frequent class; of ``vectors``: ``by_meaning``, and
        ``by_shuffled``, the mean of SHUFFLES deals.
    """
    counts, classes = {}, {}
    for split, folder in CLOTHING.items():
        files = [f for f in list_photographs(data, split) if data / folder in f.parents]
        counts[split] = count_codes(model, quantizer, sizes, files, side)
        classes[split] = [f.name.split("_")[0] for f in files]
    figures = fit({split: (np.sqrt(own), classes[split]) for split, own in counts.items()})
    if vectors:
        reduced = [_principal(own) for own in vectors]
        figures["by_meaning"] = _fit_means(counts, classes, reduced)
        dealt = []
        for seed in range(SHUFFLES):
            rng = np.random.default_rng(seed)
            dealt.append(_fit_means(counts, classes, [own[rng.permutation(len(own))] for own in reduced]))
        figures["by_shuffled"] = sum(dealt) / len(dealt)
    return figures


def _principal(vectors: Tensor) -> np.ndarray:
    """(n, COMPONENTS): the first principal components, each of variance 1."""
    x = vectors.double() - vectors.double().mean(0)
    found: np.ndarray = torch.linalg.svd(x, full_matrices=False)[0][:, :COMPONENTS].numpy() * len(x) ** 0.5
    return found


def _fit_means(counts: Dict[str, np.ndarray], classes: Dict[str, List[str]], vectors: Sequence[np.ndarray]) -> float:
    ends = np.cumsum([len(own) for own in vectors])[:-1]

    def means(own: np.ndarray) -> np.ndarray:
        parts = zip(np.split(own, ends, axis=1), vectors)
        return np.concatenate([part / part.sum(1, keepdims=True) @ words for part, words in parts], axis=1)

    found = {split: means(own) for split, own in counts.items()}
    spread = found["train"].std(0).clip(1e-9)
    return fit({split: (own / spread, classes[split]) for split, own in found.items()}, (0.01, 0.1, 1.0))["accuracy"]


def fit(
    found: Dict[str, Tuple[np.ndarray, List[str]]], penalties: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1)
) -> Dict[str, float]:
    """Train on ``train``, choose on ``validation``, judge ``test``."""
    from sklearn.linear_model import LogisticRegression

    best: Optional[Tuple[float, Any]] = None
    for penalty in penalties:
        classifier = LogisticRegression(C=penalty, max_iter=1000).fit(*found["train"])
        score = classifier.score(*found["validation"])
        if best is None or score > best[0]:
            best = score, classifier
    classes = found["test"][1]
    most = max(classes.count(c) for c in set(classes)) / len(classes)
    return {"accuracy": float(best[1].score(*found["test"])) if best else 0.0, "chance": most}
