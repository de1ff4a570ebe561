"""The wheel's own launcher of 2021, untouched, with nothing but the target changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from tests.conftest import ROOT, make_prior
from tests.hosts.toy import BY_HAND


@pytest.mark.skipif(BY_HAND, reason="taming's launcher needs Lightning 1.0; vqct-train runs its YAML here")
@pytest.mark.parametrize("target", ["vqct_plugin.VQModel", "vqct_plugin.Quantizer"])
def test_tamings_launcher_trains_with_our_target(tmp_path, target):
    omegaconf = pytest.importorskip("omegaconf")
    numpy = pytest.importorskip("numpy")
    image = pytest.importorskip("PIL.Image")
    taming = pytest.importorskip("taming")
    launcher = Path(next(iter(taming.__path__))) / "main.py"
    if not launcher.is_file():
        pytest.skip("taming is a checkout, whose launcher lies elsewhere")
    rng = numpy.random.RandomState(0)
    names = [f"{i}.png" for i in range(6)]
    for name in names:
        image.fromarray(rng.randint(0, 255, (20, 24, 3), dtype=numpy.uint8)).save(str(tmp_path / name))
    (tmp_path / "list.txt").write_text("\n".join(names))
    make_prior().save(tmp_path / "prior.safetensors")

    def data(kind, argument):
        params = {argument: "list.txt", "size": 16}
        return {"target": f"taming.data.custom.Custom{kind}", "params": params}

    config = {
        "model": {
            "base_learning_rate": 1e-4,
            "target": target,
            "params": {
                "embed_dim": 16, "n_embed": 40, "prior": "prior.safetensors",
                "ddconfig": {
                    "double_z": False, "z_channels": 32, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
                    "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
                },
                "lossconfig": {"target": "tests.hosts.toy.ToyLoss"},
            },
        },
        "data": {
            "target": "main.DataModuleFromConfig",
            "params": {
                "batch_size": 2, "num_workers": 0,
                "train": data("Train", "training_images_list_file"),
                "validation": data("Test", "test_images_list_file"),
            },
        },
    }  # fmt: skip
    omegaconf.OmegaConf.save(omegaconf.OmegaConf.create(config), str(tmp_path / "c.yaml"))
    done = subprocess.run(
        [sys.executable, str(launcher), "--base", "c.yaml", "-t", "True", "--no-test", "True", "--max_epochs", "2"],
        cwd=str(tmp_path), env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (checkpoint,) = tmp_path.glob("logs/*/checkpoints/last.ckpt")
    import torch

    loaded = torch.load(str(checkpoint))
    assert loaded["global_step"] == 6
    assert loaded["state_dict"]["quantize.transfer.steps"] > 0
