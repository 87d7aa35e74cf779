"""The log of a run: a line for every batch, in a form that any table or plot reads."""

import csv
from pathlib import Path
from types import TracebackType
from typing import Self

_COLUMNS = ("step", "epoch", "learning_rate", "loss")


class Log:
    """A file of comma-separated values. A run that goes on writes behind where its state ends."""

    def __init__(self, path: Path | None, epoch: int) -> None:
        """Open it.

        Args:
            path: the file; without one nothing is written.
            epoch: the last that is done; what was logged of later ones is done again.
        """
        self._file = None
        if path is None:
            return
        kept: list[list[str]] = []
        if epoch and path.is_file():
            with path.open(newline="", errors="replace") as before:
                whole = [row for row in csv.reader(before) if len(row) == len(_COLUMNS)]
            kept = [row for row in whole if row[1].isdecimal() and int(row[1]) <= epoch]
        self._file = path.open("w", newline="", buffering=1)  # a line at a time
        self._writer = csv.writer(self._file)
        self._writer.writerows([_COLUMNS, *kept])

    def add(self, step: int, epoch: int, learning_rate: float, loss: float) -> None:
        """Log a batch: optimizer steps so far, and its loss for a pair."""
        if self._file:
            self._writer.writerow([step, epoch, f"{learning_rate:.3g}", f"{loss:.5f}"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()
