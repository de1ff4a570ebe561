"""The table of all logged figures, ``csv/metrics.csv``, which a resumed run goes on with."""

import csv
import io
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from vqct_plugin._files import write_whole

AT_THE_STEP = "in_use/"  # in the names of what is logged after a step, by its number; all else is numbered from 0


class MetricsTable(Logger):
    """A logger that writes a CSV file: one row for each call, one column for each name.

    Rows are appended; where a new name comes up the file is written anew, whole or not at all.

    Args:
        file: the file; a run that is not resumed replaces it.
        rows_kept_back: so many rows are written at once.
    """

    def __init__(self, file: Path, rows_kept_back: int = 50) -> None:
        super().__init__()
        self.file, self.rows_kept_back = file, rows_kept_back
        self._rows: List[Dict[str, str]] = []  # all of them
        self._columns: List[str] = []
        self._kept_back = 0
        self._written: Optional[int] = None  # how many are in the file, as far as its columns are still these

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return self.file.parent.name

    @property
    def save_dir(self) -> str:
        return str(self.file.parent.parent)

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Go on with the rows that are there, up to those of this step; later ones will be logged again."""
        if not self.file.is_file():
            return
        with self.file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                mine = {name: value for name, value in row.items() if name and value}
                if _is_after(mine, step):
                    break
                self._rows.append(mine)
            self._columns = list(reader.fieldnames or [])

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Not in the table: they are in the run's configs."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: Optional[int] = None) -> None:
        row = {name: str(float(value)) for name, value in metrics.items()}
        row["step"] = str(len(self._rows) if step is None else step)
        if "epoch" in row:
            row["epoch"] = str(int(metrics["epoch"]))
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns, self._written = sorted([*self._columns, *new]), None
        self._rows.append(row)
        self._kept_back += 1
        if self._kept_back >= self.rows_kept_back:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write what is not in the file yet.

        Raises:
            OSError: it cannot be written; with the file's name.
        """
        if self._written == len(self._rows) or not self._columns:
            return
        try:
            if self._written is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.file, self._format(self._rows, header=True), overwrite=True)
            else:
                with self.file.open("ab") as stream:
                    stream.write(self._format(self._rows[self._written :], header=False))
        except OSError as error:
            raise OSError(f"the table {self.file} cannot be written: {error}") from error
        self._written, self._kept_back = len(self._rows), 0

    def finalize(self, status: str) -> None:
        self.save()

    def _format(self, rows: List[Dict[str, str]], header: bool) -> bytes:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue().encode("utf-8")


def _is_after(row: Mapping[str, str], step: int) -> bool:
    """Whether a row was logged after so many steps. Lightning numbers batches of validation by themselves."""
    place = float(row.get("step", "nan"))
    if place < step or all(name.endswith("_step") for name in row if name not in ("epoch", "step")):
        return False
    return place > step or not any(AT_THE_STEP in name for name in row)
