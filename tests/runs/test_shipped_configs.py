"""The configs that users start from: every one is built as it stands, and trains on a data set laid out as the real."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning", minversion="2.0", reason="vqct-train is for Lightning 2")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import ROOT, make_prior
from vqct_plugin.runs.build import build_model
from vqct_plugin.runs.config import ConfigError, load_config
from vqct_plugin.training.launcher import run

CONFIGS = ROOT / "configs_taming"
FIRST = sorted(file.name for file in CONFIGS.glob("*_vqct.yaml"))
SECOND = sorted(
    file.name for kind in ("semantic", "unconditional") for file in CONFIGS.glob(f"*_{kind}_transformer.yaml")
)
COND = sorted(file.name for file in CONFIGS.glob("*_cond_stage.yaml"))
OVER = sorted(file.name for file in (CONFIGS / "over").glob("*.yaml") if "transformer" not in file.name)
SMALL = {
    "resolution": 32, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "z_channels": 32,
}  # fmt: skip


def write(folder, name, labels=None, size=(40, 36)):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(len(name))
    pixels = rng.randint(0, labels or 256, (*size, *(() if labels else (3,))), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tree(tmp_path):
    """Data sets of a few pictures in the layouts their owners publish, and what the configs are told of them."""
    for i in range(4):
        for split in ("training", "validation"):
            write(tmp_path / "ADEChallengeData2016/images" / split, f"ADE_{i:08}.jpg")
            write(tmp_path / "ADEChallengeData2016/annotations" / split, f"ADE_{i:08}.png", labels=151)
        for split in ("train", "val"):
            write(tmp_path / "coco" / f"{split}2014", f"COCO_{split}2014_{i:012}.jpg")
            write(tmp_path / "imagenet" / split / f"n0{i}", f"{i}.JPEG")
            write(tmp_path / "images" / split, f"{i}.png")
            write(tmp_path / "CelebA-HQ" / split, f"{i}.jpg")
            write(tmp_path / "masks" / split, f"{i}.png", labels=19)
        write(tmp_path / "CUB_200_2011/images/001.Wren", f"{i}.jpg")
        write(tmp_path / "faces", f"{i}.png")
    cub = tmp_path / "CUB_200_2011"
    (cub / "images.txt").write_text("".join(f"{i + 1} 001.Wren/{i}.jpg\n" for i in range(4)))
    (cub / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n4 0\n")
    (tmp_path / "train.txt").write_text("0.png\n1.png\n")
    (tmp_path / "val.txt").write_text("2.png\n3.png\n")
    make_prior().save(tmp_path / "glove.safetensors")
    return tmp_path


def given(tree, file):
    """The arguments of the file's own first lines, for the tiny data set."""
    ade, celeb = tree / "ADEChallengeData2016", tree / "CelebA-HQ"
    split = "data.params.{}.params.{}={}".format
    name = file.split("_")[0]
    if "semantic" in file or "cond_stage" in file:
        if name == "ade20k":
            pairs = [("train", ade / "images/training", ade / "annotations/training")]
            pairs += [("validation", ade / "images/validation", ade / "annotations/validation")]
        else:
            pairs = [
                ("train", celeb / "train", tree / "masks/train"),
                ("validation", celeb / "val", tree / "masks/val"),
            ]
        return [
            split(s, key, value) for s, path, labels in pairs for key, value in (("path", path), ("labels", labels))
        ]
    if name in ("celebahq", "ffhq") and "transformer" not in file:
        pairs = [("train", tree / "train.txt"), ("validation", tree / "val.txt")]
        return [split(s, key, v) for s, path in pairs for key, v in (("path", path), ("root", tree / "faces"))]
    train, val = {
        "ade20k": (ade / "images/training", ade / "images/validation"),
        "celebahq": (celeb / "train", celeb / "val"),
        "cub": (tree / "CUB_200_2011", tree / "CUB_200_2011"),
        "coco": (tree / "coco/train2014", tree / "coco/val2014"),
        "imagenet": (tree / "imagenet/train", tree / "imagenet/val"),
        "custom": (tree / "images/train", tree / "images/val"),
    }[name]
    return [split("train", "path", train), split("validation", "path", val)]


def small(prefix="model.params", labels=None, **changes):
    """Overrides that make a first stage small."""
    ddconfig = {**SMALL, **({"in_channels": labels, "out_ch": labels} if labels else {}), **changes}
    return [f"{prefix}.ddconfig.{key}={value}" for key, value in ddconfig.items()]


SIZES = ["data.params.batch_size=2", "data.params.num_workers=0"]
SIZES += [f"data.params.{split}.params.size=32" for split in ("train", "validation")]


def labels_of(file):
    return {"ade20k": 151, "celebahq": 19}[file.split("_")[0]]


def trained(tree, files, overrides):
    trainer = {"max_steps": 2, "accelerator": "cpu", "limit_val_batches": 1, "enable_progress_bar": False}
    return run([CONFIGS / file for file in files], overrides, trainer=trainer, logdir=tree / "logs", test=False).model


@pytest.mark.parametrize("file", FIRST)
def test_a_first_stage_trains_on_its_data_set(tree, file):
    overrides = [*given(tree, file), *small(), *SIZES, "model.params.embed_dim=32", "model.params.n_embed=64"]
    model = trained(tree, [file, "over/without_lpips.yaml"], overrides)
    assert model.global_step == 2
    assert model.quantize.tokens_per_position == 2
    assert model.quantize.combine == "sum"
    data = model.trainer.datamodule.datasets
    paths = [{str(path) for path in data[split].paths} for split in ("train", "validation")]
    assert paths[0]
    assert paths[1]
    assert not paths[0] & paths[1]
    assert data["train"].flip
    assert not data["validation"].flip
    assert not data["validation"].random_crop


@pytest.mark.parametrize("over", OVER)
def test_what_lies_over_a_base_trains_too(tree, over, monkeypatch):
    monkeypatch.chdir(tree)
    dims = {"stock_gumbel.yaml": 32}
    overrides = [*given(tree, FIRST[0]), *small(), *SIZES, f"model.params.embed_dim={dims.get(over, 32)}"]
    overrides += ["model.params.n_embed=40"]
    model = trained(tree, [FIRST[0], "over/without_lpips.yaml", f"over/{over}"], overrides)
    assert model.global_step == 2


def test_the_files_over_a_base_say_what_they_mean(tree, monkeypatch):
    """Each changes the model in the way its name says, at the configs' own sizes."""
    monkeypatch.chdir(tree)

    def quantizer(*over, n_embed=40):
        overrides = [*given(tree, FIRST[0]), *small(), f"model.params.n_embed={n_embed}", "model.params.embed_dim=32"]
        files = [FIRST[0], "over/without_lpips.yaml", *(f"over/{name}.yaml" for name in over)]
        return build_model(load_config([CONFIGS / file for file in files], overrides)).quantize

    papers = quantizer("paper")
    assert (type(papers.transfer).__name__, papers.combine, papers.tokens_per_position) == (
        "GraphTransfer",
        "concat",
        3,
    )
    assert (type(quantizer().transfer).__name__, quantizer().combine) == ("AveragesTransfer", "sum")
    assert quantizer("topk_2").tokens_per_position == 3
    assert quantizer().tokens_per_position == quantizer("paper", "topk_1").tokens_per_position == 2
    assert quantizer("without_part_of_speech").tokens_per_position == 1
    kinds = {name: type(quantizer("paper", name).transfer).__name__ for name in ("mlp", "no_transfer", "no_prior")}
    assert kinds == {"mlp": "MLPTransfer", "no_transfer": "LinearTransfer", "no_prior": "TableTransfer"}
    assert len(quantizer("glove").words) == 40
    assert type(quantizer("stock_vqgan")).__module__ == "taming.modules.vqvae.quantize"
    assert type(quantizer("stock_gumbel")).__name__ == "GumbelQuantize"
    assert len(quantizer("gumbel_vqct").heads) == 2


@pytest.mark.parametrize("file", COND)
def test_a_stage_of_label_maps_trains(tree, file):
    overrides = [*given(tree, file), *small(labels=labels_of(file)), *SIZES]
    model = trained(tree, [file], [*overrides, "model.params.embed_dim=32", "model.params.n_embed=40"])
    assert model.global_step == 2


@pytest.mark.parametrize("over", [[], ["over/joint_transformer.yaml"]])
@pytest.mark.parametrize("file", SECOND)
def test_a_second_stage_trains(tree, file, over):
    if over and "unconditional" not in file:
        pytest.skip("the file is for the unconditional ones")
    overrides = [*given(tree, file), *SIZES]
    stages = ["first_stage_config", *["cond_stage_config"] * ("semantic" in file)]
    for stage in stages:
        labels = labels_of(file) if stage == "cond_stage_config" else None
        prefix = f"model.params.{stage}.params"
        overrides += [
            *small(prefix, labels),
            f"{prefix}.embed_dim=32",
            f"{prefix}.n_embed=128",
            f"{prefix}.ckpt_path=null",
        ]
    gpt = "model.params.transformer_config.params"
    overrides += [f"{gpt}.n_layer=1", f"{gpt}.n_head=2", f"{gpt}.n_embd=16"]
    overrides += [f"{gpt}.vocab_size=128", f"{gpt}.block_size=600"] if over else [f"{gpt}.block_size=600"]
    model = trained(tree, [file, *over], overrides)
    assert model.global_step == 2
    assert model.be_unconditional == ("unconditional" in file)


@pytest.mark.parametrize("file", [*FIRST, *COND])
def test_a_first_stage_is_built_at_full_size(tree, file):
    over = ["over/without_lpips.yaml"] if file in FIRST else []
    model = build_model(load_config([CONFIGS / name for name in [file, *over]], given(tree, file)))
    params = OmegaConf.load(CONFIGS / file).model.params
    assert model.quantize.e_dim == params.embed_dim == model.quant_conv.out_channels
    assert model.quantize.n_e == params.n_embed
    if params.embed_dim == 512:  # the authors' convolutions
        assert model.quant_conv.weight.shape == (512, 256, 1, 1)
        assert model.post_quant_conv.weight.shape == (256, 512, 1, 1)


@pytest.mark.parametrize("file", [name for name in SECOND if name.startswith("ade")])
@pytest.mark.parametrize("over", [[], ["over/joint_transformer.yaml"]])
def test_a_second_stage_is_built_at_full_size(tree, file, over):
    if over and "unconditional" not in file:
        pytest.skip("the file is for the unconditional ones")
    none = [f"model.params.{stage}.params.ckpt_path=null" for stage in ("first_stage_config",)]
    none += ["model.params.cond_stage_config.params.ckpt_path=null"] if "semantic" in file else []
    config = load_config([CONFIGS / name for name in [file, *over]], [*given(tree, file), *none])
    model = build_model(config)
    condition = 256 if "semantic" in file else 1
    positions = 256 * (2 if over else 1)
    assert model.transformer.get_block_size() >= condition + positions - 1


def test_every_first_line_says_a_command_that_the_file_understands():
    for file in CONFIGS.glob("*.yaml"):
        text = file.read_text()
        head = text[: text.index("\nmodel:")]
        assert f"--base configs_taming/{file.name}" in head
        keys = re.findall(r"((?:data|model)\.params[\w.]*)=", head)
        config = OmegaConf.load(file)
        assert keys
        assert all(OmegaConf.select(config, key.rpartition(".")[0]) is not None for key in keys)
        assert "Whose values" in head


def test_what_has_to_be_given_is_asked_for():
    with pytest.raises(
        ConfigError, match=r"data.params.train.params.path and data.params.validation.params.path have to"
    ):
        load_config([CONFIGS / "custom_vqct.yaml"])


def test_the_second_stage_of_the_main_job_trains_on_its_first(tree):
    pytest.importorskip("skimage", reason="the photographs are scikit-image's")
    overrides = ["model.params.first_stage_config.params.ckpt_path=null", "data.params.batch_size=2"]
    model = trained(tree, ["photographs_transformer.yaml"], overrides)
    assert [token.last - token.first for token in model.tokens] == [399, 625]  # as the first stage of vqct-demo
