import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.building.conftest import NEEDED, flickr8k, minilm, nltk_data  # noqa: F401 (fixtures)
from tests.conftest import ROOT, heed_interrupts
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
    assert capsys.readouterr().err == f"vqct-build-prior: {output} exists; pass --force to replace it\n"
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


@pytest.mark.usefixtures("nltk_data")
def test_without_an_output_the_file_is_named_by_the_model(captions, minilm, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    common = ["--captions", str(captions), "--min-count", "0", "-q"]
    assert main(["--plm", minilm, *common]) == 0
    assert main(["--plm", minilm, "--plm-name", "sentence-transformers/all-MiniLM-L6-v2", *common]) == 0
    assert {file.name for file in tmp_path.glob("*.safetensors")} == {
        "model_prior.safetensors", "all-MiniLM-L6-v2_prior.safetensors"
    }  # fmt: skip
    assert capsys.readouterr().out == ""
    assert main(["--plm", minilm, *common]) == 1
    assert "model_prior.safetensors exists; pass --force" in capsys.readouterr().err


def test_flags_of_several_values_are_what_the_function_takes(captions, monkeypatch):
    from vqct_plugin.building import build

    asked = []
    monkeypatch.setattr(build, "build_prior", lambda **options: asked.append(options))
    always = ["--plm", "bert-base-uncased", "-q"]
    assert main(always) == 0
    assert asked[-1]["output"] == "bert-base-uncased_prior.safetensors"
    assert asked[-1]["captions"] is None
    main([*always, "--max-words", "4000", "--parts", "noun", "verb"])
    assert (asked[-1]["max_words"], asked[-1]["parts"]) == (4000, ["noun", "verb"])
    main([*always, "--max-words", "adjective=1949", "noun=4258", "--prompts", "noun=a photo of a={}"])
    assert asked[-1]["max_words"] == {"adjective": 1949, "noun": 4258}
    assert asked[-1]["prompts"] == {"noun": "a photo of a={}"}
    main(["--word-vectors", "data/glove.6B.300d.txt.gz", "-q"])
    assert asked[-1]["output"] == "glove.6B.300d_prior.safetensors"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--max-words", "many"], "--max-words many: expected a number, or PART=NUMBER"),
        (["--max-words", "noun=3", "noun=4"], "expected a number, or PART=NUMBER"),
        (["--prompts", "a photo of {}"], "--prompts 'a photo of {}': expected PART=VALUE"),
    ],
)
def test_flags_that_make_no_sense_are_told_of(flags, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--plm", "m", *flags])
    assert sentence in capsys.readouterr().err


@pytest.mark.usefixtures("nltk_data")
def test_captions_come_through_a_pipe(captions, minilm, tmp_path, monkeypatch):  # noqa: F811
    outputs = [str(tmp_path / name) for name in ("file.safetensors", "pipe.safetensors")]
    always = ["--plm", minilm, "--min-count", "0", "-q"]
    assert main([*always, "--captions", str(captions), "--output", outputs[0]]) == 0
    with open(captions) as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main([*always, "--captions", "-", "--output", outputs[1]]) == 0
    first, second = map(CodebookPrior.load, outputs)
    assert first.fingerprint == second.fingerprint
    assert second.provenance["captions"][0]["file"] == "standard input"


@pytest.mark.usefixtures("nltk_data")
def test_any_number_of_workers_gives_the_same_bytes(flickr8k, minilm, tmp_path):  # noqa: F811
    part = tmp_path / "part.token"
    part.write_text("".join(flickr8k.read_text(encoding="utf-8").splitlines(keepends=True)[:4_000]))
    outputs = {workers: tmp_path / f"{workers}.safetensors" for workers in (1, 2, 3)}
    for workers, output in outputs.items():
        flags = ["--captions", str(part), "--output", str(output), "--workers", str(workers), "-q"]
        assert main(["--plm", minilm, *flags]) == 0
    assert len({output.read_bytes() for output in outputs.values()}) == 1
    assert len(CodebookPrior.load(outputs[1])) > 200


WRITES = """
import os, sys
import numpy as np
from vqct_plugin.prior import CodebookPrior
prior = CodebookPrior(
    [f"word {i}" for i in range(800)], np.arange(800) % 2, np.ones(800, int), np.ones((800, 900), "f4"), [], []
)
print("begun", flush=True)
while True:
    prior.save(sys.argv[1], overwrite=sys.argv[2] == "force")
    if sys.argv[2] != "force":
        os.unlink(sys.argv[1])
"""


@pytest.mark.parametrize("how", ["force", "new"])
def test_a_process_killed_while_it_writes_leaves_a_whole_file_or_none(tmp_path, how):
    if not hasattr(os, "O_TMPFILE"):
        pytest.skip("files without a name are Linux's")
    rng = random.Random(0)
    for _ in range(8):
        output = tmp_path / "prior.safetensors"
        command = [sys.executable, "-c", WRITES, str(output), how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
        process.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.15))
        process.kill()
        process.wait()
        left = {file.name for file in tmp_path.iterdir()}
        # between the two steps of a replacement stands a whole file under another name
        assert {name for name in left if not name.endswith(".part")} <= {"prior.safetensors"}
        for file in tmp_path.iterdir():
            assert len(CodebookPrior.load(file)) == 800
            file.unlink()


@pytest.mark.usefixtures("nltk_data")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_stopped_leaves_the_folder_as_it_was(flickr8k, minilm, tmp_path, how):  # noqa: F811
    output = tmp_path / "prior.safetensors"
    output.write_text("mine")
    command = [sys.executable, "-m", "vqct_plugin.commands.build_prior", "--plm", minilm, "--captions", str(flickr8k)]
    command += ["--output", str(output), "--force", "--workers", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, env=env, stderr=subprocess.PIPE, cwd=tmp_path, preexec_fn=heed_interrupts
    ) as process:
        told = b""
        while b"tagging" not in told:
            told += process.stderr.read1(1000) or pytest.fail(told.decode())
        time.sleep(1)
        process.send_signal(how)
        told += process.stderr.read()
    assert process.returncode == (130 if how == signal.SIGINT else -9)
    if how == signal.SIGINT:
        assert b"interrupted; nothing was written" in told
        assert b"Traceback" not in told
    assert [file.name for file in tmp_path.iterdir()] == ["prior.safetensors"]
    assert output.read_text() == "mine"
