"""The package from outside: what importing it takes and shows, and that what the documentation prints, runs."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import vqct_plugin
from tests.conftest import ROOT

CORE = sorted(file.stem for file in (ROOT / "vqct_plugin").glob("*.py") if file.stem not in ("__init__", "_drawing"))
WINGS = ("transformers", "nltk", "lightning", "pytorch_lightning", "torchvision", "omegaconf", "taming", "matplotlib")


def in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=str(ROOT), stdout=subprocess.PIPE)
    return done.stdout.decode()


def test_importing_takes_the_core_only():
    code = "import sys, vqct_plugin; vqct_plugin.CodebookTransferQuantizer; print(*sorted(sys.modules))"
    loaded = {name.split(".")[0] for name in in_a_fresh_process(code).split()}
    assert loaded.isdisjoint(WINGS)
    code = "import sys, vqct_plugin; print(*sorted(sys.modules))"
    assert "torch" not in {name.split(".")[0] for name in in_a_fresh_process(code).split()}  # workers start sooner
    rooms = {"building", "commands", "compat", "evaluation", "hosts", "report", "runs", "stage_2", "training"}
    code = "import sys, vqct_plugin; print(*[m for m in sys.modules if m.startswith('vqct_plugin.')])"
    assert {name.split(".")[1] for name in in_a_fresh_process(code).split()}.isdisjoint(rooms)


def test_the_core_imports_no_wing_anywhere():
    """Not even inside a function."""
    allowed = {"torch", "numpy", "einops", "safetensors", "vqct_plugin"}
    for room in CORE:
        named = set()
        for node in ast.walk(ast.parse((ROOT / "vqct_plugin" / f"{room}.py").read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named.add(node.module)
        foreign = {name for name in named if name.split(".")[0] not in allowed and not _is_standard(name.split(".")[0])}
        assert not foreign, (room, foreign)
        inside = {name.split(".")[1] for name in named if name.startswith("vqct_plugin.")}
        assert inside <= set(CORE), (room, inside)


def _is_standard(name):
    if hasattr(sys, "stdlib_module_names"):
        return name in sys.stdlib_module_names
    return "site-packages" not in (getattr(importlib.import_module(name), "__file__", None) or "")


def test_the_package_shows_few_names():
    assert dir(vqct_plugin) == sorted(vqct_plugin.__all__)
    assert len(vqct_plugin.__all__) <= 16
    with pytest.raises(AttributeError, match="no attribute 'VQGAN'"):
        vqct_plugin.VQGAN  # noqa: B018


@pytest.mark.parametrize("room", CORE)
def test_examples_in_docstrings_run(room):
    module = importlib.import_module(f"vqct_plugin.{room}")
    results = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert results.failed == 0


def test_the_examples_are_there():
    attempted = 0
    for info in pkgutil.iter_modules([str(ROOT / "vqct_plugin")]):
        if info.name in CORE:
            finder = doctest.DocTestFinder()
            attempted += sum(len(t.examples) for t in finder.find(importlib.import_module(f"vqct_plugin.{info.name}")))
    assert attempted >= 10
