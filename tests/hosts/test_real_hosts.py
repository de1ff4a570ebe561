"""The patches on the real checkouts: ``VQCT_HOSTS`` names a folder that holds them, each under its patch's name.

CI has no checkouts of the hosts; a recorded run of this file is in ``patches/README.md``, with its commands.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("yaml")

from tests.conftest import ROOT  # noqa: E402
from vqct_plugin.hosts.patching import PatchError, list_hosts, patch_host  # noqa: E402

CHECKOUTS = os.environ.get("VQCT_HOSTS")
SCRIPT = Path(__file__).with_name("real_hosts.py")
NAMES = [host.name for host in list_hosts()]
TARGETS = {
    "LlamaGen": "vqct_plugin.hosts.llamagen.LlamaGenQuantizer",
    "VQGAN-LC": "vqct_plugin.hosts.vqgan_lc.VQGANLCQuantizer",
    "CVQ-VAE": "vqct_plugin.hosts.cvq_vae.CVQQuantizer",
    "1d-tokenizer": "vqct_plugin.hosts.titok.TiTokQuantizer",
    "SimVQ": "vqct_plugin.hosts.simvq.SimVQQuantizer",
}
HEADS = ("taming/modules/autoencoder/lpips", "src/IBQ/modules/autoencoder/lpips", "tokenizer/tokenizer_image/cache")

pytestmark = pytest.mark.skipif(CHECKOUTS is None, reason="VQCT_HOSTS names no folder of the hosts' checkouts")


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory):
    """VGG16 of random numbers, which the hosts' LPIPS takes from here instead of downloading the trained one."""
    import torchvision

    home = tmp_path_factory.mktemp("torch_home")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.vgg16().state_dict(), home / "hub" / "checkpoints" / "vgg16-397923af.pth")
    return home


@pytest.fixture
def checkout(request, tmp_path):
    """A copy of the host's checkout, with files for LPIPS where it looks for them."""
    source = Path(CHECKOUTS) / request.param
    if not source.is_dir():
        pytest.skip(f"there is no {source}")
    copy = tmp_path / request.param
    shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    return copy


def files_of(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()}


def run(checkout, what, torch_home, config=None, route=""):
    root = checkout / "vqgan-gpt-lc" if checkout.name == "VQGAN-LC" else checkout
    heads = [root / folder for folder in HEADS if (root / folder.split("/")[0] / folder.split("/")[1]).is_dir()]
    heads += [root / "models"] * (checkout.name == "VQGAN-LC")
    heads += [root / HEADS[0]] * (checkout.name == "latent-diffusion")  # which takes taming's loss
    for folder in heads:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({}, folder / "vgg.pth")
    result = checkout.parent / "result.pt"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TORCH_HOME": str(torch_home), "OMP_NUM_THREADS": "1"}
    if config is not None:
        (checkout.parent / "quantizer.yaml").write_text(json.dumps(config))
        environment["CONFIG"] = str(checkout.parent / "quantizer.yaml")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), checkout.name + route, what, str(result)],
        cwd=root, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout, end="")
    return torch.load(result, weights_only=True)


def same(ours, theirs):
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    return torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


@pytest.mark.parametrize("checkout", NAMES, indirect=True)
def test_a_patch_goes_in_and_out_to_the_last_byte(checkout):
    before = files_of(checkout)
    result = patch_host(checkout)
    after = files_of(checkout)
    assert sorted(str(f.relative_to(checkout)) for f in after if after[f] != before[f]) == sorted(result.files)
    with pytest.raises(PatchError, match="patched already"):
        patch_host(checkout)
    patch_host(checkout, revert=True)
    assert files_of(checkout) == before


@pytest.mark.parametrize("checkout", NAMES, indirect=True)
def test_git_itself_applies_the_patch(checkout):
    host = next(host for host in list_hosts() if host.name == checkout.name)
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(checkout.parent)}
    subprocess.run(["git", "apply", str(host.patch)], cwd=checkout, env=environment, check=True)
    with pytest.raises(PatchError, match="patched already"):
        patch_host(checkout)


@pytest.mark.parametrize("checkout", NAMES, indirect=True)
def test_without_quantizer_config_the_host_is_bitwise_what_it_was(checkout, torch_home):
    before = run(checkout, "stock", torch_home)
    patch_host(checkout)
    assert same(before, run(checkout, "stock", torch_home))


@pytest.mark.parametrize("transfer", ["averages", "graph"])
@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("checkout", [*NAMES, "SimVQ"], indirect=True)
def test_the_host_trains_saves_loads_and_decodes_with_vqct(checkout, torch_home, tokens, transfer):
    if checkout.name != "SimVQ":
        patch_host(checkout)
    params = {1: {"parts_of_speech": "joint"}, 2: {}, 3: {"topk": 2}}[tokens]
    params["transfer"] = transfer
    config = {"target": TARGETS.get(checkout.name, "vqct_plugin.Quantizer"), "params": params}
    assert run(checkout, "vqct", torch_home, config)["tokens"] == tokens


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("checkout", ["latent-diffusion"], indirect=True)
def test_the_untouched_latent_diffusion_trains_with_our_model(checkout, torch_home, tokens):
    params = {1: {"parts_of_speech": "joint"}, 2: {}, 3: {"topk": 2}}[tokens]
    assert run(checkout, "vqct", torch_home, {"params": params}, "-unpatched")["tokens"] == tokens


@pytest.mark.parametrize("checkout", ["latent-diffusion"], indirect=True)
def test_latent_diffusion_trains_with_the_loss_of_its_own_configs(checkout, torch_home):
    patch_host(checkout)
    config = {"target": "vqct_plugin.Quantizer", "params": {}}
    assert run(checkout, "vqct", torch_home, config, "-shipped")["tokens"] == 2


@pytest.mark.parametrize("checkout", NAMES, indirect=True)
def test_a_fork_is_patched_and_had_back(checkout):
    for file in next(host for host in list_hosts() if host.name == checkout.name).files:
        with (checkout / file).open("rb+") as opened:
            text = opened.read()
            opened.seek(0)
            opened.write(b"# a line of the fork's\n" + text)
    before = files_of(checkout)
    assert "not as in commit" in patch_host(checkout).notes[0]
    patch_host(checkout, revert=True)
    assert files_of(checkout) == before
