"""Codes as moving averages of the vectors that chose them, arranged so that words that are alike have codes that are.

Sources: averages in place of a gradient are van den Oord et al., NeurIPS 2017, appendix A.1; exchanging pairs until
neighbors are alike is the self-sorting map of Strong and Gong (2014). The paper's graph network makes the codes a
function of the words (Zhang et al., CVPR 2024); here each code keeps a vector of its own, and the words say where it
lies among the others.
"""

from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin._torch import compiling, in_backward, in_func_transform, in_process_group, is_fake
from vqct_plugin._transfer import Transfer
from vqct_plugin.additive import sum_up
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
    """Moving averages of encoder vectors, whose codes are arranged by the words.

    A training step's vectors give each code a count n and a sum s: ``N = d N + (1 - d) n``, ``M = d M + (1 - d) s``,
    and the codes are ``M / N``. Codes that nothing chooses jump to vectors of the batch. Words that are alike get codes
    that are near to each other by exchange, see ``arrange_steps``. There is no gradient: the loss pulls the encoder to
    the codes alone, and all processes of a data-parallel training add up their counts and sums.

    Args:
        prior: n words with vectors.
        code_dim: D.
        slices: which codes are of one part; all by default.
        in_turn: the codes are added, so that each part meets what the parts before it have left over; it then gets its
            first vectors one step after them.
        decay: d.
        restart: a code that is chosen less than this times as often as the average code of its part jumps to a vector
            of the batch; 0 for never.
        arrange_steps: over so many training steps codes change places, until relatives have codes that lie near to each
            other: in each step, two words drawn together exchange codes where both then come nearer to the mean of
            their relatives' codes. It changes which word has a code, and no code. 0 for never: then a word's place says
            nothing.
        relatives: how many, the words of its part that are most like a word; where the smallest part has fewer others,
            those.
    """

    relatives: Tensor
    counts: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(
        self,
        prior: CodebookPrior,
        code_dim: int,
        slices: Optional[Sequence[Slice]] = None,
        in_turn: bool = False,
        decay: float = 0.99,
        restart: float = 0.05,
        arrange_steps: int = 10_000,
        relatives: int = 8,
    ) -> None:
        super().__init__()
        n = len(prior)
        self.slices, self.in_turn = list(slices or [Slice("all", 0, n, 1)]), in_turn
        _check_share("decay", decay)
        _check_share("restart", restart)
        for name, value, least, most in (
            ("arrange_steps", arrange_steps, 0, 2**24),
            ("relatives", relatives, 1, 2**24),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}; expected an integer, {least} to {most:,}")
        self.decay, self.restart, self.arrange_steps = decay, restart, arrange_steps
        self.relatives_of_each = min(relatives, *(s.last - s.first - 1 for s in self.slices))
        self.of_words = arrange_steps > 0 and self.relatives_of_each > 0
        if self.of_words:
            self.hold("relatives", _find_relatives(prior.vectors, self.slices, self.relatives_of_each))
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
        self.counts.mul_(self.decay).add_(news[:, -1], alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(news[:, :-1], alpha=1 - self.decay)
        for i, (s, vectors) in enumerate(zip(self.slices, first)):
            self._restart(s, vectors, begin=i if self.in_turn else 0)
        if self.of_words:
            self._arrange()
        self.steps += 1

    def _owners(self, indices: Tensor) -> List[Tuple[Slice, Tensor]]:
        return list(zip(self.slices, (own.reshape(-1) for own in indices.split([s.topk for s in self.slices], dim=1))))

    def _restart(self, s: Slice, vectors: Tensor, begin: int) -> None:
        """Codes of a slice that nothing chooses jump to vectors of the batch, each to another: all of them at first,
        which is step ``begin``."""
        counts, sums = self.counts[s.first : s.last], self.sums[s.first : s.last]
        average = counts.mean().clamp_min(_TINY)
        dead = (counts < self.restart * average) | (self.steps == begin)
        places = torch.argsort(draw_integers(len(vectors), self.steps.long() * len(self.slices) + s.first))
        rank = dead.cumsum(0) - 1
        jumps = dead & (rank < len(vectors))  # the others wait for the next batch
        found = vectors[places[rank.clamp(0, len(vectors) - 1)]]
        counts.copy_(torch.where(jumps, average, counts))
        sums.copy_(torch.where(jumps.unsqueeze(1), found * average, sums))

    def _arrange(self) -> None:
        """Codes of a slice, in pairs drawn anew at each step, change places where both words then have codes that are
        nearer to those of their relatives: ``(e_i - e_j) . (t_i - t_j) < 0``, t_i the sum over the relatives of i."""
        codes = self.sums / self.counts.clamp_min(_TINY).unsqueeze(1)
        means = sum_up([codes[own] for own in self.constant("relatives", codes).unbind(dim=1)])
        order = torch.arange(len(codes), device=codes.device)
        for s in self.slices:
            drawn = torch.argsort(draw_integers(s.last - s.first, -1 - self.steps.long() * len(self.slices) - s.first))
            first, second = (drawn[half::2][: len(drawn) // 2] + s.first for half in (0, 1))
            apart = ((codes[first] - codes[second]) * (means[first] - means[second])).sum(dim=1)
            change = (apart < 0) & (self.steps < self.arrange_steps)
            order[first], order[second] = torch.where(change, second, first), torch.where(change, first, second)
        self.counts.copy_(self.counts[order])
        self.sums.copy_(self.sums[order])

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        before = {name: buffer for name, buffer in self.named_buffers()}
        super()._apply(fn, *args, **kwargs)
        for name, buffer in before.items():  # moved, but never cast: half precision cannot count
            if "meta" not in (buffer.device.type, getattr(self, name).device.type):
                setattr(self, name, move_like(fn, buffer))
        return self

    def __getstate__(self) -> Any:
        return {**self.__dict__, "_latest": None}  # what is under way belongs to this module's graph

    def extra_repr(self) -> str:
        return f"decay={self.decay}, restart={self.restart}, arrange_steps={self.arrange_steps}"


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}; expected a share, 0 or more and less than 1")


def _find_relatives(vectors: np.ndarray, slices: Sequence[Slice], relatives: int) -> Tensor:
    """(n, r): for each word the words of its slice that are most like it, by the cosine of what differs from the mean
    of the slice."""
    found = []
    for s in slices:
        x = torch.tensor(vectors[s.first : s.last].astype(np.float32), device="cpu")
        x = F.normalize(x - x.mean(dim=0), dim=1)
        first = 0
        for block in x.split(1024):
            scores = block @ x.t()
            own = torch.arange(len(block))
            scores[own, first + own] = -2.0
            found.append(scores.topk(relatives, dim=1)[1] + s.first)
            first += len(block)
    return torch.cat(found)
