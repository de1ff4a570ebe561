"""Dropout whose masks every process draws alike, a resumed run draws again, and gradient checkpointing finds again.

The paper drops out inside the graph network (Zhang et al., CVPR 2024), so that under DDP the mask is part of the one
codebook that all processes share: masks from each process's own generator would give each another codebook.
"""

import itertools
import weakref
from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional

import torch
import torch.nn as nn
from torch import Tensor

from vqct_plugin._deferred import DeferredErrors, is_capturing
from vqct_plugin._operators import operator
from vqct_plugin._torch import (
    compiling,
    in_backward,
    in_func_transform,
    is_fake,
    keeps_graph,
    running_ddp,
    tracing,
    version_of,
)

_ERRORS = DeferredErrors()
_UNSET = -1  # a seed that nobody has asked for yet
_REMEMBERED = 16  # forward passes whose backward pass may still be to come
_NUMBERS = itertools.count()


class SharedDropout(nn.Module):
    """Dropout by a mask that is a function of two integers, a seed and how many masks were drawn before.

    Nothing else enters: not the process, not the device, not how often anything else drew a random number. The seed
    comes from the weights at the first mask: DDP gives all processes the same weights when it is built. Both integers
    are in the state, and neither is a buffer: averages of weights and DDP leave them alone. So the first mask inside a
    DDP sends them from its first process to the others, which may have loaded no checkpoint; not under
    ``torch.compile``, where every process has to load it. From then on every process has to make the same number of
    training passes, as DDP asks of them anyway. 16 random bits decide about an element, so p is kept to 2^-16.

    Gradient checkpointing computes the forward pass again during the backward pass. That finds the mask of the pass
    which it repeats: the one whose input had the same ``fingerprint``, whose backward pass is still to come or kept its
    graph, and whose weights were those of now. Where that does not decide, it is refused.

    Args:
        p: the probability that an element becomes 0 while training.
    """

    seed: Tensor
    draws: Tensor

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not isinstance(p, (int, float)) or isinstance(p, bool) or not 0 <= p < 1:
            raise ValueError(f"dropout is {p!r}; expected a probability, 0 or more and less than 1")
        self.p = float(p)
        self.seed = torch.full((), _UNSET, dtype=torch.int64, device="cpu")
        self.draws = torch.zeros((), dtype=torch.int64, device="cpu")
        self._seeded = False  # known on the host, so that no step asks again
        self._outstanding = _Outstanding()
        self._agreed_in: Optional[Any] = None  # a weak reference to a DDP
        self._become_owner()

    def _become_owner(self) -> None:
        """Take a number that tells this dropout from every other of the process, copies included."""
        self.owner = next(_NUMBERS)
        self._latest: Dict[torch.device, Tensor] = {}  # the highest number of a mask that a forward pass drew
        _OWNERS[self.owner] = self

    def forward(self, x: Tensor, weights: Tensor, fingerprint: Optional[Tensor] = None) -> Tensor:
        """x (any shape) with a share p of its elements set to 0 and the others divided by 1 - p.

        Args:
            x: floating point.
            weights: what the seed is made from at the first mask: equal in all processes.
            fingerprint: a 0-d number that tells the forward pass's input from others.
        """
        if self.p == 0:
            return x
        if in_func_transform():
            raise RuntimeError(
                "torch.func's transforms cannot count this dropout's masks; call the quantizer in evaluation mode, or "
                "build it with dropout=0"
            )
        if tracing():
            raise RuntimeError(
                "an exported graph cannot draw dropout's masks; call .eval() on the module before exporting it"
            )
        dropped = round(self.p * 2**16)
        if not compiling() and is_fake(x):  # a shape only: nothing is drawn, and nothing counted
            seed = draw = torch.zeros((), dtype=torch.int64, device=x.device)
        else:
            draw = self._draw(x.device, weights, fingerprint)
            seed = self.seed
        keep = draw_mask(seed, draw, x.numel(), dropped, self.owner).view(x.shape)
        return x * (keep.to(x.dtype) * (1 / (1 - dropped / 2**16)))

    def _draw(self, device: torch.device, weights: Tensor, fingerprint: Optional[Tensor]) -> Tensor:
        """The number of this forward pass's mask: the next one, or in a backward pass that of the pass it repeats."""
        if self.draws.device != device:
            self.seed, self.draws = self.seed.to(device), self.draws.to(device)
        if not compiling() and in_backward():
            return self._outstanding.find(fingerprint, version_of(weights), device)
        if compiling() or not self._seeded:
            self.seed.copy_(torch.where(self.seed == _UNSET, make_seed(weights), self.seed))
            self._seeded = self._seeded or not compiling()
        if not compiling():
            self._agree()
        draw = self.draws.clone()
        self.draws += 1
        if not compiling():
            self._outstanding.remember(draw, fingerprint, version_of(weights))
        return draw

    def _agree(self) -> None:
        """Where this is the first mask inside a DDP, take both integers from its first process. Only there do all
        processes come along: one that computes something alone would wait for the others for ever."""
        ddp = running_ddp()
        if ddp is None or (self._agreed_in is not None and self._agreed_in() is ddp):
            return
        both = torch.stack([self.seed, self.draws])
        ddp.process_group.broadcast(both, 0).wait()
        self.seed.copy_(both[0])
        self.draws.copy_(both[1])
        self._agreed_in = weakref.ref(ddp)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        super()._apply(fn, *args, **kwargs)
        self.seed, self.draws = move_like(fn, self.seed), move_like(fn, self.draws)
        return self

    # Numbers, not tensors: processes that a launcher spawns would share a pickled tensor's memory, and count together.
    def __getstate__(self) -> Any:
        state = {**self.__dict__, "seed": int(self.seed), "draws": int(self.draws), "_device": self.draws.device}
        return {name: value for name, value in state.items() if name not in ("owner", "_latest", "_agreed_in")}

    def __setstate__(self, state: Any) -> None:
        state = dict(state)
        device = state.pop("_device")
        state.update({name: torch.tensor(state[name], device=device) for name in ("seed", "draws")})
        super().__setstate__(state)
        self._agreed_in = None
        self._become_owner()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}seed"], destination[f"{prefix}draws"] = self.seed.clone(), self.draws.clone()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: List[str],
        unexpected: List[str],
        *a: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, *a)
        for name in ("seed", "draws"):
            key = f"{prefix}{name}"
            if key in state_dict:
                getattr(self, name).copy_(state_dict[key])
                self._seeded = False
                self._latest.clear()
                if key in unexpected:
                    unexpected.remove(key)
            elif strict:
                missing.append(key)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _Pass(NamedTuple):
    draw: Tensor
    fingerprint: Optional[Tensor]
    version: Optional[int]  # of the weights
    closed: Tensor  # 0-d: how many forward passes there were when its backward pass let its graph go; or _OPEN


_OPEN = -1


class _Outstanding:
    """The masks of the latest forward passes, whose backward pass may still be to come, by their inputs' fingerprints.

    All of it is computed on the device: the host does not wait to know which mask it was.
    """

    def __init__(self) -> None:
        self._passes: Deque[_Pass] = deque(maxlen=_REMEMBERED)
        self._number = 0  # of forward passes so far
        self._errors = DeferredErrors()

    def remember(self, draw: Tensor, fingerprint: Optional[Tensor], version: Optional[int]) -> None:
        self._passes.append(_Pass(draw, fingerprint, version, torch.full_like(draw, _OPEN)))
        self._number += 1

    def find(self, fingerprint: Optional[Tensor], version: Optional[int], device: torch.device) -> Tensor:
        """The mask's number of the forward pass that is being computed again."""
        known = [p.fingerprint for p in self._passes if p.fingerprint is not None and p.fingerprint.device == device]
        if fingerprint is None or len(known) < len(self._passes):
            if len(self._passes) == 1:
                return self._passes[0].draw
            raise RuntimeError(_NOT_FOUND)
        if not known:
            raise RuntimeError(_NOT_FOUND)
        same = torch.stack(known) == fingerprint
        closed = torch.stack([p.closed for p in self._passes])
        # Within one backward pass checkpoints in checkpoints compute a pass again more than once.
        still_open = same & ((closed == _OPEN) | (closed == self._number))
        of_these_weights = torch.stack(
            [o if p.version == version else torch.zeros_like(o) for o, p in zip(still_open.unbind(), self._passes)]
        )
        found = same
        for narrower in (still_open, of_these_weights):
            found = narrower | (found & ~narrower.any())
        self._errors.unless(found.sum() == 1, _NOT_FOUND, RuntimeError)
        if not keeps_graph():
            closed = closed.masked_fill(found, self._number)
            self._passes = deque((p._replace(closed=c) for p, c in zip(self._passes, closed.unbind())), _REMEMBERED)
        return (torch.stack([p.draw for p in self._passes]) * found).sum()

    # What is under way belongs to this module's graph, not to a copy's.
    def __deepcopy__(self, memo: Any) -> "_Outstanding":
        return _Outstanding()

    def __reduce__(self) -> Any:
        return _Outstanding, ()


_NOT_FOUND = (
    "gradient checkpointing computes a forward pass of the quantizer again, and of the latest ones it cannot be told "
    "which: two had the same input, or its input came out otherwise; run each backward pass before the next forward "
    "pass, or leave the quantizer out of the checkpointed part"
)


def move_like(fn: Any, tensor: Tensor) -> Tensor:
    """``tensor`` on the device to which ``fn``, of ``Module._apply``, moves parameters; never in another dtype, and
    never without its values, as on the meta device."""
    device = fn(torch.empty(0, device=tensor.device)).device
    return tensor if device.type == "meta" else tensor.to(device)


def make_seed(weights: Tensor) -> Tensor:
    """A 0-d integer in [0, 2^62) from the first few of some weights, on their device."""
    bits = (weights.detach().reshape(-1)[:8].float() * 2**24).long()
    mixed = _splitmix64(bits ^ (torch.arange(bits.numel(), device=bits.device) << 32))
    return mixed.sum() & (2**62 - 1)


#: the dropouts of this process by their numbers: an operator takes no module
_OWNERS: "weakref.WeakValueDictionary[int, SharedDropout]" = weakref.WeakValueDictionary()


@operator(
    "draw_mask(Tensor seed, Tensor draw, int number, int dropped, int owner) -> Tensor",
    lambda seed, draw, number, dropped, owner: seed.new_empty(number, dtype=torch.bool),
)
def draw_mask(seed: Tensor, draw: Tensor, number: int, dropped: int, owner: int) -> Tensor:
    """(number,) bool: which elements stay, when ``dropped`` of 2^16 go from the dropout with the number ``owner``."""
    _refuse_new_mask_in_backward(draw, owner)
    return draw_16_bits(number, seed, draw) >= dropped - 2**15


_COMPILED_INSIDE = (
    "gradient checkpointing computes a compiled quantizer again, which then draws another dropout mask; compile the "
    "checkpointed part as a whole, or leave the quantizer out of one of the two"
)


def _refuse_new_mask_in_backward(draw: Tensor, owner: int) -> None:
    """A mask in a backward pass repeats one of a forward pass, unless a compiled forward pass is run again whole: its
    graph cannot ask whether it is being repeated, and counts on."""
    dropout = _OWNERS.get(owner)
    if dropout is None or is_fake(draw) or is_capturing(draw.device):
        return
    latest = dropout._latest.get(draw.device)
    if not in_backward():
        dropout._latest[draw.device] = draw.clone() if latest is None else torch.max(latest, draw)
    elif latest is not None:
        _ERRORS.unless(draw <= latest, _COMPILED_INSIDE, RuntimeError)


def draw_16_bits(number: int, seed: Tensor, stream: Tensor) -> Tensor:
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


def draw_integers(number: int, stream: Tensor) -> Tensor:
    """``number`` integers of 63 bits, (number,) int64, on the device of ``stream``, a function of both."""
    counter = torch.arange(number, device=stream.device)
    return _splitmix64(counter + _splitmix64(stream)) & (2**63 - 1)


def _splitmix64(x: Tensor) -> Tensor:
    x = x * -7046029254386353131 + -7046029254386353131  # the golden ratio's odd 64 bits, as signed
    x = (x ^ _shifted_right(x, 30)) * -4658895280553007687
    x = (x ^ _shifted_right(x, 27)) * -7723592293110705685
    return x ^ _shifted_right(x, 31)


def _shifted_right(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # >> keeps the sign of a signed integer; the mask takes it away
