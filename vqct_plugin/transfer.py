"""Word vectors to code vectors: the paper's graph network, and what its ablations put in its place.

Source: Zhang et al., CVPR 2024, the graph-based codebook transfer; the layer is Kipf and Welling's graph convolution
(ICLR 2017). Every transfer is a module that takes no input and returns the codes (n, D): all it is made of are its
parameters and buffers, so that a checkpoint holds the codebook.
"""

from typing import Any, Dict, Tuple, Type

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin._torch import at_least_float32
from vqct_plugin.prior import CodebookPrior

EDGE_WEIGHTS = ("count", "binary", "log")


class Transfer(nn.Module):
    """What all transfers share: ``forward(dropout=None)`` gives the codes (n, D) of the prior's words, in float32."""

    #: names of the buffers that never change
    constants: Tuple[str, ...] = ()

    def forward(self, dropout: bool = False) -> Tensor:
        """The codes (n, D). ``dropout``: with a fresh dropout mask, as in training."""
        raise NotImplementedError


class GraphTransfer(Transfer):
    """The paper's two-layer graph network over the words.

    ``E = A~ · dropout(relu(A~ · X · W1 + b1)) · W2 + b2`` with ``A~ = S^(-1/2) (A + I) S^(-1/2)``: X (n, d) the word
    vectors, A (n, n) the symmetric edge weights, S the degrees with the loop, W1 (d, D), W2 (D, D). A step on one code
    so moves its relatives. It is what two of PyG's ``GCNConv`` compute from edges repeated as often as they occur;
    here A~ X is computed once, because it never changes, and equal edges are one.

    Args:
        prior: n words with vectors and edges; a word without edges keeps its own vector.
        code_dim: D.
        dropout: the probability of the paper's dropout between the layers.
        edge_weight: ``"count"``, how often two words stood side by side (what the authors' code has in effect);
            ``"binary"``, 1; or ``"log"``, ``1 + log(count)``.
    """

    constants = ("propagated", "neighbours", "offsets", "weights")
    propagated: Tensor
    neighbours: Tensor
    offsets: Tensor
    weights: Tensor

    def __init__(self, prior: CodebookPrior, code_dim: int, dropout: float = 0.5, edge_weight: str = "count") -> None:
        super().__init__()
        if edge_weight not in EDGE_WEIGHTS:
            raise ValueError(f"edge_weight is {edge_weight!r}; expected one of {', '.join(EDGE_WEIGHTS)}")
        neighbours, offsets, weights = _normalized_adjacency(prior, edge_weight)
        vectors = torch.tensor(prior.vectors.astype(np.float64))
        propagated = _propagate_rows(vectors, neighbours, offsets, weights)
        self.register_buffer("propagated", propagated.float())  # A~ X
        self.register_buffer("neighbours", neighbours)
        self.register_buffer("offsets", offsets)
        self.register_buffer("weights", weights.float())
        self.layer1 = nn.Linear(vectors.shape[1], code_dim)
        self.layer2 = nn.Linear(code_dim, code_dim)
        for layer in (self.layer1, self.layer2):  # as GCNConv begins
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.dropout = SharedDropout(dropout)

    def forward(self, dropout: bool = False) -> Tensor:
        hidden = torch.relu(_linear(self.layer1, at_least_float32(self.propagated)))
        if dropout:
            hidden = self.dropout(hidden)
        hidden = Propagate.apply(hidden, self.neighbours, self.offsets, at_least_float32(self.weights))
        return _linear(self.layer2, hidden)


class MLPTransfer(Transfer):
    """The ablation without a graph: each word alone through Linear, LeakyReLU(0.1), Linear."""

    constants = ("vectors",)
    vectors: Tensor

    def __init__(self, prior: CodebookPrior, code_dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.tensor(prior.vectors.astype(np.float32)))
        self.layer1 = nn.Linear(self.vectors.shape[1], code_dim)
        self.layer2 = nn.Linear(code_dim, code_dim)

    def forward(self, dropout: bool = False) -> Tensor:
        hidden = F.leaky_relu(_linear(self.layer1, at_least_float32(self.vectors)), 0.1)
        return _linear(self.layer2, hidden)


class LinearTransfer(Transfer):
    """One linear map of the word vectors, shared by all words."""

    constants = ("vectors",)
    vectors: Tensor

    def __init__(self, prior: CodebookPrior, code_dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.tensor(prior.vectors.astype(np.float32)))
        self.layer = nn.Linear(self.vectors.shape[1], code_dim)

    def forward(self, dropout: bool = False) -> Tensor:
        return _linear(self.layer, at_least_float32(self.vectors))


class TableTransfer(Transfer):
    """No transfer: a table learned from scratch, begun as taming's ``VectorQuantizer2`` begins (the paper's ablation
    without prior knowledge). The prior gives the number of codes and their names only."""

    def __init__(self, prior: CodebookPrior, code_dim: int) -> None:
        super().__init__()
        n = len(prior)
        self.table = nn.Embedding(n, code_dim)
        self.table.weight.data.uniform_(-1.0 / n, 1.0 / n)

    def forward(self, dropout: bool = False) -> Tensor:
        return at_least_float32(self.table.weight)


TRANSFERS: Dict[str, Type[Transfer]] = {
    "graph": GraphTransfer,
    "mlp": MLPTransfer,
    "linear": LinearTransfer,
    "table": TableTransfer,
}


def build_transfer(
    name: str, prior: CodebookPrior, code_dim: int, dropout: float = 0.5, edge_weight: str = "count"
) -> Transfer:
    """The transfer of that name. ``dropout`` and ``edge_weight`` belong to the graph; with another transfer, a value
    other than the default is refused rather than ignored."""
    if name not in TRANSFERS:
        raise ValueError(f"unknown transfer {name!r}; expected one of {', '.join(TRANSFERS)}")
    if name == "graph":
        return GraphTransfer(prior, code_dim, dropout=dropout, edge_weight=edge_weight)
    if dropout not in (0, 0.5):
        raise ValueError(f"dropout={dropout} has no meaning with transfer={name!r}: only 'graph' has dropout")
    if edge_weight != "count":
        raise ValueError(f"edge_weight={edge_weight!r} has no meaning with transfer={name!r}: only 'graph' has edges")
    others: Dict[str, Any] = TRANSFERS
    return others[name](prior, code_dim)


class SharedDropout(nn.Module):
    """Dropout whose masks every process draws alike, and a resumed run draws again.

    The mask is a function of two integers kept as buffers, a seed and how many masks were drawn, and of nothing else:
    not of the process (under DDP there is one codebook), not of the device, not of how often anything else drew a
    random number. It is computed on the device, 16 bits an element, so p is kept to 2^-16. On a CPU it takes a
    fifteenth of the time of ``torch.nn.functional.dropout``.
    """

    seed: Tensor
    draws: Tensor

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not isinstance(p, (int, float)) or isinstance(p, bool) or not 0 <= p < 1:
            raise ValueError(f"dropout is {p!r}; expected a probability, 0 or more and less than 1")
        self.p = float(p)
        self.register_buffer("seed", torch.randint(0, 2**62, ()))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """x (any shape) with a share p of its elements set to 0 and the others divided by 1 - p."""
        if self.p == 0:
            return x
        dropped = round(self.p * 2**16)
        bits = random_16_bits(x.numel(), self.seed, self.draws)
        self.draws += 1
        keep = (bits >= dropped - 2**15).view(x.shape)
        return x * (keep.to(x.dtype) * (1 / (1 - dropped / 2**16)))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def random_16_bits(number: int, seed: Tensor, stream: Tensor) -> Tensor:
    """``number`` integers from -2^15 to 2^15 - 1, (number,), on the device of ``seed``: a function of the arguments.

    Four from each 64-bit output of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), run as a counter; 64-bit products
    wrap around.
    """
    counter = torch.arange((number + 3) // 4, device=seed.device)
    x = _splitmix64(counter + _splitmix64(seed + _splitmix64(stream)))
    try:
        lanes = x.view(torch.int16)
    except (RuntimeError, TypeError):  # torch < 1.10 has no view of another size
        lanes = torch.stack([((x >> shift) & 0xFFFF) for shift in (0, 16, 32, 48)], dim=1).view(-1)
        lanes = lanes - ((lanes >= 2**15).long() << 16)
    return lanes[:number]


def _splitmix64(x: Tensor) -> Tensor:
    x = x * -7046029254386353131 + -7046029254386353131  # the golden ratio's odd 64 bits, as signed
    x = (x ^ _shifted_right(x, 30)) * -4658895280553007687
    x = (x ^ _shifted_right(x, 27)) * -7723592293110705685
    return x ^ _shifted_right(x, 31)


def _shifted_right(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # >> keeps the sign of a signed integer; the mask takes it away


class Propagate(torch.autograd.Function):
    """``A~ · x`` for the symmetric A~: its gradient is ``A~ ·`` the gradient.

    A~ comes as compressed rows and is multiplied by ``embedding_bag``, a weighted sum of rows: parallel on CPU, and on
    a GPU without atomic additions, so that it is deterministic.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbours: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(neighbours, offsets, weights)
        return _propagate_rows(x, neighbours, offsets, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Any, ...]:
        neighbours, offsets, weights = ctx.saved_tensors
        return Propagate.apply(gradient.contiguous(), neighbours, offsets, weights), None, None, None


def _propagate_rows(x: Tensor, neighbours: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        neighbours, x, offsets, mode="sum", per_sample_weights=weights.to(x.dtype), include_last_offset=True
    )


def _normalized_adjacency(prior: CodebookPrior, edge_weight: str) -> Tuple[Tensor, Tensor, Tensor]:
    """A~ as compressed rows: neighbours (nnz,), offsets (n + 1,), weights (nnz,) float64."""
    n = len(prior)
    count = prior.edge_count.astype(np.float64)
    weight = {"count": count, "binary": np.ones_like(count), "log": 1 + np.log(count)}[edge_weight]
    row = np.concatenate([prior.edges[0], prior.edges[1], np.arange(n)])
    column = np.concatenate([prior.edges[1], prior.edges[0], np.arange(n)])
    value = np.concatenate([weight, weight, np.ones(n)])
    degree = np.bincount(row, weights=value, minlength=n)  # S, with the loop
    value = value / np.sqrt(degree[row] * degree[column])
    order = np.lexsort((column, row))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))])
    return torch.tensor(column[order]), torch.tensor(offsets), torch.tensor(value[order])


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, at_least_float32(layer.weight).to(x.dtype), at_least_float32(layer.bias).to(x.dtype))
