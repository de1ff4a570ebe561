"""Run by test_lightning.py in processes of its own: one step of training, by two processes under DDP or by one.

Arguments: ``two`` or ``one``, the number of batches to accumulate, and where to save the weights.
"""

import sys

import pytorch_lightning as pl
import torch

from tests.hosts.toy import fit, images, vqct_params
from vqct_plugin import VQModel
from vqct_plugin.compat.lightning import lightning_version


class Save(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, model):
        if trainer.global_rank == 0:
            torch.save((trainer.global_step, model.state_dict()), self.path)


class PlainDescent(VQModel):
    """Each of the processes takes its share of the batch that both are given, in an order of our choosing."""

    def get_input(self, batch, k):
        return super().get_input(batch, k)[self.global_rank :: self.trainer.world_size]

    def configure_optimizers(self):
        generator = [p for name, p in self.named_parameters() if not name.startswith("loss.")]
        return [torch.optim.SGD(group, lr=1.0) for group in (generator, self.loss.discriminator.parameters())], []


def main(processes, accumulate, path):
    torch.manual_seed(0)
    model = PlainDescent(**vqct_params(transfer="graph", dropout=0.5))
    options = {}
    if processes == "two":
        # spawning pickles the model, so that is tried here too
        sampler = "use_distributed_sampler" if lightning_version() >= (2, 0) else "replace_sampler_ddp"
        options = {"devices": 2, "strategy": "ddp_spawn", sampler: False}
    fit(model, images(accumulate, batch_size=4), accumulate=accumulate, callbacks=[Save(path)], **options)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
