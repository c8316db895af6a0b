"""Progress of a phase of a run, without host synchronization."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, ClassVar

from fastmeta.train.errors import require

_EVERY = 4.0  # seconds between lines where there is no terminal
_TICK = 0.5  # seconds between looks at the clock


class Progress:
    """A bar on stderr if that is a terminal, else a line every few seconds.

    A thread keeps both alive while a single unit takes long; of nested phases, the innermost one
    speaks.

    Args:
        what: what is computed, such as `"training"`.
        total: number of units; `None` if it is not known.
        done: units that are done already.
        unit: `"step"` or `"task"`.
        quiet: whether nothing is printed.
        announce: whether to print a line at once where there is no terminal.

    Raises:
        MissingPackageError: if tqdm is missing and there is a terminal.
    """

    _active: ClassVar[list[Progress]] = []
    _spoke: ClassVar[float] = time.monotonic()  # when any phase printed last

    def __init__(
        self,
        what: str,
        total: int | None = None,
        done: int = 0,
        *,
        unit: str = "step",
        quiet: bool = False,
        announce: bool = False,
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._first = self._done = done
        self._quiet, self._announce = quiet, announce
        self._values: dict[str, str] = {}
        self._bar: Any = None
        self._thread = threading.Thread(target=self._keep_alive, daemon=True)
        self._ended = threading.Event()

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._quiet:
            return self
        if sys.stderr.isatty():
            self._bar = self._new_bar()
        elif self._announce:
            left = None if self._total is None else self._total - self._done
            self.say(self._what if left is None else f"{self._what}: {left} {self._unit}s")
        self._active.append(self)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._quiet:
            return
        self._ended.set()
        self._thread.join()
        self._active.remove(self)
        if self._bar is not None:
            self._bar.close()

    def _new_bar(self) -> Any:
        require("tqdm", "The progress bar")
        from tqdm import tqdm

        return tqdm(
            total=self._total,
            initial=self._done,
            desc=self._what,
            unit=self._unit,
            bar_format="{desc}: {elapsed}" if self._total is None else None,
            file=sys.stderr,
            mininterval=0.5,
            leave=self._unit == "step" and self._total is not None,
        )

    def advance(self, units: int = 1) -> None:
        """Counts units that are done."""
        self._done += units
        if self._bar is not None:
            self._bar.update(units)

    def reach(self, done: int, total: int | None = None) -> None:
        """Sets the number of units that are done; see [`fastmeta.evaluate`][]."""
        self.advance(done - self._done)

    def show(self, **values: str) -> None:
        """Sets the values that are shown beside the progress."""
        self._values = values
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        Progress._spoke = time.monotonic()
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def _keep_alive(self) -> None:
        while not self._ended.wait(_TICK):
            now = time.monotonic()
            if self._active[-1] is not self or now - self._spoke < _EVERY:
                continue
            if self._bar is None:
                self.say(self._line(now - self._began))
            else:
                Progress._spoke = now
                self._bar.refresh()

    def _line(self, elapsed: float) -> str:
        done = self._done - self._first
        of = "" if self._total is None else f" of {self._total}"
        parts = [f"{self._done}{of} {self._unit}s"] if of or done else []
        parts += [f"{name} {value}" for name, value in self._values.items()]
        if self._total is not None and done:
            parts.append(f"{duration(elapsed * (self._total - self._done) / done)} left")
        else:
            parts.append(f"{duration(elapsed)} so far")
        return f"{self._what}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """A duration to read, such as `"42 s"` or `"3 min"`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
