"""What taming's own ten configs ask for, at sizes that train in a second: images of 16x16, maps of 8x8.

Each is as its config has it where that matters to a first or a second stage of ours: which class, which keys, how many
image channels, what conditions, and how ``block_size`` and ``vocab_size`` stand to positions and codes. Sizes are
divided: 256 positions become 64, 1,024 codes 40 and 8,192 codes 48, 182 and 183 labels 5, 92 tokens of boxes 23.
"""

import copy

import torch

from tests.hosts.toy import dd_config

POSITIONS, BOXES = 64, 23
VQMODEL, SEGMENTATION = "taming.models.vqgan.VQModel", "taming.models.vqgan.VQSegmentationModel"
ADVERSARIAL = {"target": "tests.hosts.toy.ToyLoss"}  # in place of VQLPIPSWithDiscriminator, which downloads VGG16


class DummyCondStage:
    """Conditions that are tokens already, as the checkout's ``taming.models.dummy_cond_stage`` (the wheel has none)."""

    def __init__(self, conditional_key):
        self.conditional_key = conditional_key

    def eval(self):
        return self

    def encode(self, c):
        return c, None, (None, None, c)

    def decode(self, c):
        return c


def vqgan(channels=3, n_embed=40, loss=None, **more):
    loss = loss or {"target": "taming.modules.losses.DummyLoss"}
    params = {"embed_dim": 16, "n_embed": n_embed, "ddconfig": dd_config(out_ch=channels), "lossconfig": loss, **more}
    return {"target": VQMODEL, "params": params}


def labels():
    loss = {"target": "taming.modules.losses.segmentation.BCELossWithQuant", "params": {"codebook_weight": 1.0}}
    return {**vqgan(5, loss=loss, image_key="segmentation", n_labels=5), "target": SEGMENTATION}


def transformer(key, condition, n_embed=40, block_size=2 * POSITIONS):
    gpt = {"vocab_size": n_embed, "block_size": block_size, "n_layer": 1, "n_head": 2, "n_embd": 16}
    return {
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {
            "cond_stage_key": key,
            "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt},
            "first_stage_config": vqgan(n_embed=n_embed),
            "cond_stage_config": condition,
        },
    }


COORDINATES = {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 30, "down_factor": 2}}
SCENES = {"target": "tests.hosts.taming_configs.DummyCondStage", "params": {"conditional_key": "objects_bbox"}}

FIRST_STAGES = {
    "custom_vqgan": vqgan(loss=ADVERSARIAL),
    "faceshq_vqgan": vqgan(loss=ADVERSARIAL),
    "imagenet_vqgan": vqgan(loss=ADVERSARIAL),
    "imagenetdepth_vqgan": vqgan(1, loss={**ADVERSARIAL, "params": {"channels": 1}}, image_key="depth"),
    "coco_cond_stage": labels(),
    "sflckr_cond_stage": labels(),
}
SECOND_STAGES = {
    "faceshq_transformer": transformer("coord", COORDINATES),
    "drin_transformer": transformer("depth", vqgan(1)),
    "coco_scene_images_transformer": transformer("objects_bbox", SCENES, 48, POSITIONS + BOXES),
    "open_images_scene_images_transformer": transformer("objects_bbox", SCENES, 48, POSITIONS + BOXES),
}


def config(name, **places):
    """A config of these, with other values at dotted places: ``target="..."``, ``params__n_embed=3``."""
    changed = copy.deepcopy({**FIRST_STAGES, **SECOND_STAGES}[name])
    for place, value in places.items():
        *way, last = place.split("__")
        inner = changed
        for key in way:
            inner = inner[key]
        inner[last] = value
    return {"base_learning_rate": 1e-3, **changed}


def batches(number=2):
    generator = torch.Generator().manual_seed(4)
    items = [
        {
            "image": torch.rand(16, 16, 3, generator=generator) * 2 - 1,
            "depth": torch.rand(16, 16, generator=generator) * 2 - 1,
            "coord": torch.rand(16, 16, 1, generator=generator),
            "segmentation": torch.eye(5)[torch.randint(0, 5, (16, 16), generator=generator)],
            "objects_bbox": torch.randint(0, 48, (BOXES,), generator=generator),
        }
        for _ in range(2 * number)
    ]
    return torch.utils.data.DataLoader(items, batch_size=2)
