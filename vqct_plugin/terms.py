"""How a gradient passes the quantization, and what the quantizer's loss is made of: named functions, or a user's own.

A new one is one function and one entry: in ``GRADIENTS`` or in ``LOSS_TERMS``.
"""

import importlib
import numbers
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Union

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin.table import average_codes

__all__ = ["GRADIENTS", "LOSS_TERMS", "codebook", "commitment", "rotation", "straight_through"]

Gradient = Callable[[Tensor, Tensor], Tensor]
LossTerm = Callable[[Tensor, Tensor, Tensor], Tensor]
GradientLike = Union[str, Gradient]
LossTermsLike = Optional[Mapping[str, float]]


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """``z + (q - z).detach()``: the gradient of z_q is the gradient of z. The value is q to the last bit.

    Args:
        z: (..., D), the vectors of a slice, with their gradient.
        q: (..., D), what they were quantized to, without gradient.

    Returns:
        z_q (..., D), equal to q.

    Source: Bengio et al. 2013; van den Oord et al., VQ-VAE, NeurIPS 2017, section 3.2.
    """
    return (z - z.detach()) + q  # a NaN of z stays one


def rotation(z: Tensor, q: Tensor) -> Tensor:
    """The gradient is turned and scaled as z would have to be to become q, so that it keeps its angle to the code.

    ``q = |q| / |z| R z`` with the rotation ``R = I - 2 r r^T + 2 b a^T``, where ``a = z / |z|``, ``b = q / |q|`` and
    ``r = (a + b) / |a + b|``; R and the scale are constants to the gradient. The value is q to the last bit.
    Arguments and result are those of :func:`straight_through`.

    Source: Fifty et al., *Restructuring Vector Quantization with the Rotation Trick*, ICLR 2025, section 4.
    """
    fixed = z.detach()
    length = fixed.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    scale = q.norm(dim=-1, keepdim=True) / length
    a, b = fixed / length, F.normalize(q, dim=-1, eps=1e-12)
    r = F.normalize(a + b, dim=-1, eps=1e-12)
    turned = z - 2 * (z * r).sum(dim=-1, keepdim=True) * r + 2 * (z * a).sum(dim=-1, keepdim=True) * b
    turned = scale * turned
    return (turned - turned.detach()) + q


def commitment(z: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
    """``mean((sg(q) - z)^2)``, q the mean of the chosen codes: it pulls the encoder's vectors to their codes.

    Args:
        z: (N, D), the vectors of a slice, with their gradient.
        codes: (n, D), all codes that the slice may take, with their gradient.
        indices: (N, k), those that were chosen.

    Returns:
        A 0-d tensor.

    Source: Zhang et al., CVPR 2024, and van den Oord et al. 2017, equation 3, third term.
    """
    return F.mse_loss(z, average_codes(codes.detach(), indices).to(z.dtype))


def codebook(z: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
    """``mean((q - sg(z))^2)``, q the mean of the chosen codes: it pulls the codes to the vectors that chose them.

    Arguments and result are those of :func:`commitment`.

    Source: Zhang et al., CVPR 2024, and van den Oord et al. 2017, equation 3, second term.
    """
    return F.mse_loss(average_codes(codes, indices).to(z.dtype), z.detach())


GRADIENTS: Dict[str, Gradient] = {"straight_through": straight_through, "rotation": rotation}
LOSS_TERMS: Dict[str, LossTerm] = {"commitment": commitment, "codebook": codebook}


class WeightedTerm(NamedTuple):
    """A term of the loss, and what it is multiplied by."""

    name: str
    weight: float
    term: LossTerm

    def of(self, z: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
        """Its share of the loss.

        Raises:
            ValueError: the function returned something else than a 0-d tensor.
        """
        value = self.term(z, codes, indices)
        if not isinstance(value, Tensor) or value.dim() != 0:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the loss term {self.name} returned {got}; expected a 0-d tensor")
        return self.weight * value


def gradient_of(gradient: GradientLike) -> Gradient:
    """The function that ``gradient`` names: one of ``GRADIENTS``, ``"package.module.function"``, or itself."""
    expected = f"one of {', '.join(GRADIENTS)}, package.module.function, or a function of (z, q)"
    if not isinstance(gradient, str):
        if not callable(gradient) or isinstance(gradient, nn.Module):
            raise ValueError(f"gradient is {gradient!r}; expected {expected}")
        return gradient
    found: Gradient = GRADIENTS[gradient] if gradient in GRADIENTS else import_by_name(gradient, "gradient", expected)
    return found


def loss_terms_of(terms: LossTermsLike) -> List[WeightedTerm]:
    """The terms that a mapping from names to weights adds. A name is in ``LOSS_TERMS``, or package.module.function."""
    expected = f"a mapping from {', '.join(LOSS_TERMS)} or package.module.function to weights"
    if terms is None:
        return []
    if not isinstance(terms, Mapping):
        raise ValueError(f"loss_terms is {terms!r}; expected {expected}")
    found: List[WeightedTerm] = []
    for name, weight in terms.items():
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not abs(float(weight)) < float("inf"):
            raise ValueError(f"loss_terms gives {name} the weight {weight!r}; expected a number")
        term: LossTerm = LOSS_TERMS[name] if name in LOSS_TERMS else import_by_name(name, "loss_terms", expected)
        found.append(WeightedTerm(str(name), float(weight), term))
    return found


def name_of(function: Any) -> str:
    """What names a function: its entry in a registry, or where it was defined."""
    for registry in (GRADIENTS, LOSS_TERMS):
        for name, entry in registry.items():
            if entry is function:
                return name
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"


def record(function: Any) -> Any:
    """What a state keeps of a function or class: its name where that finds it again, else ``{"given": its name}``."""
    name = name_of(function)
    if name in GRADIENTS or name in LOSS_TERMS:
        return name
    try:
        found = import_by_name(name, "", "")
    except ValueError:
        found = None
    return name if found is function else {"given": name}


def was_given(recorded: Any) -> bool:
    """Whether :func:`record` could keep no more than the name of an object that was given."""
    return isinstance(recorded, Mapping) and "given" in recorded


def import_by_name(target: Any, option: str, expected: str) -> Callable[..., Any]:
    """What ``package.module.name`` names.

    Raises:
        ValueError: it cannot be imported, or cannot be called.
    """
    if not isinstance(target, str) or "." not in target:
        raise ValueError(f"{option} names {target!r}; expected {expected}")
    module, _, name = target.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{option} names {target!r}, which cannot be imported: {error}; expected {expected}"
        ) from error
    if not callable(found):
        raise ValueError(f"{option} names {target!r}, a {type(found).__name__}; expected {expected}")
    return found
