"""Codes as moving averages of the vectors that chose them, of which a part flows along the words.

Source: averages in place of a gradient are van den Oord et al., NeurIPS 2017, appendix A.1; the flow is Kohonen's
neighborhood (1982) with the words of a language model for the map. The paper's graph network lets a gradient move the
relatives of a code (Zhang et al., CVPR 2024); here it is statistics that reach them, and each code keeps a vector of
its own.
"""

from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin._torch import compiling, in_backward, in_func_transform, in_process_group, is_fake
from vqct_plugin._transfer import Transfer, sum_rows
from vqct_plugin.dropout import draw_integers, move_like
from vqct_plugin.fused import list_shares
from vqct_plugin.prior import CodebookPrior
from vqct_plugin.slices import Slice

__all__ = ["AveragesTransfer"]

_TINY = 1e-12
_REPEATED = (
    "gradient checkpointing computes a forward pass of the quantizer again after another one has moved its averages; "
    "run each backward pass before the next forward pass, or leave the quantizer out of the checkpointed part"
)


class AveragesTransfer(Transfer):
    """Moving averages of encoder vectors, with a flow between words that are alike.

    A training step's vectors give each code a count n and a sum s. A share a of both goes to the code's relatives, the
    words of its part that are most like it: ``n' = (1 - a) n + a P^T n``, ``s' = (1 - a) s + a P^T s``, P (n, n) having
    1 / r for each of a word's r relatives. Then ``N = d N + (1 - d) n'`` and ``M = d M + (1 - d) s'``, and the codes
    are ``M / N``. With a = 0 these are the usual moving averages. There is no gradient: the loss pulls the encoder to
    the codes alone, and all processes of a data-parallel training add up their counts and sums.

    Args:
        prior: n words with vectors.
        code_dim: D.
        slices: which codes are of one part; all by default.
        flow: a at the first step; it falls to 0 in a straight line.
        flow_steps: over so many training steps.
        relatives: r.
        decay: d.
        restart: a code that is chosen less than this times as often as the average code of its part jumps to a vector
            of the batch; 0 for never.
    """

    counts: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(
        self,
        prior: CodebookPrior,
        code_dim: int,
        slices: Optional[Sequence[Slice]] = None,
        flow: float = 0.5,
        flow_steps: int = 10_000,
        relatives: int = 8,
        decay: float = 0.99,
        restart: float = 0.05,
    ) -> None:
        super().__init__()
        n = len(prior)
        self.slices = list(slices or [Slice("all", 0, n, 1)])
        _check_share("flow", flow)
        _check_share("decay", decay)
        _check_share("restart", restart)
        smallest = min(s.last - s.first for s in self.slices)
        for name, value, most in (("flow_steps", flow_steps, 2**24), ("relatives", relatives, smallest - 1)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}; expected an integer, 1 to {most:,}")
        self.flow, self.flow_steps, self.decay, self.restart = flow, flow_steps, decay, restart
        if flow:
            near, offsets, weights = _flow_between(prior.vectors, self.slices, relatives)
            self.hold("near", near)
            self.hold("offsets", offsets)
            self.hold("weights", weights)
        generator = torch.Generator().manual_seed(0)  # all processes begin alike
        self.register_buffer("counts", torch.full((n,), _TINY))
        self.register_buffer("sums", _TINY * torch.randn(n, code_dim, generator=generator) * code_dim**-0.5)
        self.register_buffer("steps", torch.zeros(()))
        self._latest: Optional[Tuple[Optional[Tensor], Tensor]] = None

    def forward(self, dropout: bool = False, fingerprint: Optional[Tensor] = None) -> Tensor:
        if dropout and not compiling() and in_backward() and self._latest is not None:
            known, codes = self._latest
            if fingerprint is None or known is None or not torch.equal(known, fingerprint):
                raise RuntimeError(_REPEATED)
            return codes
        counts = self.counts.float().clamp_min(_TINY)
        codes = self.sums.float() / counts.unsqueeze(1)
        if dropout and not compiling():
            self._latest = (fingerprint, codes)
        return codes

    @torch.no_grad()
    def learn(self, rows: Tensor, indices: Tensor) -> None:
        """Take a training step's vectors into the averages.

        Args:
            rows: (p, N, D), the vectors of each slice.
            indices: (N, T), the codes that they chose.
        """
        if not compiling() and (in_backward() or in_func_transform() or is_fake(rows)):
            return
        rows = rows.to(self.sums.dtype)
        owners, shares = list_shares(rows, indices, self.slices)
        per_code = torch.cat([torch.full_like(o, 1, dtype=rows.dtype) / s.topk for s, o in self._owners(indices)])
        news = torch.cat([shares, per_code.unsqueeze(1)], dim=1)
        # an embedding's gradient: sums by index, parallel on a CPU, and the same from run to run on a GPU
        news = torch.ops.aten.embedding_dense_backward(news, owners, len(self.counts), -1, False)
        first = rows
        if in_process_group() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(news)
            first = rows.contiguous()
            torch.distributed.broadcast(first, 0)
        if self.flow:
            share = self.flow * (1 - self.steps / self.flow_steps).clamp_min(0)
            rows_of_p = (self.constant(name, news) for name in ("near", "offsets", "weights"))
            flown = sum_rows(news, *rows_of_p)
            news = news + share * (flown - news)
        self.counts.mul_(self.decay).add_(news[:, -1], alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(news[:, :-1], alpha=1 - self.decay)
        for s, vectors in zip(self.slices, first):
            self._restart(s, vectors)
        self.steps += 1

    def _owners(self, indices: Tensor) -> List[Tuple[Slice, Tensor]]:
        return list(zip(self.slices, (own.reshape(-1) for own in indices.split([s.topk for s in self.slices], dim=1))))

    def _restart(self, s: Slice, vectors: Tensor) -> None:
        """Codes of a slice that nothing chooses jump to vectors of the batch, each to another: all of them at first."""
        counts, sums = self.counts[s.first : s.last], self.sums[s.first : s.last]
        average = counts.mean().clamp_min(_TINY)
        dead = (counts < self.restart * average) | (self.steps == 0)
        places = torch.argsort(draw_integers(len(vectors), self.steps.long() * len(self.slices) + s.first))
        rank = dead.cumsum(0) - 1
        jumps = dead & (rank < len(vectors))  # the others wait for the next batch
        found = vectors[places[rank.clamp(0, len(vectors) - 1)]]
        counts.copy_(torch.where(jumps, average, counts))
        sums.copy_(torch.where(jumps.unsqueeze(1), found * average, sums))

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        before = {name: buffer for name, buffer in self.named_buffers()}
        super()._apply(fn, *args, **kwargs)
        for name, buffer in before.items():  # moved, but never cast: half precision cannot count
            setattr(self, name, move_like(fn, buffer) if buffer.device.type != "meta" else getattr(self, name))
        return self

    def __getstate__(self) -> Any:
        return {**self.__dict__, "_latest": None}  # what is under way belongs to this module's graph

    def extra_repr(self) -> str:
        return f"flow={self.flow}, flow_steps={self.flow_steps}, decay={self.decay}, restart={self.restart}"


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}; expected a share, 0 or more and less than 1")


def _flow_between(vectors: np.ndarray, slices: Sequence[Slice], relatives: int) -> Tuple[Tensor, Tensor, Tensor]:
    """``P^T`` as compressed rows: whose counts each code gets, where each row begins, and 1 / r each."""
    givers, takers = [], []
    for s in slices:
        x = torch.tensor(vectors[s.first : s.last].astype(np.float32), device="cpu")
        x = F.normalize(x - x.mean(dim=0), dim=1)
        first = 0
        for block in x.split(1024):
            scores = block @ x.t()
            own = torch.arange(first, first + len(block))
            scores[torch.arange(len(block)), own] = -2.0
            takers.append(scores.topk(relatives, dim=1)[1].reshape(-1) + s.first)
            givers.append(own.repeat_interleave(relatives) + s.first)
            first += len(block)
    taker, giver = torch.cat(takers), torch.cat(givers)
    order = torch.argsort(taker * len(vectors) + giver)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(taker, minlength=len(vectors)).cumsum(0)])
    return giver[order], offsets, torch.full((len(giver),), 1.0 / relatives)
