"""20 steps on real photographs, stock, table and VQCT: by the untouched wheel's launcher of 2021, or by vqct-train.

The table run is the stock run to the last bit, column by column: everything but the codes is the host's.
"""

import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
taming = pytest.importorskip("taming", reason="taming-transformers is not installed")
pytest.importorskip("torchvision", reason="LPIPS takes its VGG16")
pytest.importorskip("albumentations", reason="taming's data sets import it")

from tests.conftest import ROOT  # noqa: E402
from tests.hosts.toy import BY_HAND  # noqa: E402
from tests.old_world.worlds import KINDS, lpips_offline, photographs, write_config  # noqa: E402


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """kind -> the rows of the run's metrics."""
    if len(photographs()) < 12:
        pytest.skip("the photographs of ../shared/data/bsds500 are not beside the project")
    folder = tmp_path_factory.mktemp("runs")
    lpips_offline(folder / "torch_home", folder)
    found = {}

    def of(kind):
        if kind not in found:
            found[kind] = _run(folder, kind)
        return found[kind]

    return of


def _run(folder, kind):
    config = write_config(folder, kind)
    flags = ["--base", config, "-t", "True", "--no-test", "True", "--max_steps", "20", "-n", kind, "-l", kind]
    if BY_HAND:
        command = [sys.executable, "-m", "vqct_plugin.commands.train", *flags, "--log_every_n_steps", "1"]
        command += ["--accelerator", "cpu"]
    else:
        launcher = Path(next(iter(taming.__path__))) / "main.py"
        if not launcher.is_file():
            pytest.skip("taming is a checkout, whose launcher lies elsewhere")
        command = [sys.executable, str(launcher), *flags[:-2], "--log_every_n_steps", "1", "--row_log_interval", "1"]
        command = command[:-2] if "row_log_interval" not in launcher.read_text() else command
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["TORCH_HOME"] = str(folder / "torch_home")
    done = subprocess.run(
        command, cwd=str(folder), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    (file,) = [file for file in folder.rglob("metrics.csv") if f"_{kind}" in str(file)]
    with file.open() as stream:
        return list(csv.DictReader(stream))


OURS = re.compile(r"(in_use|perplexity|dead)/")  # what vqct-train's logger adds, by the names of the parts
TIMES = ("created_at", "epoch", "step", "lr-")


def columns(rows):
    """name -> its values in their order; times and learning rates are not the model's."""
    found = {}
    for row in rows:
        for name, value in row.items():
            if value not in ("", None) and not name.startswith(TIMES):
                found.setdefault(name, []).append(value)
    return found


def test_the_stock_run_logs_what_a_vqgan_logs(runs):
    found = columns(runs("stock"))
    for name in ("aeloss", "rec_loss", "p_loss", "quant_loss", "disc_loss", "d_weight"):
        (key,) = [key for key in found if key in (f"train/{name}", f"train/{name}_step")][:1] or [None]
        assert key is not None, f"{name}: {sorted(found)}"
        values = [float(value) for value in found[key]]
        assert len(values) >= 15
        assert all(map(math.isfinite, values))
    perceptual = next(key for key in found if key.startswith("train/p_loss"))
    assert any(float(value) > 0 for value in found[perceptual])


def test_the_table_run_is_the_stock_run_to_the_last_bit(runs):
    stock, table = columns(runs("stock")), columns(runs("table"))
    own = {name for name in [*stock, *table] if OURS.search(name)}
    assert set(stock) - own == set(table) - own
    assert len(set(stock) - own) >= 10
    for name in set(stock) - own:
        assert stock[name] == table[name], name


def test_the_vqct_run_sees_the_same_batches_and_learns_its_own_codes(runs):
    stock, ours = columns(runs("stock")), columns(runs("vqct"))
    assert len(ours[next(key for key in ours if key.startswith("train/rec_loss"))]) >= 15
    quantization = next(key for key in stock if key.startswith("train/quant_loss"))
    assert stock[quantization] != ours[quantization]
    assert all(math.isfinite(float(value)) for values in ours.values() for value in values)


def test_every_kind_is_run():
    assert set(KINDS) == {"stock", "table", "vqct"}
