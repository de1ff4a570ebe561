import os
import subprocess
import sys

import pytest

from tests.building.conftest import NEEDED, minilm, nltk_data  # noqa: F401 (fixtures)
from tests.conftest import ROOT
from vqct_plugin.commands.build_prior import main, make_parser
from vqct_plugin.prior import CodebookPrior

pytestmark = pytest.mark.skipif(bool(NEEDED), reason=f"building a prior needs {', '.join(NEEDED)}")

LINES = "A red dog .\nA small orange cat on the green grass .\nTwo red dogs chase a big yellow ball .\n" * 4
# as NLTK tags them: red small green big; dog orange cat grass yellow ball


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text(LINES)
    return path


def run(*arguments, **environment):
    command = [sys.executable, "-m", "vqct_plugin.commands.build_prior", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_the_same_inputs_give_the_same_bytes_whatever_the_hash_seed(captions, minilm, nltk_data, tmp_path):  # noqa: F811
    outputs = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for output, seed in zip(outputs, ("1", "2")):
        done = run("--plm", minilm, "--captions", captions, "--output", output, "--min-count", 0, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert "4 adjectives + 6 nouns = 10 codes" in done.stdout
        assert "tagging captions" in done.stderr  # the progress bar
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert CodebookPrior.load(outputs[0]).words[0] == "red"


def test_a_model_that_cannot_be_fetched_is_told_of_with_the_way_out(captions, tmp_path):
    output = tmp_path / "prior.safetensors"
    done = run("--plm", "someone/no-such-model", "--captions", captions, "--output", output)
    assert done.returncode == 1
    assert "pass the folder: --plm FOLDER" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()


def test_an_error_is_one_sentence_on_stderr(captions, tmp_path, capsys):
    output = tmp_path / "prior.safetensors"
    output.write_text("mine")
    assert main(["--plm", "any/model", "--captions", str(captions), "--output", str(output)]) == 1
    assert capsys.readouterr().err == f"vqct-build-prior: output {output} exists; use --force to replace it\n"
    assert output.read_text() == "mine"


def test_ctrl_c_leaves_no_file(captions, tmp_path, monkeypatch, capsys):
    from vqct_plugin.building import build

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "LanguageModel", interrupted)
    arguments = ["--plm", "any/model", "--captions", str(captions), "--output", str(tmp_path / "prior.safetensors")]
    assert main(arguments) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["captions.txt"]


def test_every_flag_is_an_argument_of_the_function():
    from inspect import signature

    from vqct_plugin.building.build import build_prior

    required = ["--plm", "m", "--captions", "c", "--output", "o"]
    flags = vars(make_parser().parse_args(required))
    assert flags.pop("quiet") is False
    parameters = signature(build_prior).parameters
    assert set(flags) | {"progress"} == set(parameters)
    for name, value in flags.items():
        if name not in ("plm", "captions", "output"):
            assert value == parameters[name].default, name


def test_help_needs_none_of_the_libraries():
    code = (
        "import sys; sys.modules['nltk'] = sys.modules['transformers'] = None\n"
        "from vqct_plugin.commands.build_prior import main\n"
        "print(main(['--plm', 'm', '--captions', 'c', '--output', 'o']))\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("1\nusage: vqct-build-prior")
    assert "pip install 'vqct-plugin[prior]'" in done.stderr
