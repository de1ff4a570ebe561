"""Which functions and classes a config from elsewhere may name: what a config names is imported and run.

A config of one's own may name anything. One that was downloaded may be anybody's, and ``target: subprocess.Popen`` is
a program as much as a pickle is.
"""

import importlib
from contextlib import nullcontext
from typing import Any, Iterator, Mapping, Sequence, Tuple

from vqct_plugin.compat.hub import HubError
from vqct_plugin.compat.taming_imports import lend_removed_names

#: packages whose own classes may be named
PACKAGES = ("vqct_plugin", "taming", "ldm")
_HARMLESS = ("torch.nn.Identity",)
#: a key whose value may be a file that names a class, and is read later
_FILE = "quantizer_config"
#: keys whose value names a function or class
_NAMING = ("target", "gradient", "transfer")


def refuse_foreign(config: Any, trusted: Sequence[str], source: str) -> None:
    """Refuse a config that names what is neither a class of ``PACKAGES`` nor of a package that the user trusts.

    Args:
        config: plain mappings, lists and values.
        trusted: names of packages.
        source: what errors call the config.

    Raises:
        HubError: with the first such name, its place, and what to pass where it is trusted; or with a
            ``quantizer_config`` that is a file, trusted or not.
    """
    if isinstance(trusted, str):
        raise HubError(f"trusted is {trusted!r}; expected a list of packages, such as [{trusted!r}]")
    for place, name in list_names(config, ""):
        if place.rpartition(".")[2] == _FILE:
            raise HubError(
                f"{source} names the file {name!r} in {place}: what it names would be imported and run unseen; "
                "expected the mapping {target, params} itself. Write it there, in a copy of the config"
            )
        if not is_trusted(name, trusted, as_function=not place.endswith("target")):
            package = str(name).partition(".")[0]
            raise HubError(
                f"{source} names {name!r} in {place}: it would be imported and run, and is no class of "
                f"{', '.join(PACKAGES)}. If you know what it does, pass trusted=[{package!r}]"
            )


def is_trusted(name: Any, trusted: Sequence[str] = (), as_function: bool = False) -> bool:
    """Whether a name may be imported and called: with what the config says, or ``as_function`` with tensors only."""
    if not isinstance(name, str):
        return False
    package = name.partition(".")[0]
    if name in _HARMLESS or package in trusted:
        return True
    if package not in PACKAGES:
        return False
    module, _, attribute = name.rpartition(".")
    try:
        with lend_removed_names() if package != "vqct_plugin" else nullcontext():
            found = getattr(importlib.import_module(module), attribute)
    except Exception:  # a name that is not there, or whose module needs what is not installed
        return False
    home = str(getattr(found, "__module__", ""))  # where it is defined: a module also holds what it imports
    if home.partition(".")[0] not in PACKAGES:
        return False
    return isinstance(found, type) or (as_function and home == "vqct_plugin.terms")


def list_names(value: Any, place: str) -> Iterator[Tuple[str, Any]]:
    """The places, with dots, at which a config names functions and classes, and what it names there."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            here = f"{place}.{key}".lstrip(".")
            if key in _NAMING and isinstance(item, str):
                if "." in item:  # others are names of ours, such as "graph"
                    yield here, item
            elif key == _FILE and isinstance(item, str):
                yield here, item
            elif key == "loss_terms" and isinstance(item, Mapping):
                yield from ((here, name) for name in item if "." in str(name))
            else:
                yield from list_names(item, here)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from list_names(item, f"{place}[{i}]")
