"""Processes of contenders: answers, and why one fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks._common.process import ContenderError, ContenderProcess


@pytest.fixture
def start(tmp_path: Path):
    """Starts Python code as a contender."""
    started = []

    def run(code: str, limit: int | None = None) -> ContenderProcess:
        command = [sys.executable, "-S", "-c", f"input()\n{code}"]
        started.append(ContenderProcess("name", command, tmp_path, limit))
        return started[-1]

    yield run
    for contender in started:
        contender.stop()


def test_requests_are_answered(start) -> None:
    contender = start("print('ready', flush=True)\nwhile 1: print(2 * len(input()), flush=True)")
    contender.begin()
    assert contender.run("memory") == 12
    assert contender.run() == 0


@pytest.mark.parametrize(
    ("code", "limit", "reason"),
    [
        ("print('ValueError: refused')", None, "ValueError: refused"),
        ("bytearray(10**9)", 2 * 10**8, r"out of memory \(limit 0.2 GB\)"),
        ("import os; os.kill(os.getpid(), 9)", None, "killed by signal 9"),
        ("import sys; sys.exit('words')", None, "words"),
    ],
)
def test_reasons(start, code: str, limit: int | None, reason: str) -> None:
    with pytest.raises(ContenderError, match=reason):
        start(code, limit).begin()


def test_a_process_that_dies_later(start) -> None:
    contender = start("print('ready', flush=True); input(); raise MemoryError")
    contender.begin()
    with pytest.raises(ContenderError, match="out of memory"):
        contender.run()
