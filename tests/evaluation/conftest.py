"""Small trained runs and photographs, for all tests of evaluation."""

import pytest
import torch
import yaml


def quick(runs, output, **settings):
    from vqct_plugin.evaluation.runs import evaluate_runs

    return evaluate_runs(runs, output, progress=False, **settings)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folders of a stock and a VQCT run of three steps."""
    from tests.runs.tiny import config
    from vqct_plugin.training.launcher import run

    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, target, options in (
        ("stock", "taming.models.vqgan.VQModel", {}),
        ("vqct", "vqct_plugin.VQModel", {"topk": 2}),
    ):
        whole = config(target, **options)
        whole["data"]["params"]["validation"]["params"]["size"] = 48
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
        trainer = {"max_steps": 3, "limit_val_batches": 1}
        found[name] = run([folder / f"{name}.yaml"], trainer=trainer, logdir=folder / "logs", test=False).folder
    return found


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """No weights of other networks anywhere."""
    monkeypatch.delenv("VQCT_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"), raising=False)


@pytest.fixture
def photographs(tmp_path):
    """A folder of 14 real images of several sizes."""
    from PIL import Image

    from vqct_plugin.runs.photographs import FILES, _read

    folder = tmp_path / "photographs"
    folder.mkdir()
    for i, name in enumerate(FILES):
        image = Image.fromarray(_read(name))
        image.crop((0, 0, 70 + i, 64)).save(folder / f"{i}.png")
        image.crop((100, 50, 180, 120 + i)).convert("L").save(folder / f"gray{i}.jpg")
    for i in range(2):
        (folder / f"{i}.png").unlink()
    return folder
