"""``csv/metrics.csv``: appended to, of any columns, and gone on with after a checkpoint."""

import csv

import pytest

pytest.importorskip("pytorch_lightning", "2.2")
from vqct_plugin.training.table import MetricsTable


def read(file):
    with file.open(newline="") as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]


def test_what_is_logged_is_in_the_file_whatever_its_columns(tmp_path):
    table = MetricsTable(tmp_path / "csv" / "metrics.csv", rows_kept_back=2)
    logged = [{"a": 1.5, "epoch": 0}, {"a": 2.0}, {"b/c": 0.1}, {"a": 3.0, "b/c": 4.0}, {"a": 1e-30}]
    for step, metrics in enumerate(logged):
        table.log_metrics(metrics, step)
    assert len(read(table.file)) == 4
    table.finalize("success")
    assert read(table.file) == [{**metrics, "step": step} for step, metrics in enumerate(logged)]


def test_a_resumed_table_keeps_what_was_before_the_checkpoint(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv")
    for step in range(4):
        table.log_metrics({"train/loss": step, "epoch": 0}, step)
        if step % 2:
            table.log_metrics({"train/in_use/noun": 0.5}, step + 1)
            table.log_metrics({"val/loss_step": 7.0}, 90)  # a batch of validation, numbered by itself
    table.save()
    again = MetricsTable(table.file)
    again.resume(2)
    again.log_metrics({"train/loss": 20.0}, 2)
    again.save()
    steps = [(int(row["step"]), sorted(row)[-1]) for row in read(table.file)]
    assert steps == [
        (0, "train/loss"), (1, "train/loss"), (2, "train/in_use/noun"), (90, "val/loss_step"), (2, "train/loss")
    ]  # fmt: skip


def test_a_table_that_cannot_be_written_says_which(tmp_path):
    (tmp_path / "file").touch()
    table = MetricsTable(tmp_path / "file" / "metrics.csv")
    table.log_metrics({"a": 1.0}, 0)
    with pytest.raises(OSError, match=r"the table .*file/metrics\.csv cannot be written"):
        table.save()
