"""Importing taming-transformers, unedited, on the releases of today and of 2021.

Two distributions are about: the wheel ``taming-transformers-rom1504``, whose models import ``taming.main``, and a
checkout of CompVis/taming-transformers with its root on ``sys.path``, whose models import a top-level ``main``. Either
was written for the Lightning and torch of 2021, and imports names that have since been removed. Those names are lent
to it while it is imported, each only where the real one is missing, and taken back afterwards: other packages that
look for them ("is this an old torch?") see the truth.
"""

import importlib
import importlib.util
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator, Mapping, Optional

INSTALL = (
    "vqct_plugin.VQModel is the model of taming-transformers with another quantizer. Install it with "
    "`pip install 'vqct-plugin[train]'` (or `pip install --no-deps taming-transformers-rom1504==0.0.6` beside "
    "pytorch-lightning, torchvision, omegaconf, einops and requests), or put the root of a checkout of "
    "CompVis/taming-transformers on PYTHONPATH"
)


def import_taming(module: str = "taming.models.vqgan") -> Any:
    """Import a module of the installed taming-transformers, wheel or checkout, and return it.

    Raises:
        ImportError: with what to install, where taming-transformers or a package that it imports is missing.
    """
    for needed in ("pytorch_lightning", "taming"):
        try:
            found = needed in sys.modules or importlib.util.find_spec(needed) is not None
        except ValueError:  # in sys.modules without a spec
            found = True
        if not found:
            raise ImportError(f"no package {needed!r}. {INSTALL}", name=needed)
    try:
        with lend_removed_names():
            if _find_root_of_checkout() is not None and "torch._six" in sys.modules:
                # A checkout's data sets (ImageNet, ADE20K) import taming.data.utils when a YAML names them, later than
                # this; it needs torch._six, so it is imported while that is lent.
                importlib.import_module("taming.data.utils")
            return importlib.import_module(module)
    except ImportError as error:
        what = f"package {error.name!r}" if isinstance(error, ModuleNotFoundError) and error.name else str(error)
        raise ImportError(
            f"taming-transformers is there, but {module} cannot be imported: {what} is missing. {INSTALL}",
            name=error.name,
        ) from error


@contextmanager
def lend_removed_names() -> Iterator[None]:
    """While this is open, taming-transformers can be imported: what is gone is there.

    - ``pytorch_lightning.utilities.distributed.rank_zero_only``: the wheel's ``taming/main.py`` imports it; the name
      went in Lightning 1.8 and the module in 2.0. It lives on as ``pytorch_lightning.utilities.rank_zero_only``.
    - ``torch._six.string_classes``: a checkout's ``taming/data/utils.py`` imports it; gone in torch 2.0. It was
      ``(str, bytes)`` on Python 3.
    - ``transformers.top_k_top_p_filtering``: stage 2's ``mingpt.py`` imports it; gone in transformers 5, and nothing
      else of that package is used.
    - ``main``: a checkout's models import ``instantiate_from_config`` from it. It stands in where the checkout's own
      ``main.py`` is not what ``import main`` would find: the checkout came onto the path without it, or the user's
      program has a ``main`` of its own, which is neither run nor replaced.
    """
    with _lend_rank_zero_only(), _lend_string_classes(), _lend_main(), _lend_filtering():
        yield


@contextmanager
def _lend_rank_zero_only() -> Iterator[None]:
    name = "pytorch_lightning.utilities.distributed"
    module: Any = None
    with suppress(ImportError):
        module = importlib.import_module(name)
    if module is not None and hasattr(module, "rank_zero_only"):
        yield
        return
    from pytorch_lightning.utilities import rank_zero_only

    if module is not None:  # Lightning 1.8 and 1.9: the module is there, without the name
        module.rank_zero_only = rank_zero_only
        try:
            yield
        finally:
            del module.rank_zero_only
        return
    with _in_sys_modules(name, rank_zero_only=rank_zero_only):
        yield


@contextmanager
def _lend_string_classes() -> Iterator[None]:
    try:
        importlib.import_module("torch._six")
    except ImportError:
        with _in_sys_modules("torch._six", string_classes=(str, bytes)):
            yield
        return
    yield


@contextmanager
def _lend_main() -> Iterator[None]:
    root = _find_root_of_checkout()
    if root is None or _find_file_of_main() == root / "main.py":
        yield
        return
    with _in_sys_modules("main", instantiate_from_config=_instantiate_from_config):
        yield


@contextmanager
def _lend_filtering() -> Iterator[None]:
    from vqct_plugin.compat.filtering import top_k_top_p_filtering

    name = "top_k_top_p_filtering"
    module = sys.modules.get("transformers")
    if module is None and importlib.util.find_spec("transformers") is None:
        with _in_sys_modules("transformers", **{name: top_k_top_p_filtering}):
            yield
        return
    if "taming.modules.transformer.mingpt" in sys.modules:
        yield
        return
    module = importlib.import_module("transformers")
    if hasattr(module, name):
        yield
        return
    setattr(module, name, top_k_top_p_filtering)
    try:
        yield
    finally:
        delattr(module, name)


@contextmanager
def _in_sys_modules(name: str, **attributes: Any) -> Iterator[None]:
    """A module of these attributes under this name, and afterwards again what was there before."""
    module = ModuleType(name, "A stand-in of vqct_plugin while taming-transformers is imported.")
    module.__dict__.update(attributes)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def _find_root_of_checkout() -> Optional[Path]:
    """The folder that holds ``taming/`` where its models import a top-level ``main``; None for the wheel."""
    module = sys.modules.get("taming")
    if module is not None:
        folders = list(module.__path__)
    else:
        spec = importlib.util.find_spec("taming")
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders or any((Path(folder) / "main.py").is_file() for folder in folders):
        return None
    return Path(folders[0]).resolve().parent


def _find_file_of_main() -> Optional[Path]:
    """The file that ``import main`` gives, found without running it."""
    if "main" in sys.modules:
        file = getattr(sys.modules["main"], "__file__", None)
    else:
        spec = importlib.util.find_spec("main")
        file = spec.origin if spec is not None else None
    return Path(file).resolve() if file else None


def _instantiate_from_config(config: Mapping[str, Any]) -> Any:
    """Build ``{target: package.Class, params: {...}}``, as a checkout's ``main`` does."""
    if "target" not in config:
        raise KeyError(f"expected a key `target` that names a class, got the keys {sorted(map(str, config))}")
    module, name = str(config["target"]).rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**(config.get("params") or {}))
