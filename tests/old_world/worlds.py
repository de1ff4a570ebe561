"""What the runs of both worlds share: a tiny taming config on real photographs, and LPIPS without the internet."""

from pathlib import Path

import torch

from tests.conftest import SHARED, make_prior

VQ_LPIPS = "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
KINDS = {
    "stock": ("taming.models.vqgan.VQModel", {}),
    "table": ("vqct_plugin.VQModel", {"transfer": "table", "parts_of_speech": "joint"}),
    "vqct": ("vqct_plugin.VQModel", {"prior": "prior.safetensors"}),
}
DDCONFIG = {
    "double_z": False, "z_channels": 32, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip


def photographs(number=12):
    """Paths of real photographs, the Berkeley segmentation data set's; none where they are not beside the project."""
    folder = SHARED / "data" / "bsds500"
    return sorted(folder.rglob("*.jpg"))[:number] if folder.is_dir() else []


def lpips_offline(torch_home, folder):
    """Random weights where torchvision and taming look before they download: losses are comparable between worlds, not
    with published ones."""
    import torchvision

    hub = Path(torch_home) / "hub" / "checkpoints"
    hub.mkdir(parents=True, exist_ok=True)
    if not (hub / "vgg16-397923af.pth").exists():
        torch.manual_seed(0)
        torch.save(torchvision.models.vgg16().state_dict(), str(hub / "vgg16-397923af.pth"))
    heads = Path(folder) / "taming" / "modules" / "autoencoder" / "lpips"
    heads.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    channels = (64, 128, 256, 512, 512)
    state = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) / c for i, c in enumerate(channels)}
    torch.save(state, str(heads / "vgg.pth"))


def model_config(kind):
    target, options = KINDS[kind]
    loss = {"target": VQ_LPIPS, "params": {"disc_start": 10, "disc_num_layers": 2, "disc_ndf": 16}}
    params = {"embed_dim": 32, "n_embed": 40, "ddconfig": DDCONFIG, "lossconfig": loss, **options}
    return {"base_learning_rate": 5.0e-4, "target": target, "params": params}


def write_config(folder, kind):
    """``KIND.yaml`` in the folder, with its list file and prior: 20 steps of two photographs."""
    from omegaconf import OmegaConf

    (folder / "list.txt").write_text("\n".join(map(str, photographs())))
    if not (folder / "prior.safetensors").exists():
        make_prior().save(folder / "prior.safetensors")

    def data(split, argument):
        return {"target": f"taming.data.custom.Custom{split}", "params": {argument: "list.txt", "size": 32}}

    train, test = data("Train", "training_images_list_file"), data("Test", "test_images_list_file")
    module = {"batch_size": 2, "num_workers": 0, "train": train, "validation": test}
    config = {
        "model": model_config(kind), "data": {"target": "main.DataModuleFromConfig", "params": module},
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(config), str(folder / f"{kind}.yaml"))
    return f"{kind}.yaml"
