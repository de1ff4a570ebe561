"""Functions that ``torch.compile`` takes as they are, in one piece, instead of looking into them.

Some depend on values or allocate their own room, which would break a compiled graph in pieces; and one must not be
computed twice: the partitioner of ``torch.compile`` computes again in the backward pass what is cheap, and a dropout
mask computed again after its counter has moved on would be another mask. Operators are never computed again.

On torch 2.0 to 2.3 the quantizer runs as it is inside a compiled model: ``_torch.eager_before_2_4``.
"""

from typing import Any, Callable, Dict

import torch

from vqct_plugin._torch import compiling, tracing

_LIBRARY: Any = None
if hasattr(torch, "library") and hasattr(torch.library, "custom_op"):  # since torch 2.4
    _LIBRARY = torch.library.Library("vqct_plugin", "DEF")
_OPERATORS: Dict[str, Callable[..., Any]] = {}


def operator(schema: str, shapes: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: under ``torch.compile`` calls of the function become calls of one operator.

    Args:
        schema: the operator's name and types, as ``"nearest(Tensor z, Tensor codes, int k) -> Tensor"``.
        shapes: takes the same arguments and returns empty tensors of the right shape and type.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if _LIBRARY is None:
            return function
        name = schema.partition("(")[0]
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, shapes, "Meta")
        _OPERATORS[name] = getattr(torch.ops.vqct_plugin, name)

        def called(*args: Any) -> Any:
            return _OPERATORS[name](*args) if compiling() and not tracing() else function(*args)

        called.__name__, called.__doc__ = function.__name__, function.__doc__
        return called

    return decorate
