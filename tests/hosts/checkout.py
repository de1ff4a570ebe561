"""Run by test_imports.py in a process of its own: a CompVis checkout, with the wheel, if installed, out of sight.

Arguments: the checkout's root, and what ``import main`` finds: ``its-own``, ``none``, or ``unrelated``.
"""

import importlib.machinery
import importlib.util
import sys

root, main = sys.argv[1:3]
# a checkout's taming/ has no __init__.py, and Python prefers an installed package to such a folder wherever it lies
spec = importlib.machinery.ModuleSpec("taming", None, is_package=True)
spec.submodule_search_locations = [f"{root}/taming"]
sys.modules["taming"] = importlib.util.module_from_spec(spec)
if main == "its-own":
    sys.path.insert(0, root)
elif main == "unrelated":
    sys.path.insert(0, sys.argv[3])  # a folder with a main.py that must not be run

from tests.hosts.toy import fit, images, vqct_params  # noqa: E402
from vqct_plugin import VQModel  # noqa: E402
from vqct_plugin.compat.lightning import for_installed_lightning  # noqa: E402

host = sys.modules["taming.models.vqgan"]
assert host.__file__.startswith(root), host.__file__
loaded = sys.modules.get("main")
assert (loaded is not None and loaded.__file__.startswith(root)) == (main == "its-own"), loaded
if main == "its-own":
    import taming.data.utils  # noqa: F401  what a YAML's data sets import, later
trainer = fit(VQModel(**vqct_params()), images(2), val=images(1))
assert "val/rec_loss" in trainer.callback_metrics
fit(for_installed_lightning(host.VQModel)(**{k: v for k, v in vqct_params().items() if k in (
    "ddconfig", "lossconfig", "n_embed", "embed_dim")}), images(1))  # fmt: skip
print("trained")
