"""Progress of a phase of a run, without host synchronization."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from fastmeta.train.errors import require

_EVERY = 4.0  # seconds between lines where there is no terminal


class Progress:
    """A bar on stderr if that is a terminal, else a line every few seconds.

    Args:
        what: what is computed, such as `"training"`.
        total: number of units.
        done: units that are done already.
        unit: `"step"` or `"task"`.
        quiet: whether nothing is printed.
        announce: whether to print a line at once where there is no terminal.

    Raises:
        MissingPackageError: if tqdm is missing.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: int = 0,
        *,
        unit: str = "step",
        quiet: bool = False,
        announce: bool = False,
    ) -> None:
        require("tqdm", "The progress bar")
        from tqdm import tqdm

        self._what, self._total, self._unit = what, total, unit
        self._first = self._done = done
        self._quiet = quiet
        self._values: dict[str, str] = {}
        # disable=None: no bar unless the output is a terminal.
        self._bar: Any = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit,
            disable=quiet or None,
            file=sys.stderr,
            mininterval=0.5,
            leave=unit == "step",
        )
        self._began = self._printed = time.monotonic()
        if announce and self._bar.disable:
            self.say(f"{what}: {total - done} {unit}s")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, units: int = 1) -> None:
        """Counts units that are done."""
        self._done += units
        self._bar.update(units)
        now = time.monotonic()
        if self._bar.disable and now - self._printed >= _EVERY and self._done < self._total:
            self._printed = now
            self.say(self._line(now - self._began))

    def reach(self, done: int, total: int | None = None) -> None:
        """Sets the number of units that are done; see [`fastmeta.evaluate`][]."""
        self.advance(done - self._done)

    def show(self, **values: str) -> None:
        """Sets the values that are shown beside the progress."""
        self._values = values
        self._bar.set_postfix(values, refresh=False)

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._printed = time.monotonic()
        if not self._quiet:
            self._bar.write(text, file=sys.stderr)

    def _line(self, elapsed: float) -> str:
        left = elapsed * (self._total - self._done) / (self._done - self._first)
        parts = [f"{name} {value}" for name, value in self._values.items()]
        state = f"{self._done} of {self._total} {self._unit}s"
        return f"{self._what}: {', '.join([state, *parts, f'{duration(left)} left'])}"


def duration(seconds: float) -> str:
    """A duration to read, such as `"42 s"` or `"3 min"`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
