"""Which codes each slice of the channels may take, and each token of a position."""

from typing import Any, List, Mapping, NamedTuple, Sequence, Union

import torch
from torch import Tensor

from vqct_plugin.prior import CodebookPrior


class Slice(NamedTuple):
    """One slice of the channels and the codes it may take: one part of speech, or all of them when they are joint."""

    name: str
    first: int  # its codes are [first, last) of the codebook
    last: int
    topk: int


def token_bounds(slices: Sequence[Slice]) -> Tensor:
    """(2, T): the first code that each token of a position may be, and the one after the last."""
    tokens = [s for s in slices for _ in range(s.topk)]
    return torch.tensor([[s.first for s in tokens], [s.last for s in tokens]], device="cpu")


def make_slices(prior: CodebookPrior, joint: bool, topk: Union[int, Mapping[str, int]]) -> List[Slice]:
    """The slices of a quantizer over ``prior``: one for each part, or one for all of them.

    Raises:
        ValueError: ``topk`` names a part that is not there, or no number of codes that a part has.
    """
    names = ("joint",) if joint else prior.parts
    if isinstance(topk, Mapping):
        unknown = sorted(set(map(str, topk)) - set(names))
        if unknown:
            raise ValueError(f"topk names {', '.join(unknown)}; expected a number for some of {', '.join(names)}")
        numbers = [topk.get(name, 1) for name in names]
    else:
        numbers = [topk] + [1] * (len(names) - 1)
    sizes = [len(prior)] if joint else [prior.sizes[name] for name in names]
    slices, first = [], 0
    for name, size, number in zip(names, sizes, numbers):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= size:
            raise ValueError(f"topk is {number!r} for {name}, which has {size} codes; expected an integer, 1 to {size}")
        slices.append(Slice(name, first, first + size, number))
        first += size
    return slices


def check_weight(name: str, weight: Any) -> None:
    """Refuse what is no finite number of 0 or more."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise ValueError(f"{name} is {weight!r}; expected a number of 0 or more, such as 0.25")


def check_flag(name: str, flag: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(flag, bool):  # the text "False" would be true
        raise ValueError(f"{name} is {flag!r}; expected true or false")
