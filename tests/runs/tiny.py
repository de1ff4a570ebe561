"""A VQGAN that trains in seconds on real photographs, as a taming YAML, and ``vqct-train`` in a process of its own."""

import os
import subprocess
import sys

import yaml

from tests.conftest import ROOT

COMMAND = [sys.executable, "-m", "vqct_plugin.commands.train"]


def config(target="vqct_plugin.VQModel", disc_start=0, length=12, batch_size=2, **params):
    return {
        "model": {
            "base_learning_rate": 5e-4,
            "target": target,
            "params": {
                "embed_dim": 16,
                "n_embed": 64,
                "ddconfig": {
                    "double_z": False, "z_channels": 32, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
                    "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.1,
                },
                "lossconfig": {
                    "target": "vqct_plugin.runs.losses.VQPixelWithDiscriminator",
                    "params": {"disc_start": disc_start, "disc_num_layers": 1, "disc_ndf": 8},
                },
                **params,
            },
        },
        "data": {
            "target": "main.DataModuleFromConfig",
            "params": {
                "batch_size": batch_size,
                "num_workers": 0,
                "train": {
                    "target": "vqct_plugin.runs.photographs.Photographs",
                    "params": {"split": "train", "size": 16, "length": length},
                },
                "validation": {
                    "target": "vqct_plugin.runs.photographs.Photographs",
                    "params": {"split": "validation", "size": 96},
                },
            },
        },
        "lightning": {"trainer": {"accelerator": "cpu", "limit_val_batches": 2, "enable_progress_bar": False}},
    }  # fmt: skip


def write(folder, name="tiny.yaml", **changes):
    file = folder / name
    file.write_text(yaml.safe_dump(config(**changes)))
    return file


def environment():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def vqct_train(folder, *words, check=True):
    """``vqct-train`` in this folder."""
    words = [*COMMAND, *map(str, words)]
    done = subprocess.run(
        words, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    if check:
        assert done.returncode == 0, done.stdout
    return done
