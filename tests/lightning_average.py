"""``EMAWeightAveraging`` of Lightning 2.6 around a quantizer: shared by test_fake_devices and tests/gpu."""

import copy

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

from tests.device_checks import Autoencoder, graph_is_kept, images_for


class Module(LightningModule):
    def __init__(self, quantizer):
        super().__init__()
        self.model = Autoencoder(quantizer)

    def training_step(self, batch, index):
        return self.model(batch)

    def validation_step(self, batch, index):
        self.model(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


def lightnings_average_keeps_the_graph(device, make, folder):
    quantizer, shape = make(device)
    untouched = copy.deepcopy(quantizer)
    images = DataLoader(images_for((16, *shape[1:]), "cpu"), batch_size=2)
    accelerator = "gpu" if device.type == "cuda" else device.type
    trainer = Trainer(
        max_epochs=2, accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[EMAWeightAveraging(decay=0.9999)],
    )  # fmt: skip
    module = Module(quantizer)
    trainer.fit(module, images, images)
    trainer.save_checkpoint(folder / "averaged.ckpt")
    graph_is_kept(module.model.quantize.to(device), untouched.to(device))
    saved = torch.load(folder / "averaged.ckpt", map_location="cpu", weights_only=False)["state_dict"]
    other = Module(make(torch.device("cpu"))[0])
    other.load_state_dict(saved)  # by another quantizer of the same prior
