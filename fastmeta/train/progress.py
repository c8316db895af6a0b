"""Progress bar without host synchronization."""

from __future__ import annotations

import sys
from types import TracebackType

from fastmeta.train.errors import require


class Progress:
    """A bar of meta-steps on stderr, if that is a terminal, and lines of text.

    Args:
        total: meta-steps of the run.
        done: meta-steps already taken.
        quiet: whether nothing is printed.

    Raises:
        MissingPackageError: if tqdm is missing.
    """

    def __init__(self, total: int, done: int, *, quiet: bool = False) -> None:
        require("tqdm", "The progress bar")
        from tqdm import tqdm

        self._quiet = quiet
        # disable=None: no bar unless the output is a terminal.
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="step",
            disable=quiet or None,
            file=sys.stderr,
            mininterval=0.5,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self) -> None:
        """Advances the bar by one meta-step."""
        self._bar.update()

    def show(self, **values: str) -> None:
        """Sets the values that are shown next to the bar."""
        self._bar.set_postfix(values, refresh=False)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._quiet:
            self._bar.write(text, file=sys.stderr)
