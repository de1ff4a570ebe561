"""Small taming models that train in seconds on one CPU thread, on Lightning 1.0.8 as on today's."""

import pytorch_lightning as pl
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader

from tests.conftest import make_prior
from vqct_plugin.compat.lightning import lightning_version

BY_HAND = lightning_version() >= (1, 6)


class ToyLoss(nn.Module):
    """Pixels and a small discriminator with the call of taming's VQLPIPSWithDiscriminator. Remembers its calls."""

    def __init__(self, disc_start=0, disc_factor=1.0, channels=3):
        super().__init__()
        self.discriminator = nn.Sequential(
            nn.Conv2d(channels, 8, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 1, 3),
        )
        self.disc_start = disc_start
        self.disc_factor = disc_factor
        self.calls = []

    def forward(self, codebook_loss, inputs, reconstructions, optimizer_idx, global_step, last_layer=None, split=""):
        factor = self.disc_factor if global_step >= self.disc_start else 0.0
        rec_loss = (inputs - reconstructions).abs().mean()
        if optimizer_idx == 0:
            g_loss = -self.discriminator(reconstructions).mean()
            loss = rec_loss + codebook_loss.mean() + factor * g_loss
            log = {f"{split}/rec_loss": rec_loss.detach(), f"{split}/g_loss": g_loss.detach()}
        else:
            real, fake = self.discriminator(inputs.detach()), self.discriminator(reconstructions.detach())
            loss = factor * 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
            log = {f"{split}/disc_loss": loss.detach()}
        self.calls.append((split, optimizer_idx, global_step, self.training, float(loss.detach())))
        return loss, log


def dd_config(resolution=16, z_channels=32, out_ch=3):
    return {
        "double_z": False, "z_channels": z_channels, "resolution": resolution, "in_channels": out_ch, "out_ch": out_ch,
        "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip


def params(**changes):
    """``model.params`` of a small model of stock taming."""
    loss = {"target": "tests.hosts.toy.ToyLoss", "params": changes.pop("loss", {})}
    return {"ddconfig": dd_config(), "lossconfig": loss, "n_embed": 40, "embed_dim": 16, **changes}


def vqct_params(**changes):
    return params(**{"prior": make_prior(), "dropout": 0.0, **changes})


def images(number, batch_size=2, seed=0, channels=3, size=16):
    """Batches as taming's data sets give them: ``image`` (B, H, W, C) in [-1, 1]."""
    torch_seed = torch.Generator().manual_seed(seed)
    data = torch.rand(number * batch_size, size, size, channels, generator=torch_seed) * 2 - 1
    return DataLoader([{"image": image} for image in data], batch_size=batch_size)


def make_trainer(model, accumulate=1, clip=None, clip_algorithm="norm", **options):
    """A quiet Trainer. Where Lightning refuses accumulation and clipping, the model is told instead."""
    options = {"max_epochs": 1, "logger": False, "num_sanity_val_steps": 0, **options}
    if lightning_version() < (1, 6):
        options.update(checkpoint_callback=False, progress_bar_refresh_rate=0, weights_summary=None)
    else:
        options.update(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        options = {"accelerator": "cpu", "devices": 1, **options}
    if not model.automatic_optimization if BY_HAND else False:
        model.accumulate_grad_batches = accumulate
        model.gradient_clip_val, model.gradient_clip_algorithm = clip, clip_algorithm
    else:
        options["accumulate_grad_batches"] = accumulate
        if clip is not None:
            options["gradient_clip_val"] = clip
    return pl.Trainer(**options)


def fit(model, batches, val=None, lr=1e-3, **options):
    model.learning_rate = lr
    trainer = make_trainer(model, **options)
    trainer.fit(model, batches, *([val] if val is not None else []))
    return trainer
