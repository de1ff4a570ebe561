"""Word vectors to code vectors: the paper's graph network, and what its ablations put in its place.

Source: Zhang et al., CVPR 2024, the graph-based codebook transfer; the layer is Kipf and Welling's graph convolution
(ICLR 2017). Every transfer is a module that takes no input and returns the codes (n, D). What it learns are its
parameters; what never changes, the words' vectors and the graph, it makes from the prior when it is built. These are
plain tensors, neither parameters nor buffers: no average of weights, no ``.half()`` and no broadcast of DDP touches
them, and the quantizer's state holds the prior they come from, once.
"""

import functools
import inspect
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, Type, Union

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin._torch import at_least_float32, in_func_transform
from vqct_plugin._transfer import Transfer, sum_rows
from vqct_plugin.averages import AveragesTransfer
from vqct_plugin.dropout import SharedDropout
from vqct_plugin.prior import CodebookPrior
from vqct_plugin.slices import Slice
from vqct_plugin.terms import import_by_name

__all__ = ["ModuleTransfer"]

EDGE_WEIGHTS = ("count", "binary", "log")


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

    propagated: Tensor
    neighbors: Tensor
    offsets: Tensor
    weights: Tensor

    def __init__(self, prior: CodebookPrior, code_dim: int, dropout: float = 0.5, edge_weight: str = "count") -> None:
        super().__init__()
        if edge_weight not in EDGE_WEIGHTS:
            raise ValueError(f"edge_weight is {edge_weight!r}; expected one of {', '.join(EDGE_WEIGHTS)}")
        neighbors, offsets, weights = _normalized_adjacency(prior, edge_weight)
        vectors = torch.tensor(prior.vectors.astype(np.float32), device="cpu")
        self.hold("propagated", sum_rows(vectors, neighbors, offsets, weights))  # A~ X
        self.hold("neighbors", neighbors)
        self.hold("offsets", offsets)
        self.hold("weights", weights)
        self.layer1 = nn.Linear(prior.vectors.shape[1], code_dim)
        self.layer2 = nn.Linear(code_dim, code_dim)
        for layer in (self.layer1, self.layer2):  # as GCNConv begins
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.dropout = SharedDropout(dropout)

    def forward(self, dropout: bool = False, fingerprint: Optional[Tensor] = None) -> Tensor:
        first = self.layer1.weight
        hidden = torch.relu(_linear(self.layer1, self.constant("propagated", first)))
        if dropout:
            hidden = self.dropout(hidden, first, fingerprint)
        rows = self.constant("neighbors", first), self.constant("offsets", first), self.constant("weights", first)
        return _linear(self.layer2, propagate(hidden, *rows))


class MLPTransfer(Transfer):
    """The ablation without a graph: each word alone through Linear, LeakyReLU(0.1), Linear."""

    vectors: Tensor

    def __init__(self, prior: CodebookPrior, code_dim: int) -> None:
        super().__init__()
        self.hold("vectors", torch.tensor(prior.vectors.astype(np.float32), device="cpu"))
        self.layer1 = nn.Linear(self.vectors.shape[1], code_dim)
        self.layer2 = nn.Linear(code_dim, code_dim)

    def forward(self, dropout: bool = False, fingerprint: Optional[Tensor] = None) -> Tensor:
        hidden = F.leaky_relu(_linear(self.layer1, self.constant("vectors", self.layer1.weight)), 0.1)
        return _linear(self.layer2, hidden)


class LinearTransfer(Transfer):
    """One linear map of the word vectors, shared by all words."""

    vectors: Tensor

    def __init__(self, prior: CodebookPrior, code_dim: int) -> None:
        super().__init__()
        self.hold("vectors", torch.tensor(prior.vectors.astype(np.float32), device="cpu"))
        self.layer = nn.Linear(self.vectors.shape[1], code_dim)

    def forward(self, dropout: bool = False, fingerprint: Optional[Tensor] = None) -> Tensor:
        return _linear(self.layer, self.constant("vectors", self.layer.weight))


class TableTransfer(Transfer):
    """No transfer: a table learned from scratch, begun as taming's ``VectorQuantizer2`` begins (the paper's ablation
    without prior knowledge). The prior gives the number of codes and their names only."""

    of_words = False

    def __init__(self, prior: CodebookPrior, code_dim: int) -> None:
        super().__init__()
        n = len(prior)
        self.table = nn.Embedding(n, code_dim)
        self.table.weight.data.uniform_(-1.0 / n, 1.0 / n)

    def forward(self, dropout: bool = False, fingerprint: Optional[Tensor] = None) -> Tensor:
        return at_least_float32(self.table.weight)


class ModuleTransfer(Transfer):
    """A module of the user's own: word vectors and graph in, codes out.

    Args:
        prior: n words with vectors (n, d) and E edges.
        code_dim: D.
        module: called as ``module(vectors, edges, edge_count)``, which are (n, d) float32, (2, E) int64, indices into
            the words, each edge once, and (E,) float32; returns the codes (n, D). Its own dropout and the like are on
            while the quantizer trains and off otherwise. Or a class or function from (n, d, D) to such a module, which
            in a YAML is ``{target: package.module.Class, params: {...}}``.

    Raises:
        ValueError: when built, if the module does not return (n, D) floating point.
    """

    def __init__(self, prior: CodebookPrior, code_dim: int, module: Callable[..., Any]) -> None:
        super().__init__()
        n, d = prior.vectors.shape
        self.module = module if isinstance(module, nn.Module) else module(n, d, code_dim)
        self.hold("vectors", torch.tensor(prior.vectors.astype(np.float32), device="cpu"))
        self.hold("edges", torch.tensor(prior.edges.astype(np.int64), device="cpu").reshape(2, -1))
        self.hold("edge_count", torch.tensor(prior.edge_count.astype(np.float32), device="cpu"))
        if not isinstance(self.module, nn.Module):
            raise ValueError(f"transfer made a {type(self.module).__name__}; expected a torch.nn.Module")
        with torch.no_grad():
            codes = self.forward()
        if not isinstance(codes, Tensor) or tuple(codes.shape) != (n, code_dim) or not codes.is_floating_point():
            got = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
            raise ValueError(
                f"the transfer {type(self.module).__name__} returned {got}; expected codes ({n}, {code_dim})"
            )

    def forward(self, dropout: bool = False, fingerprint: Optional[Tensor] = None) -> Tensor:
        like: Any = next(self.module.parameters(), self.vectors)
        if self.module.training != dropout:
            self.module.train(dropout)
        codes: Tensor = self.module(*(self.constant(name, like) for name in ("vectors", "edges", "edge_count")))
        return at_least_float32(codes) if isinstance(codes, Tensor) and codes.is_floating_point() else codes


TRANSFERS: Dict[str, Type[Transfer]] = {
    "graph": GraphTransfer,
    "mlp": MLPTransfer,
    "linear": LinearTransfer,
    "table": TableTransfer,
    "averages": AveragesTransfer,
}
_EXPECTED = f"one of {', '.join(TRANSFERS)}, package.module.Class of a torch.nn.Module, or such a module"
TransferLike = Union[str, Mapping[str, Any], Callable[..., Any]]


def is_averages(transfer: TransferLike) -> bool:
    """Whether a transfer as it was asked for is ``averages``, with params or without."""
    return (transfer.get("target") if isinstance(transfer, Mapping) else transfer) == "averages"


def build_transfer(
    transfer: TransferLike,
    prior: CodebookPrior,
    code_dim: int,
    dropout: float = 0.5,
    edge_weight: str = "count",
    slices: Optional[Sequence[Slice]] = None,
    in_turn: bool = False,
) -> Transfer:
    """The transfer of that name, or one around a user's own module (see :class:`ModuleTransfer`).

    ``dropout`` and ``edge_weight`` belong to the graph; with another transfer, a value other than the default is
    refused rather than ignored. The averages' own arguments come as ``{target: averages, params: {...}}``, and
    ``slices`` says to them which codes are of one part, ``in_turn`` that each part meets what the one before left over.
    """
    params: Mapping[str, Any] = {}
    if isinstance(transfer, Mapping) and transfer.get("target") in TRANSFERS:
        params, transfer = transfer.get("params") or {}, str(transfer["target"])
        if params and transfer != "averages":
            raise ValueError(f"transfer {transfer!r} has no params of its own, but {', '.join(params)} came")
    if isinstance(transfer, Mapping) or (isinstance(transfer, str) and "." in transfer):
        transfer = _import_transfer(transfer)
    if isinstance(transfer, str) and transfer not in TRANSFERS:
        raise ValueError(f"unknown transfer {transfer!r}; expected {_EXPECTED}")
    if transfer == "graph":
        return GraphTransfer(prior, code_dim, dropout=dropout, edge_weight=edge_weight)
    if dropout not in (0, 0.5):
        raise ValueError(f"dropout={dropout} has no meaning with transfer={transfer!r}: only 'graph' has dropout")
    if edge_weight != "count":
        raise ValueError(
            f"edge_weight={edge_weight!r} has no meaning with transfer={transfer!r}: only 'graph' has edges"
        )
    if transfer == "averages":
        known = list(inspect.signature(AveragesTransfer.__init__).parameters)[5:]
        unknown = [name for name in params if name not in known]
        if unknown:
            raise ValueError(f"averages have no argument {unknown[0]!r}; expected some of {', '.join(known)}")
        return AveragesTransfer(prior, code_dim, slices, in_turn, **params)
    if isinstance(transfer, str):
        others: Dict[str, Any] = TRANSFERS
        return others[transfer](prior, code_dim)
    if not callable(transfer):
        raise ValueError(f"transfer is {transfer!r}; expected {_EXPECTED}")
    return ModuleTransfer(prior, code_dim, transfer)


def _import_transfer(config: Union[str, Mapping[str, Any]]) -> Callable[..., Any]:
    """What ``{target: package.module.Class, params: {...}}`` of a YAML names, or the target alone."""
    if isinstance(config, str):
        config = {"target": config}
    target, params = config.get("target"), config.get("params") or {}
    if not isinstance(target, str) or not isinstance(params, Mapping) or set(config) - {"target", "params"}:
        raise ValueError(f"transfer is {dict(config)!r}; expected {{target: package.module.Class, params: {{...}}}}")
    made = import_by_name(target, "transfer", _EXPECTED)
    return functools.partial(made, **params)


def propagate(x: Tensor, neighbors: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """``A~ · x`` (n, D) for the symmetric A~ in compressed rows."""
    weights = weights.to(x.dtype)
    # torch.func differentiates neither an autograd function of ours nor embedding_bag, and MPS lacks the latter
    if in_func_transform() or x.device.type == "mps":
        rows = torch.repeat_interleave(torch.arange(len(x), device=x.device), (offsets[1:] - offsets[:-1]).long())
        return torch.zeros_like(x).index_add(0, rows, weights.unsqueeze(1) * x[neighbors.long()])
    return Propagate.apply(x, neighbors, offsets, weights)


class Propagate(torch.autograd.Function):
    """``A~ · x`` for the symmetric A~: its gradient is ``A~ ·`` the gradient.

    A~ comes as compressed rows, see :func:`vqct_plugin._transfer.sum_rows`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbors: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(neighbors, offsets, weights)
        return sum_rows(x, neighbors, offsets, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Any, ...]:
        neighbors, offsets, weights = ctx.saved_tensors
        return Propagate.apply(gradient.contiguous(), neighbors, offsets, weights), None, None, None


def _normalized_adjacency(prior: CodebookPrior, edge_weight: str) -> Tuple[Tensor, Tensor, Tensor]:
    """A~ as compressed rows: neighbors (nnz,) and offsets (n + 1,) int32, weights (nnz,) float32."""
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
    index = np.int32 if hasattr(torch, "compile") else np.int64  # 32 bits are served since torch 1.8
    neighbors, ends = column[order].astype(index), offsets.astype(index)
    return torch.from_numpy(neighbors), torch.from_numpy(ends), torch.from_numpy(value[order].astype(np.float32))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = at_least_float32(layer.weight), at_least_float32(layer.bias)
    return F.linear(x.to(weight.dtype), weight, bias)
