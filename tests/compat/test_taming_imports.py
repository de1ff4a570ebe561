"""taming-transformers is imported unedited, and what was lent to it for that is taken back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments, **environment):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip


def test_nothing_lent_stays():
    pytest.importorskip("taming", reason="taming-transformers is not installed")
    done = python(
        "-c",
        "import sys, importlib\n"
        "names = ['torch._six', 'pytorch_lightning.utilities.distributed', 'main']\n"
        "def there(name):\n"
        "    try: return bool(importlib.import_module(name).__file__)\n"
        "    except ImportError: return False\n"
        "import pytorch_lightning\n"
        "before = [there(name) for name in names]\n"
        "import vqct_plugin\n"
        "vqct_plugin.VQModel\n"
        "assert [there(name) for name in names] == before, before\n"
        "module = sys.modules.get(names[1])\n"
        "import taming.models.cond_transformer\n",
    )
    assert done.returncode == 0, done.stdout


def test_the_package_needs_no_host():
    done = python(
        "-c",
        "import sys, vqct_plugin, vqct_plugin.hosts, vqct_plugin.compat.checkpoints\n"
        "assert not {'taming', 'pytorch_lightning', 'omegaconf'} & set(sys.modules)",
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("missing", ["taming", "pytorch_lightning", "requests"])
def test_without_the_host_an_error_says_what_to_install(missing):
    if missing == "requests":
        pytest.importorskip("taming", reason="taming-transformers is not installed")
    done = python(
        "-c",
        "import sys, importlib.util\n"
        f"missing = {missing!r}\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == missing: raise ModuleNotFoundError(f'No module named {name}', name=name)\n"
        "finder = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == missing else finder(name, *a)\n"
        "sys.meta_path.insert(0, Without())\n"
        "from vqct_plugin.compat.taming_imports import import_taming\n"
        "import_taming('taming.util')\n",
    )
    assert done.returncode != 0
    assert f"'{missing}'" in done.stdout.splitlines()[-1], done.stdout
    assert "pip install 'vqct-plugin[train]'" in done.stdout


@pytest.fixture(scope="module")
def checkout():
    root = os.environ.get("TAMING_CHECKOUT")
    if not root:
        pytest.skip("TAMING_CHECKOUT does not name a checkout of CompVis/taming-transformers")
    return root


@pytest.mark.parametrize("main", ["its-own", "none", "unrelated"])
def test_a_compvis_checkout_trains(checkout, main, tmp_path):
    (tmp_path / "main.py").write_text("raise SystemExit('the main.py of the user was run')")
    done = python(ROOT / "tests" / "hosts" / "checkout.py", checkout, main, tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "trained"
