"""A progress bar that costs no host sync of its own."""

from __future__ import annotations

import sys
from types import TracebackType

from fastmeta.train.errors import require


class Progress:
    """A bar of meta-steps on stderr, if that is a terminal; lines of text in any case.

    Args:
        total: meta-steps of the run.
        done: meta-steps taken before.
        quiet: whether it says nothing.

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
        """One meta-step more."""
        self._bar.update()

    def show(self, **values: str) -> None:
        """The values beside the bar from now on."""
        self._bar.set_postfix(values, refresh=False)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if not self._quiet:
            self._bar.write(text, file=sys.stderr)
