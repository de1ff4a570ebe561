"""diffusers' examples/vqgan/train_vqgan.py as it is, and with the line of docs/diffusers.md: what becomes of the codes.

    git clone https://github.com/huggingface/diffusers
    python benchmarks/diffusers_script.py diffusers/examples/vqgan ../shared/data/photographs/clothing runs

The script is run from its own file, each time in a process of its own, with nothing changed but that line. What it
would download is replaced: where it asks timm for a network for its perceptual loss it gets EfficientNet-Lite0, whose
weights a package carries. The second folder has the photographs, in train/ and validation/. After each run the model
that the script saved reconstructs the middle of every photograph of validation/. A run that is done is not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
import torch.nn as nn
from torch import Tensor

from vqct_plugin import CodebookUsage
from vqct_plugin.runs.backbones import EfficientNetLite0
from vqct_plugin.runs.datasets import Images

SIDE = 64
#: the same bits a position, 10, in each
CODEBOOKS: Dict[str, Dict[str, Any]] = {
    "stock": {"num_vq_embeddings": 1024},
    "joint": {"num_vq_embeddings": 1024, "quantizer_config": {"parts_of_speech": "joint"}},
    "two parts": {"num_vq_embeddings": 64, "quantizer_config": {"n_e": {"adjective": 32, "noun": 32}}},
}
LINE, OURS = "from diffusers import VQModel", "from vqct_plugin.hosts.diffusers import VQModel"


class Features(nn.Module):
    """What the script asks of a network of timm."""

    pretrained_cfg: ClassVar[Dict[str, Any]] = {
        "input_size": (3, SIDE, SIDE),
        "crop_pct": 1.0,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0()
        for i in range(len(self.network.LAYERS)):
            self.add_module(f"blocks{i}", nn.Identity())  # whose names the script looks up

    def forward(self, images: Tensor) -> List[Tensor]:
        return self.network(images)


def model_config(codebook: Dict[str, Any]) -> Dict[str, Any]:
    return {
        "_class_name": "VQModel", "in_channels": 3, "out_channels": 3, "latent_channels": 8, "vq_embed_dim": 8,
        "block_out_channels": [32, 64, 64], "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3, "layers_per_block": 1, "norm_num_groups": 32, "sample_size": SIDE,
        "norm_type": "spatial", **codebook,
    }  # fmt: skip


def train(script: Path, photographs: Path, folder: Path, name: str, steps: int, seed: int) -> None:
    """Run the script in this process."""
    import timm

    timm.create_model = lambda *args, **options: Features()
    source = (script / "train_vqgan.py").read_text(encoding="utf-8")
    if source.count(LINE + "\n") != 1:
        raise SystemExit(f"{script / 'train_vqgan.py'}: '{LINE}' is expected once")
    if name != "stock":
        source = source.replace(LINE, OURS)
    sys.path.insert(0, str(script))
    settings = {
        "train_data_dir": photographs / "train", "cache_dir": folder / "cache", "output_dir": folder / "output",
        "model_config_name_or_path": folder / "config.json", "resolution": SIDE, "train_batch_size": 8, "seed": seed,
        "discriminator_config_name_or_path": folder / "discriminator.json", "max_train_steps": steps,
        "timm_model_layers": "blocks0|blocks1|blocks2|blocks3", "learning_rate": 5e-4, "discr_learning_rate": 5e-4,
        "lr_scheduler": "constant", "discr_lr_scheduler": "constant", "lr_warmup_steps": 0, "report_to": "tensorboard",
        "checkpointing_steps": 10 * steps, "validation_steps": 10 * steps,
        "validation_images": next((photographs / "validation").iterdir()),
    }  # fmt: skip
    sys.argv = ["train_vqgan.py", "--center_crop"]
    sys.argv += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    exec(compile(source, str(script / "train_vqgan.py"), "exec"), {"__name__": "__main__"})


@torch.no_grad()
def measure(photographs: Path, folder: Path, name: str) -> Dict[str, Any]:
    if name == "stock":
        from diffusers import VQModel
    else:
        from vqct_plugin.hosts.diffusers import VQModel  # type: ignore[assignment]
    model = VQModel.from_pretrained(str(folder / "output" / "vqmodel")).eval()
    data = Images(str(photographs / "validation"), size=SIDE)
    usage = CodebookUsage(model.config.num_vq_embeddings)
    of_l1, of_psnr = [], []
    for item in data:
        x = (torch.from_numpy(item["image"]).permute(2, 0, 1)[None] + 1) / 2  # the script's images are in [0, 1]
        latents = model.encode(x).latents
        usage.update(model.quantize(latents)[2][2].reshape(-1))
        difference = model(x).sample.clamp(0, 1) - x
        of_l1.append(float(difference.abs().mean()))
        of_psnr.append(float(-10 * difference.square().mean().log10()))
    codes = usage.compute()["codes"]
    return {
        "photographs": len(data), "in_use": codes.in_use, "perplexity": codes.perplexity,
        "l1": sum(of_l1) / len(of_l1), "psnr": sum(of_psnr) / len(of_psnr),
    }  # fmt: skip


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="the folder of train_vqgan.py")
    parser.add_argument("photographs", type=Path, help="a folder with train/ and validation/")
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--steps", type=int, default=600, help="of the script, which gives every other one to the discriminator"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*CODEBOOKS], default=["stock", "joint"])
    parser.add_argument("--train", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args(arguments)
    if options.train:
        folder = options.output / options.train.replace(" ", "_")
        return train(options.script, options.photographs, folder, options.train, options.steps, options.seed)
    print("| codebook | in use | perplexity | L1 | PSNR, dB | minutes |\n|---|---|---|---|---|---|")
    for name in options.only:
        folder = (options.output / name.replace(" ", "_")).absolute()
        figures = folder / "figures.json"
        if not figures.exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps(model_config(CODEBOOKS[name])))
            # the script's is of 512 channels and depth 6, for 256 pixels
            (folder / "discriminator.json").write_text(json.dumps({"hidden_channels": 64, "depth": 5}))
            begin = time.perf_counter()
            command = [
                sys.executable,
                __file__,
                *(str(p.absolute()) for p in (options.script, options.photographs, options.output)),
            ]
            command += ["--train", name, "--steps", str(options.steps), "--seed", str(options.seed)]
            with (folder / "log.txt").open("w") as log:
                subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
            minutes = (time.perf_counter() - begin) / 60
            row = {**measure(options.photographs, folder, name), "minutes": minutes, "steps": options.steps}
            figures.write_text(json.dumps(row))
        f = json.loads(figures.read_text())
        total = CODEBOOKS[name]["num_vq_embeddings"]
        print(
            f"| {name} | {f['in_use']:,} of {total:,} | {f['perplexity']:.0f} | {f['l1']:.3f} | {f['psnr']:.1f} "
            f"| {f['minutes']:.1f} |",
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
