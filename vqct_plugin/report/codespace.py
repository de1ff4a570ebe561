"""What transfer does to the words: the nearest of each before and after it, and what one step of training moves."""

import copy
from typing import Any, List, NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

_ROUNDING = 1e-6  # of a code's length


def get_codebook(quantizer: Any) -> Tensor:
    """The codes (n_e, D) of a quantizer, stock or ours, on the CPU, as evaluation uses them."""
    embedding = quantizer.embed if not hasattr(quantizer, "embedding") else quantizer.embedding  # GumbelQuantize
    return embedding.weight.detach().float().cpu()


def get_word_vectors(quantizer: Any) -> np.ndarray:
    """(n_e, d) float32: the language model's vector of each code's word, before transfer."""
    vectors: np.ndarray = quantizer.prior.vectors.astype(np.float32)
    return vectors


def find_neighbors(vectors: np.ndarray, part_of_speech: np.ndarray, number: int, metric: str) -> np.ndarray:
    """(n, number) the nearest other codes of the same part, the nearest first; -1 where a part has fewer.

    ``metric``: ``"cosine"`` for words' vectors, ``"euclidean"`` for codes, which are looked up by it.
    """
    found = np.full((len(vectors), number), -1, dtype=np.int64)
    for part in np.unique(part_of_speech):
        places = np.flatnonzero(part_of_speech == part)
        own = torch.from_numpy(vectors[places].astype(np.float32))
        if metric == "cosine":
            own = torch.nn.functional.normalize(own)
        for first in range(0, len(places), 1024):
            rows = own[first : first + 1024]
            distance = torch.cdist(rows, own, compute_mode="donot_use_mm_for_euclid_dist")
            distance[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = float("inf")
            order = distance.argsort(dim=1, stable=True)[:, : min(number, len(places) - 1)].numpy()
            found[places[first : first + 1024], : order.shape[1]] = places[order]
    return found


def share_kept(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(n,) the share of each code's nearest before that is among its nearest after, see :func:`find_neighbors`."""
    same = (before[:, :, None] == after[:, None, :]) & (before >= 0)[:, :, None]
    number = np.maximum((before >= 0).sum(axis=1), 1)
    share: np.ndarray = same.any(axis=2).sum(axis=1) / number
    return share


def measure_moves(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(n,) how far each code was moved, beyond what moves all codes alike.

    The words' vectors, in as many of their principal components as codes have channels, are fitted to the codes by
    shifting, turning, mirroring and one common scale (an orthogonal Procrustes problem, Schoenemann 1966). What
    is left between a word and its code is its move, in units of the codes' root mean square distance from their middle:
    0, it went with the others; about 1, it went elsewhere.
    """
    a, b = (x.astype(np.float64) - x.astype(np.float64).mean(axis=0) for x in (before, after))
    _, _, directions = np.linalg.svd(a, full_matrices=False)
    a = a @ directions[: b.shape[1]].T
    a = np.pad(a, ((0, 0), (0, b.shape[1] - a.shape[1])))
    left, singular, right = np.linalg.svd(a.T @ b)
    smallest = np.finfo(np.float64).tiny
    scale = singular.sum() / max(float((a**2).sum()), smallest)
    radius = max(float(np.sqrt((b**2).sum(axis=1).mean())), smallest)
    distance: np.ndarray = np.linalg.norm(scale * (a @ (left @ right)) - b, axis=1) / radius
    return distance


class Step(NamedTuple):
    """What one step of training did to a codebook.

    Attributes:
        chosen: (n,) bool, which codes the batch chose.
        distance: (n,) how far each code moved; 0 for one that did not.
    """

    chosen: np.ndarray
    distance: np.ndarray

    @property
    def updated(self) -> int:
        """How many codes moved."""
        return int((self.distance > 0).sum())


def take_step(model: Any, images: Tensor, learning_rate: float = 1e-4) -> Step:
    """One step of Adam, as the first of a training, or of moving averages, on a copy of a model's quantizer; the model
    stays as it is.

    Codes are learned from the quantizer's own loss alone, which is all that is computed here.

    Args:
        model: a taming ``VQModel``, stock or ours.
        images: (B, 3, H, W) in [-1, 1].
        learning_rate: of Adam, with taming's betas.
    """
    quantizer = copy.deepcopy(model.quantize).train()
    if hasattr(quantizer, "unfreeze_codebook"):
        quantizer.unfreeze_codebook()
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            z = model.quant_conv(model.encoder(images.to(device)))
    finally:
        model.train(was_training)
    before = get_codebook(quantizer).clone()
    learned = [*quantizer.parameters()]
    with torch.enable_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)  # dropout
        _, loss, (_, _, indices) = quantizer(z)  # averages move in this pass already
        if learned:
            optimizer = torch.optim.Adam(learned, lr=learning_rate, betas=(0.5, 0.9))
            loss.backward()
            optimizer.step()
    distance = (get_codebook(quantizer) - before).norm(dim=1).numpy()
    distance[distance < _ROUNDING * before.norm(dim=1).numpy()] = 0.0  # a quotient of averages is rounded anew
    chosen = np.bincount(indices.reshape(-1).cpu().numpy(), minlength=len(before)) > 0
    return Step(chosen, distance)


def rank_moves(distance: np.ndarray, part_of_speech: np.ndarray, number: int) -> List[Tuple[List[int], List[int]]]:
    """For each part, the codes that moved least and most."""
    found = []
    for part in np.unique(part_of_speech):
        places = np.flatnonzero(part_of_speech == part)
        order = places[np.argsort(distance[places], kind="stable")]
        found.append(([int(i) for i in order[:number]], [int(i) for i in order[::-1][:number]]))
    return found
