"""A VQGAN of full size on scikit-image's photographs, by ``vqct-train`` and as a patched host; and the demo."""

import csv

import numpy as np
import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="vqct-train needs Lightning")
pytest.importorskip("taming", reason="taming-transformers is not installed")
pytest.importorskip("skimage", reason="the photographs come with scikit-image")

from tests.gpu import wings

STEPS = 50


@pytest.fixture
def size(rehearsal):
    """Changes to taming's f16 config, and the side of the images."""
    if rehearsal:
        return {"ch": 32, "num_res_blocks": 1, "attn_resolutions": [], "resolution": 32}, 32
    return {}, 256


def accelerator(device):
    return "gpu" if device.type == "cuda" else device.type


def falls(losses, by=0.95):
    tenth = max(len(losses) // 10, 2)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-tenth:]) < by * np.mean(losses[:tenth]), losses


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_vqct_train_trains_a_vqgan_of_full_size(device, size, rehearsal, precision, tmp_path):
    changes, side = size
    images = tmp_path / "images.txt"
    images.write_text("\n".join(str(file) for file in wings.photograph_files() * 30) + "\n")
    target = wings.loss_config()["target"]
    data = ["train", "validation"]
    wings.command(
        wings.TRAIN, "--base", wings.FULL_SIZE, "-t", "True", "--no-test", "True",
        "--accelerator", accelerator(device), "--devices", 1, "--max_steps", 10 if rehearsal else STEPS,
        "--precision", precision, "--log_every_n_steps", 1, "--limit_val_batches", 1,
        "model.base_learning_rate=5e-5", "model.params.n_embed=1024",
        f"model.params.lossconfig.target={target}", "model.params.lossconfig.params.disc_start=5",
        *[f"model.params.ddconfig.{key}={value}" for key, value in changes.items()],
        "data.params.batch_size=4", "data.params.num_workers=2",
        *[f"data.params.{split}.params.path={images}" for split in data],
        *[f"data.params.{split}.params.size={side}" for split in data],
        folder=tmp_path,
    )  # fmt: skip
    assert list(tmp_path.glob("logs/*/checkpoints/last.ckpt"))
    (metrics,) = tmp_path.glob("logs/*/csv/**/metrics.csv")
    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    column = next(name for name in ("train/rec_loss_step", "train/rec_loss") if name in rows[0])
    falls([float(row[column]) for row in rows if row[column]])


def test_a_patched_host_trains_a_vqgan_of_full_size(device, size, rehearsal):
    """taming's own VQModel with the quantizer that its patch puts there, by its own two losses, on photographs."""
    changes, side = size
    torch.manual_seed(0)
    model = wings.stock_vqgan()(
        ddconfig=wings.dd_config(**changes), lossconfig=wings.loss_config(disc_start=5), n_embed=1024, embed_dim=256
    )
    model.quantize = wings.build_quantizer({"target": "vqct_plugin.Quantizer"}, n_e=1024, e_dim=256, beta=0.25)
    model = model.to(device).train()
    discriminator = list(model.loss.discriminator.parameters())
    theirs = {id(p) for p in discriminator}
    generator = [p for p in model.parameters() if id(p) not in theirs]
    optimizers = [torch.optim.Adam(group, 2e-4, betas=(0.5, 0.9)) for group in (generator, discriminator)]
    images = wings.photographs(side).to(device)[:4]
    losses = []
    for step in range(10 if rehearsal else STEPS):
        for index, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            reconstruction, codebook_loss = model(images)
            last = model.get_last_layer()
            loss, log = model.loss(codebook_loss, images, reconstruction, index, step, last, split="train")
            loss.backward()
            optimizer.step()
            if index == 0:
                losses.append(float(log["train/rec_loss"]))
    falls(losses)
    model.eval()
    with torch.no_grad():
        quantized, _, (_, _, indices) = model.encode(images)
        b, c, h, w = quantized.shape
        assert torch.equal(model.quantize.get_codebook_entry(indices, (b, h, w, c)), quantized)
        assert len(indices.unique()) > 2


def test_the_demo_in_short(device, rehearsal, tmp_path):
    """Stock and VQCT for a few steps, and the page of both."""
    wings.command(wings.DEMO, "--output", tmp_path / "demo", "--max-steps", 2 if rehearsal else 50, folder=tmp_path)
    assert list((tmp_path / "demo").glob("*/table.md"))
    assert list((tmp_path / "demo").glob("*/report/*.html"))
