"""``vqct-train``'s flags are taming's."""

import pytest

from tests.runs.tiny import write
from vqct_plugin.commands import train as command


@pytest.fixture
def called(monkeypatch):
    pytest.importorskip("pytorch_lightning")
    pytest.importorskip("taming")
    from vqct_plugin.training import launcher

    calls = []
    monkeypatch.setattr(launcher, "run", lambda *args, **kwargs: calls.append((args, kwargs)))
    monkeypatch.setattr(launcher, "check", lambda *args, **kwargs: f"checked {args} {sorted(kwargs)}")
    return calls


def test_tamings_own_command_line(called):
    words = "--base a.yaml b.yaml -t True --gpus 0,1 -n name -f _x -s 7 --no-test True --max_epochs 5"
    command.main([*words.split(), "model.params.n_embed=64"])
    ((base, overrides), keywords) = called[0]
    assert base == ["a.yaml", "b.yaml"]
    assert overrides == ["model.params.n_embed=64"]
    assert keywords == {
        "trainer": {"max_epochs": 5}, "gpus": "0,1", "name": "name", "postfix": "_x", "resume": None,
        "logdir": "logs", "seed": 7, "train": True, "test": False,
    }  # fmt: skip


def test_overrides_may_follow_base(called):
    command.main(["-b", "a.yaml", "model.target=vqct_plugin.VQModel"])
    assert called[0][0] == (["a.yaml"], ["model.target=vqct_plugin.VQModel"])
    assert called[0][1]["train"] is True


def test_resume_alone_is_the_newest_run(called):
    command.main(["-r", "--max_steps", "5"])
    command.main(["-r", "model.params.topk=2", "-l", "elsewhere"])
    command.main(["-r", "logs/a"])
    assert [keywords["resume"] for _, keywords in called] == [True, True, "logs/a"]
    assert [overrides for (_, overrides), _ in called] == [[], ["model.params.topk=2"], []]
    assert called[1][1]["logdir"] == "elsewhere"


def test_check_says_what_is_there_and_trains_nothing(called, capsys):
    command.main(["-b", "a.yaml", "--check", "topk=2", "--gpus", "0,"])
    assert called == []
    expected = ["gpus", "logdir", "name", "postfix", "resume", "seed", "train", "trainer"]
    assert capsys.readouterr().out == f"checked (['a.yaml'], ['topk=2']) {expected}\n"


def test_the_trainers_arguments_are_read_as_yaml():
    words = ["--precision", "bf16-mixed", "--limit-val-batches=0.5", "--fast_dev_run", "a.b=1", "--devices", "[0, 1]"]
    assert command.split(words) == (
        {"precision": "bf16-mixed", "limit_val_batches": 0.5, "fast_dev_run": True, "devices": [0, 1]}, ["a.b=1"]
    )  # fmt: skip


def test_messages_name_the_flags(capsys, tmp_path, monkeypatch):
    pytest.importorskip("pytorch_lightning")
    pytest.importorskip("taming")
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 1
    assert "vqct-train: there is no config; give --base YAML, or --resume RUN" in capsys.readouterr().err
    assert command.main(["-b", "a.yaml", "-n", "x", "-r", "logs/y"]) == 1
    assert "vqct-train: --name x and --resume logs/y exclude each other" in capsys.readouterr().err


def test_a_word_that_is_neither_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pytorch_lightning")
    pytest.importorskip("taming")
    monkeypatch.chdir(tmp_path)
    yaml = str(write(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        command.main(["-b", yaml, "-t", "maybe"])
    assert stopped.value.code == 2
    assert "'maybe' is neither true nor false" in capsys.readouterr().err
    assert command.main(["-b", yaml, "-n", "x", "stray"]) == 1
    told = capsys.readouterr().err
    assert "vqct-train: cannot use the argument 'stray'" in told
    assert "Traceback" not in told
