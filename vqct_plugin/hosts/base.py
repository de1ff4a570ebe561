"""What our hosts' models share: sorting their keywords, and putting the quantizer into what the host has built."""

import difflib
import inspect
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence, Tuple

import torch

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.lightning import ADAPTER_OPTIONS
from vqct_plugin.compat.taming_stage_2 import adapt_taming_stage_2
from vqct_plugin.transfer import TableTransfer


def list_options(quantizer: type, given_by_host: Sequence[str]) -> List[str]:
    """The arguments of a quantizer that a host's own arguments do not give."""
    names = list(inspect.signature(quantizer.__init__).parameters)[1:]  # type: ignore[misc]
    return [name for name in names if name not in ("n_e", "e_dim", *given_by_host)]


def sort_options(
    cls: type, options: Mapping[str, Any], quantizer_options: Iterable[str], known: Sequence[str]
) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """``model.params`` that are not the host's: those of the quantizer, and those of the Lightning adapter.

    Raises:
        TypeError: a keyword that is neither; it names those that are close.
    """
    plain_options = {name: to_plain(value) for name, value in options.items()}
    quantizer = {name: plain_options.pop(name) for name in quantizer_options if name in plain_options}
    unknown = sorted(set(plain_options) - set(ADAPTER_OPTIONS))
    if unknown:
        every = [*known, *quantizer_options, *ADAPTER_OPTIONS]
        close = difflib.get_close_matches(unknown[0], every, n=3)
        hint = f"; close to it: {', '.join(close)}" if close else f"; it takes {', '.join(every)}"
        raise TypeError(f"vqct_plugin's {cls.__name__} takes no argument {unknown[0]!r}{hint}")
    return quantizer, plain_options


def list_parameters(*classes: Any) -> List[str]:
    """The names of the arguments of these classes' constructors, for a message; ``**options`` are not among them."""
    names: Dict[str, None] = {}
    for cls in classes:
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                names[name] = None
    return list(names)


def add_up(n_embed: Any) -> Any:
    """The number of codes to give to the host: where ``n_embed`` maps parts to numbers, their sum."""
    return sum(n_embed.values()) if isinstance(n_embed, Mapping) else n_embed


def install(model: Any, quantizer: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Build a quantizer and put it in the place of the host's.

    Nothing else differs from the host: the state of the random numbers is restored, so that a run of the same seed sees
    the same batches; and where it is the host's own kind, one learned table, it starts from the host's.
    """
    with torch.random.fork_rng(devices=[]):
        built: Any = quantizer(*args, **options)
    start_from(built, getattr(getattr(model.quantize, "embedding", None), "weight", None))
    model.quantize = built
    adapt_taming_stage_2()


def start_from(quantizer: Any, table: Any) -> None:
    """Where the quantizer is the host's own kind, one learned table, start it from the host's (n_e, e_dim)."""
    transfer = getattr(quantizer, "transfer", None)
    if isinstance(transfer, TableTransfer) and table is not None:
        ours = next(transfer.parameters())
        if ours.shape == table.shape:
            ours.data.copy_(table.data)
