"""The log of a run: records in memory, as CSV and for TensorBoard."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from typing_extensions import override

from fastmeta.train._atomic_files import reporting_os_errors, write_atomic
from fastmeta.train.errors import require

CSV_NAME = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True)
class Record:
    """One row of the log; `None` is an empty cell.

    Attributes:
        step: meta-steps taken.
        split: `"train"`, a mean over the meta-steps since the last record, or `"val"`.
        score: accuracy or squared error on query sets, after adaptation.
        ci95: half the width of its 95 % interval.
        loss: on query sets, after adaptation.
        lr: learning rate of the outer optimizer.
        tasks_per_second: training speed since the last record.
        seconds: duration of the run so far.
        skipped: training tasks since the last record that are left out of score and loss.
    """

    step: int
    split: str
    score: float
    ci95: float | None = None
    loss: float | None = None
    lr: float | None = None
    tasks_per_second: float | None = None
    seconds: float | None = None
    skipped: int | None = None

    def to_list(self) -> list[Any]:
        """The values in order, for a checkpoint."""
        return list(astuple(self))


class Log(ABC):
    """A destination of records."""

    @abstractmethod
    def write(self, record: Record) -> None:
        """Writes a record."""

    @abstractmethod
    def close(self) -> None:
        """Closes the log."""


class CsvLog(Log):
    """`log.csv`, one row per record, flushed after each.

    The file starts with the records of `history`: a resumed run drops what was logged after its
    checkpoint, and an incomplete line left by a crash.

    Args:
        folder: of the run.
        metric: name of the score's column.
        history: records of the run so far.
    """

    def __init__(self, folder: Path, metric: str, history: Sequence[Record] = ()) -> None:
        self._path = path = folder / CSV_NAME
        names = [metric if f.name == "score" else f.name for f in fields(Record)]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([names, *(record.to_list() for record in history)])
        write_atomic(path, lambda file: file.write(text.getvalue().encode()))
        with reporting_os_errors(path):
            self._file = path.open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)

    @override
    def write(self, record: Record) -> None:
        with reporting_os_errors(self._path):
            self._rows.writerow(record.to_list())
            self._file.flush()

    @override
    def close(self) -> None:
        with reporting_os_errors(self._path):
            self._file.close()


class TensorBoardLog(Log):
    """Scalars such as `val/accuracy` in the folder `tensorboard`.

    Args:
        folder: of the run.
        metric: name of the score.
        start: meta-steps taken; records of later ones are hidden.

    Raises:
        MissingPackageError: if tensorboard is missing.
    """

    def __init__(self, folder: Path, metric: str, start: int = 0) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._metric = metric
        self._folder = folder / TENSORBOARD_FOLDER
        with reporting_os_errors(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=start + 1)

    @override
    def write(self, record: Record) -> None:
        scalars = {
            self._metric: record.score,
            "loss": record.loss,
            "lr": record.lr,
            "tasks_per_second": record.tasks_per_second,
            "skipped": record.skipped,
        }
        with reporting_os_errors(self._folder):
            for name, value in scalars.items():
                if value is not None:
                    self._writer.add_scalar(f"{record.split}/{name}", value, record.step)

    @override
    def close(self) -> None:
        with reporting_os_errors(self._folder):
            self._writer.close()


def require_tensorboard() -> None:
    """Checks that tensorboard is installed.

    Raises:
        MissingPackageError: if it is not.
    """
    require("tensorboard", "The log for TensorBoard", extra="tensorboard")


def open_logs(kind: str, folder: Path, metric: str, history: Sequence[Record]) -> list[Log]:
    """The logs of a run.

    Args:
        kind: `"csv"`, `"tensorboard"` or `"both"`.
        folder: of the run.
        metric: name of the score.
        history: records of the run so far.

    Raises:
        MissingPackageError: if tensorboard is needed and missing.
    """
    logs: list[Log] = []
    if kind in ("csv", "both"):
        logs.append(CsvLog(folder, metric, history))
    if kind in ("tensorboard", "both"):
        logs.append(TensorBoardLog(folder, metric, history[-1].step if history else 0))
    return logs
