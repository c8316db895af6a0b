"""A contender in a process of its own, which answers requests (``benchmarks._common.serve``)."""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_OUT_OF_MEMORY = re.compile(
    r"allocate memory|out of memory|MemoryError|bad_alloc|RESOURCE_EXHAUSTED", re.I
)


class ContenderError(Exception):
    """A contender cannot run, and why."""


class ContenderProcess:
    """Process of a contender: ``PYTHON -m MODULE ARGUMENTS``.

    Args:
        name: of the contender.
        command: the interpreter, and the arguments of the process.
        folder: of its messages and its gradient.
        limit: bytes of memory that the process may allocate; unlimited by default.
    """

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, limit: int | None = None
    ) -> None:
        self.name = name
        self._limit = limit
        self._messages = (folder / f"{name}.txt").open("w+")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
        )
        if limit is not None:
            resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (limit, limit))

    def begin(self) -> None:
        """Computes the first meta-gradient, for which all is loaded since the process started.

        Raises:
            ContenderError: if there is none.
        """
        with suppress(BrokenPipeError):  # of a process that has failed, which says why
            self._send("")
        line = _open(self._process.stdout).readline().strip()
        if line != "ready":
            raise ContenderError(self._reason(line))

    def run(self, request: str = "") -> float:
        """Seconds of one meta-gradient, or the answer to another request.

        Raises:
            ContenderError: if the process dies.
        """
        try:
            self._send(request)
            return float(_open(self._process.stdout).readline())
        except (BrokenPipeError, ValueError):
            raise ContenderError(self._reason("")) from None

    def _send(self, request: str) -> None:
        stream = _open(self._process.stdin)
        stream.write(f"{request}\n")
        stream.flush()

    def _reason(self, line: str) -> str:
        """Why the process failed, from its output, its messages, or its exit status."""
        self._messages.seek(0)
        messages = self._messages.read()
        if _OUT_OF_MEMORY.search(line + messages):
            limit = "" if self._limit is None else f" (limit {self._limit / 1e9:.1f} GB)"
            return f"out of memory{limit}"
        if line:
            return line
        code = self._process.wait()
        return f"killed by signal {-code}" if code < 0 else (messages.strip() or "died")[-200:]

    def stop(self) -> None:
        """Kills the process."""
        self._messages.close()
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
