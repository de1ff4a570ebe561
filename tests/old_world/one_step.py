"""One step of both optimizers from given weights, batch and random numbers: one_step.py FILE.npz.

Where FILE is not there it is written: weights, batch, and what the step logged. Where it is there, the step is made
from its weights and batch, and what was logged is compared. CI writes it in the old world and compares in the new.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

from tests.conftest import make_prior
from tests.old_world.worlds import lpips_offline, model_config, photographs
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.hosts.taming import VQModel

TOLERANCE = 1e-5


def build(kind):
    params = dict(model_config(kind)["params"])
    params["lossconfig"]["params"]["disc_start"] = 0
    if kind == "stock":
        return import_taming().VQModel(**params)
    return VQModel(**{**params, **({"prior": make_prior()} if "prior" in params else {})})


def batch():
    from PIL import Image

    squares = [np.asarray(Image.open(str(path)).convert("RGB"))[60:92, 60:92] for path in photographs(2)]
    return (np.stack(squares) / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2)


def step(model, x):
    """What is logged in one batch: the generator's pass, its optimizer's step, the discriminator's pass."""
    model.train()
    model.loss.perceptual_loss.eval()  # its dropout draws other numbers on other kinds of CPU, in torch 1.7 alone
    model.learning_rate = 1e-3
    torch.manual_seed(5)
    logged = {}
    optimizers = model.configure_optimizers()[0]
    for index, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            group["eps"] = 1e-3  # Adam's first step is a gradient's sign: of one that is zero but for rounding, too
        reconstruction, codebook_loss = model(x)
        loss, log = model.loss(
            codebook_loss, x, reconstruction, index, 0, last_layer=model.get_last_layer(), split="train"
        )
        logged.update({f"{index}/{name}": float(value) for name, value in log.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logged


def main(file):
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_HOME"] = str(Path(folder) / "home")
        os.chdir(folder)
        lpips_offline(os.environ["TORCH_HOME"], folder)
        given = dict(np.load(file)) if Path(file).exists() else None
        x = torch.from_numpy(batch() if given is None else given["batch"])
        written, worst = {"batch": x.numpy()}, 0.0
        for kind in ("stock", "table", "vqct"):
            torch.manual_seed(3)
            model = build(kind)
            state = model.state_dict()
            if given is not None:
                model.load_state_dict({key: torch.from_numpy(given[f"{kind}|{key}"]) for key in state})
            written.update({f"{kind}|{key}": value.clone().numpy() for key, value in state.items()})
            for name, value in step(model, x).items():
                key = f"logged {kind} {name}"
                written[key] = np.array(value)
                if given is not None:
                    worst = max(worst, abs(value - float(given[key])) / max(1.0, abs(value)))
                    print(f"{key}: {float(given[key]):.9g} there, {value:.9g} here")
    if given is None:
        np.savez(file, **written)
        return 0
    print(f"the largest difference is {worst:.2e}; at most {TOLERANCE:.0e} is expected")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]).resolve())))
