"""What benchmarks/codebooks.py compares: codebooks at equal bits, each with the settings its authors recommend.

Every quantizer here is called with z (B, C, H, W) and returns z_q, a loss, and indices (B, H, W, parts), each counted
from 0 within its part.
"""

import dataclasses
import math
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin import CodebookPrior, CodebookTransferQuantizer
from vqct_plugin.lookup import find_nearest
from vqct_plugin.terms import rotation, straight_through

Settings = Dict[str, Any]


class Contestant(NamedTuple):
    """A way to have a codebook.

    Attributes:
        make: ``make(sizes, channels, seed, steps, **settings)``: a quantizer with so many codes in each part, so many
            channels in all, for a training of so many steps.
        recommended: settings, and who recommends them.
        source: where.
        grid: what is tried instead, one at a time, and chosen from on the validation part.
    """

    make: Callable[..., nn.Module]
    recommended: Settings
    source: str
    grid: Sequence[Settings] = ()
    of_words: bool = False


class Parts(nn.Module):
    """A quantizer for each part of the channels, side by side: a product codebook where there are several."""

    def __init__(self, quantizers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(quantizers)

    def forward(self, z: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        results = [q(part) for q, part in zip(self.quantizers, z.chunk(len(self.quantizers), dim=1))]
        z_q, losses, indices = zip(*results)
        return torch.cat(z_q, dim=1), torch.stack([loss.reshape(()) for loss in losses]).sum(), torch.stack(indices, -1)


class Table(nn.Module):
    """A learned table with taming's start and loss: the base of the peers that are a few lines of their own."""

    def __init__(self, n: int, dim: int, beta: float = 0.25, legacy: bool = True, **others: Any) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(n, dim).uniform_(-1 / n, 1 / n))
        self.weights = (1.0, beta) if legacy else (beta, 1.0)  # of what pulls z, of what pulls the codes
        self.begin(**others)

    def begin(self) -> None:
        pass

    def codes(self) -> Tensor:
        return self.table

    def gradient(self, z: Tensor, q: Tensor) -> Tensor:
        return straight_through(z, q)

    def more(self, z: Tensor, codes: Tensor) -> Any:
        return 0.0

    def forward(self, z: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        flat = z.permute(0, 2, 3, 1)
        rows, codes = flat.reshape(-1, flat.shape[-1]), self.codes()
        with torch.no_grad():
            indices = find_nearest(rows, codes)[:, 0]
        q = codes[indices].view(flat.shape)
        loss = self.weights[0] * F.mse_loss(flat, q.detach()) + self.weights[1] * F.mse_loss(q, flat.detach())
        z_q = self.gradient(flat, q).permute(0, 3, 1, 2)
        return z_q, loss + self.more(rows, codes), indices.view(flat.shape[:-1])


class RotatedTable(Table):
    def gradient(self, z: Tensor, q: Tensor) -> Tensor:
        return rotation(z, q)


class WassersteinTable(Table):
    """Adds gamma times the squared 2-Wasserstein distance between Gaussians of z and of the codes."""

    def begin(self, gamma: float = 0.5) -> None:
        self.gamma = gamma

    def more(self, z: Tensor, codes: Tensor) -> Tensor:
        z = z.detach()
        a, b = (x - x.mean(0) for x in (z, codes))
        of_z, of_codes = (x.t() @ x / len(x) + 1e-5 * torch.eye(x.shape[1], device=x.device) for x in (a, b))
        values, vectors = torch.linalg.eigh(of_z)
        root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.t()
        cross = torch.linalg.eigvalsh(root @ of_codes @ root).clamp_min(1e-10).sqrt().sum()
        squared = ((z.mean(0) - codes.mean(0)) ** 2).sum() + of_z.trace() + of_codes.trace() - 2 * cross
        return self.gamma * squared / z.shape[1]


class IndexBackpropagation(Table):
    """IBQ: a softmax over all codes, made one-hot straight through, so that every code has a gradient."""

    def begin(self, entropy: float = 0.05, temperature: float = 0.01) -> None:
        self.entropy, self.temperature = entropy, temperature

    def forward(self, z: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        flat = z.permute(0, 2, 3, 1)
        rows = flat.reshape(-1, flat.shape[-1])
        logits = rows @ self.table.t()
        soft = logits.softmax(1)
        indices = logits.argmax(1)
        hard = F.one_hot(indices, len(self.table)).to(soft.dtype)
        one_hot = hard + soft - soft.detach()
        q = (one_hot @ self.table).view(flat.shape)
        hard_q = self.table[indices].view(flat.shape)
        loss = F.mse_loss(hard_q, flat) + self.weights[1] * F.mse_loss(hard_q.detach(), flat)
        loss = loss + F.mse_loss(hard_q, flat.detach())
        sharp = (logits / self.temperature).softmax(1)
        mean = sharp.mean(0)
        one = -(sharp * sharp.clamp_min(1e-10).log()).sum(1).mean()
        loss = loss + self.entropy * (one + (mean * mean.clamp_min(1e-10).log()).sum())
        return q.permute(0, 3, 1, 2), loss, indices.view(flat.shape[:-1])


class Learned(nn.Module):
    """Of vector-quantize-pytorch, with this file's contract."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        z_q, indices, loss = self.quantizer(z)
        return z_q, loss.sum(), indices


class Transferred(nn.Module):
    """Ours, with this file's contract."""

    def __init__(self, quantizer: CodebookTransferQuantizer, sizes: Sequence[int]) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.register_buffer("offsets", torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()]))

    def forward(self, z: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        z_q, loss, (_, _, indices) = self.quantizer(z)
        indices = indices.reshape(len(z), -1, *z.shape[2:]).permute(0, 2, 3, 1)
        return z_q, loss, indices - self.offsets


# The words.


def words_of(sizes: Sequence[int], prior: Optional[str] = None) -> CodebookPrior:
    """As many words as there are codes: of both parts of speech, or of all together where there is one part."""
    whole = CodebookPrior.load(prior or "default")
    if len(sizes) == 1:
        return whole.select(sizes[0])
    return whole.select(dict(zip(whole.parts, sizes)))


def changed(prior: CodebookPrior, how: str, seed: int) -> CodebookPrior:
    """A control's prior: ``random`` vectors of the words' own mean and covariance, or words ``permuted`` against the
    graph."""
    vectors, rng = prior.vectors.astype(np.float32), np.random.default_rng(seed)
    if how == "random":
        factor = np.linalg.svd((vectors - vectors.mean(0)) / math.sqrt(len(vectors)), full_matrices=False)
        drawn = rng.standard_normal((len(vectors), len(factor[1]))) * factor[1] @ factor[2] + vectors.mean(0)
        vectors = drawn.astype(np.float32)
    elif how == "permuted":
        vectors = vectors[rng.permutation(len(vectors))]
    return dataclasses.replace(prior, vectors=vectors.astype(np.float16))


def words_and_codes(quantizer: nn.Module) -> List[Tuple[Tensor, Tensor]]:
    """For each part: the words' vectors (n, C), as the language model has them, and their codes (n, D)."""
    own = quantizer.quantizer
    vectors, codes = torch.tensor(own.prior.vectors.astype(np.float32)), own.embedding.weight.detach().cpu()
    return [(vectors[s.first : s.last], codes[s.first : s.last]) for s in own.slices]


# How each is made.


def _of_tables(kind: Any) -> Callable[..., nn.Module]:
    def make(sizes: Sequence[int], channels: int, seed: int, steps: int, **settings: Any) -> nn.Module:
        settings.pop("rate", None)
        return Parts([kind(n, channels // len(sizes), **settings) for n in sizes])

    return make


def make_learned(sizes: Sequence[int], channels: int, seed: int, steps: int, **settings: Any) -> nn.Module:
    from vector_quantize_pytorch import VectorQuantize

    settings.pop("rate", None)
    dim = channels // len(sizes)
    return Parts([Learned(VectorQuantize(dim, n, accept_image_fmap=True, **settings)) for n in sizes])


#: at most so many codes, as the authors' table has it (1,000 and 15,360) or next to it
_FSQ_LEVELS = {1024: [8, 5, 5, 5], 16384: [8, 8, 8, 6, 5], 399: [8, 7, 7], 625: [5, 5, 5, 5]}


class Finite(nn.Module):
    """Finite scalar quantization, with this file's contract: no codebook, and no loss."""

    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ

        dims = max(1, round(math.log(n) / math.log(6)))
        levels = _FSQ_LEVELS.get(n, [max(3, int(n ** (1 / dims)))] * dims)
        self.quantizer = FSQ(levels, dim=dim, channel_first=True)

    def forward(self, z: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        z_q, indices = self.quantizer(z)
        return z_q, z.new_zeros(()), indices.long()


def make_finite(sizes: Sequence[int], channels: int, seed: int, steps: int, **settings: Any) -> nn.Module:
    settings.pop("rate", None)
    return Parts([Finite(n, channels // len(sizes)) for n in sizes])


def make_residual(sizes: Sequence[int], channels: int, seed: int, steps: int, **settings: Any) -> nn.Module:
    from vector_quantize_pytorch import ResidualVQ

    settings.pop("rate", None)
    return LearnedResidual(ResidualVQ(dim=channels, num_quantizers=len(sizes), codebook_size=tuple(sizes), **settings))


class LearnedResidual(nn.Module):
    """Of vector-quantize-pytorch, several tables whose codes are added, with this file's contract."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        rows = z.flatten(2).transpose(1, 2)
        z_q, indices, loss = self.quantizer(rows)
        return z_q.transpose(1, 2).reshape(z.shape), loss.sum(), indices.view(len(z), *z.shape[2:], -1)


def make_word_residual(sizes: Sequence[int], channels: int, seed: int, steps: int, **settings: Any) -> nn.Module:
    """vector-quantize-pytorch's residual VQ whose levels are our module: one prior, for each level its averages."""
    from vector_quantize_pytorch import ResidualVQ

    from vqct_plugin.hosts.vector_quantize import VectorQuantize

    residual = ResidualVQ(dim=channels, num_quantizers=len(sizes), codebook_size=tuple(sizes))
    averages = {"target": "averages", "params": {"arrange_steps": max(1, round(0.6 * steps))}}
    settings = {"transfer": averages, "rotation_trick": False, **settings}
    residual.layers = nn.ModuleList([VectorQuantize(channels, n, prior=words_of([n]), **settings) for n in sizes])
    return LearnedResidual(residual)


def make_simvq(sizes: Sequence[int], channels: int, seed: int, steps: int, **settings: Any) -> nn.Module:
    from vector_quantize_pytorch import SimVQ

    settings.pop("rate", None)
    dim = channels // len(sizes)
    return Parts([Learned(SimVQ(dim, n, channel_first=True, **settings)) for n in sizes])


def make_transferred(
    sizes: Sequence[int],
    channels: int,
    seed: int,
    steps: int,
    control: str = "",
    centered: bool = False,
    prior: Optional[str] = None,
    **settings: Any,
) -> nn.Module:
    settings.pop("rate", None)
    settings = {"transfer": "graph", "combine": "concat", **settings}  # the paper's
    words = words_of(sizes, prior)
    if control:
        words = changed(words, control, seed)
    if centered:
        vectors = words.vectors.astype(np.float32) - words.vectors.astype(np.float32).mean(0)
        vectors *= math.sqrt(vectors.shape[1]) / np.linalg.norm(vectors, axis=1, keepdims=True)
        words = dataclasses.replace(words, vectors=vectors.astype(np.float16))
    parts = "joint" if len(sizes) == 1 else words.parts
    quantizer = CodebookTransferQuantizer(len(words), channels, prior=words, parts_of_speech=parts, **settings)
    return Transferred(quantizer, sizes)


def make_averages(
    sizes: Sequence[int], channels: int, seed: int, steps: int, arrange: bool = True, **settings: Any
) -> nn.Module:
    """``arrange``: words exchange codes, over the first 60% of the training; otherwise a code is a number."""
    own = {name: settings.pop(name) for name in ("relatives", "decay", "restart") if name in settings}
    params = {**own, "arrange_steps": max(1, round(0.6 * steps)) if arrange else 0}
    return make_transferred(sizes, channels, seed, steps, transfer={"target": "averages", "params": params}, **settings)


_EMA = {"kmeans_init": True, "decay": 0.8, "threshold_ema_dead_code": 2, "rotation_trick": False}
#: a threshold is a number of choices in the average batch, so that it has to be lower where there are more codes
_GENTLE: Settings = {"decay": 0.99, "threshold_ema_dead_code": 0.1}
_EMA_GRID: List[Settings] = [
    {"decay": 0.95}, {"threshold_ema_dead_code": 0.1}, _GENTLE, {"decay": 0.99, "threshold_ema_dead_code": 0.005},
    {"commitment_weight": 0.25},
]  # fmt: skip
#: the same small grid for all that learn by gradient: the rate of the codebook against the network's
_RATES: List[Settings] = [{"rate": 0.3}, {"rate": 3.0}]

CONTESTANTS: Dict[str, Contestant] = {
    "stock": Contestant(_of_tables(Table), {}, "taming-transformers' configs", [*_RATES, {"legacy": False}]),
    "rotation": Contestant(
        _of_tables(RotatedTable), {"legacy": False}, "Fifty et al. 2024", [*_RATES, {"legacy": True}]
    ),
    "EMA": Contestant(
        make_learned, _EMA, "vector-quantize-pytorch's README: k-means start, threshold 2",
        _EMA_GRID,
    ),
    "EMA, residual": Contestant(
        make_residual, _EMA, "vector-quantize-pytorch's README: as many tables, whose codes are added",
        [_GENTLE],  # its beam_size fails while training in 1.32, where the averages are updated
    ),
    "EMA, rotation": Contestant(
        make_learned, {**_EMA, "rotation_trick": True}, "vector-quantize-pytorch's default gradient",
        _EMA_GRID,
    ),
    "SimVQ": Contestant(
        make_simvq, {"rotation_trick": False}, "Zhu et al. 2024", [*_RATES, {"rotation_trick": True}]
    ),
    "FSQ": Contestant(make_finite, {}, "Mentzer et al. 2024, table 1: levels", _RATES),
    "VQGAN-LC": Contestant(
        make_transferred, {"transfer": "linear"}, "Zhu et al. 2024: frozen vectors, here of words, and a linear layer",
        _RATES, True,
    ),
    "DiVeQ": Contestant(
        make_learned,
        {"directional_reparam": True, "commitment_weight": 0.0, "threshold_ema_dead_code": 2},  # it has to be above 0
        "vector-quantize-pytorch's README",
        [*_RATES, {"directional_reparam_variance": 1e-3}],
    ),
    "Wasserstein": Contestant(
        _of_tables(WassersteinTable), {"gamma": 0.5}, "Fang et al. 2025", [*_RATES, {"gamma": 0.1}]
    ),
    "IBQ": Contestant(_of_tables(IndexBackpropagation), {}, "Shi et al. 2024", [*_RATES, {"entropy": 0.0}]),
    "VQCT": Contestant(make_transferred, {}, "the paper", [*_RATES, {"legacy": False}], True),
    "VQCT, random vectors": Contestant(make_transferred, {"control": "random"}, "control", [], True),
    "VQCT, permuted words": Contestant(make_transferred, {"control": "permuted"}, "control", [], True),
    "VQCT, centered, legacy off": Contestant(
        make_transferred, {"centered": True, "legacy": False}, "idea 1", [*_RATES, {"dropout": 0.0}], True
    ),
    "VQCT, centered, rotation": Contestant(
        make_transferred, {"centered": True, "legacy": False, "gradient": "rotation"}, "idea 2",
        [*_RATES, {"dropout": 0.0}], True,
    ),
    "averages": Contestant(
        make_averages, {"beta": 1.0}, "ours: transfer averages",
        [
            {"decay": 0.9}, {"restart": 0.2}, {"beta": 0.25}, {"beta": 0.25, "restart": 0.2}, {"gradient": "rotation"},
        ], True,
    ),
    "averages, added": Contestant(
        make_averages, {"combine": "sum", "beta": 1.0}, "ours: the default, but for beta",
        [{"decay": 0.9}, {"beta": 0.25}], True,
    ),
    "averages, residual": Contestant(
        make_word_residual, {}, "ours behind vector-quantize-pytorch's ResidualVQ", [{"commitment_weight": 0.25}],
    ),
    "averages, without words": Contestant(make_averages, {"arrange": False, "beta": 1.0}, "control", [], True),
    "averages, random vectors": Contestant(make_averages, {"control": "random", "beta": 1.0}, "control", [], True),
}  # fmt: skip


def parameters_of(quantizer: nn.Module) -> List[nn.Parameter]:
    return [p for p in quantizer.parameters() if p.requires_grad]
