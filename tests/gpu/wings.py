"""All that tests/gpu takes from the rooms above the core: hosts, training and commands, found in this one place."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from tests.conftest import ROOT

FULL_SIZE = ROOT / "configs_taming" / "custom_vqct.yaml"  # taming's f16 model at 256 x 256
SMALL = ROOT / "vqct_plugin" / "data" / "photographs_vqgan.yaml"  # the demo's; its loss needs no download
TRAIN, DEMO = "vqct_plugin.commands.train", "vqct_plugin.commands.demo"


def stock_vqgan():
    """taming's own VQModel, as the plugin imports it on today's Lightning."""
    import vqct_plugin

    return next(c for c in vqct_plugin.VQModel.__mro__ if c.__module__ == "taming.models.vqgan")


def build_quantizer(config, **host):
    """What every patch of a host calls."""
    from vqct_plugin.hosts.quantizer_config import build_quantizer

    return build_quantizer(config, **host)


def loss_config(**params):
    """A ``lossconfig`` that downloads nothing, of the target that the demo's config names."""
    return {"target": yaml.safe_load(SMALL.read_text())["model"]["params"]["lossconfig"]["target"], "params": params}


def dd_config(**changes):
    return {**yaml.safe_load(FULL_SIZE.read_text())["model"]["params"]["ddconfig"], **changes}


def photograph_files():
    """scikit-image's photographs that lie in its wheel."""
    import skimage

    names = ["astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg"]
    return [Path(skimage.__file__).parent / "data" / name for name in names]


def photographs(side):
    """All of them as one batch (B, 3, side, side) in [-1, 1]: the middle of each."""
    from PIL import Image, ImageOps

    crops = [np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (side, side))) for file in photograph_files()]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def command(module, *words, folder, timeout=400):
    """One of the commands, in a folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], cwd=folder, env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout
