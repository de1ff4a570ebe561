"""The notebooks run from top to bottom, one after the other, without a download; and hold no outputs."""

import json
import os

import pytest

from tests.conftest import ROOT

pytest.importorskip("nbclient")
pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("taming")
pytest.importorskip("pytorch_lightning", "2.2")

import nbclient
import nbformat

NAMES = ("first_codebook", "reading_a_codebook")  # the second reads what the first has trained


def test_there_is_no_other_and_no_output():
    files = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [file.stem for file in files] == sorted(NAMES)
    for file in files:
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None
        assert file.stat().st_size < 10_000


def test_the_notebooks_run_in_a_few_steps(tmp_path, monkeypatch):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for name, value in {"PYTHONPATH": path, "NOTEBOOK_STEPS": "2", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    printed = {}
    for name in NAMES:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        printed[name] = "".join(output.get("text", "") for output in outputs)
        assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "2 steps, " in printed["first_codebook"]
    assert "noun: " in printed["first_codebook"]
    assert "last.ckpt" in printed["reading_a_codebook"]
    assert printed["reading_a_codebook"].count("codebook:") == 5
