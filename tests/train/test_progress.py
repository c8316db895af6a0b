"""Lines about the progress of a phase, and the bar of a terminal."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from fastmeta.train import progress as module
from fastmeta.train.progress import Progress, duration


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY", 0.1)
    monkeypatch.setattr(module, "_TICK", 0.01)


def wait_for(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed up to a line that matches, while nothing is counted."""
    printed, end = "", time.monotonic() + 20
    while not re.search(f"^{text}$", printed, re.M):
        assert time.monotonic() < end, printed
        time.sleep(0.01)
        printed += capsys.readouterr().err
    return printed


@pytest.mark.usefixtures("_impatient")
def test_lines_while_a_unit_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training", 12, 2, announce=True) as progress:
        assert capsys.readouterr().err == "training: 10 steps\n"
        wait_for("training: 2 of 12 steps, 0 s so far", capsys)
        progress.advance(5)
        progress.show(loss="0.5")
        wait_for(r"training: 7 of 12 steps, loss 0.5, \d+ s left", capsys)
        with Progress("validation") as inner:
            assert "training" not in wait_for("validation: 0 s so far", capsys)
            inner.advance()
            wait_for("validation: 1 steps, 0 s so far", capsys)
        wait_for(r"training: 7 of 12 .*", capsys)
    time.sleep(0.15)
    capsys.readouterr()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_impatient")
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("validation", 4, unit="task", announce=True) as progress:
        progress.reach(2)
        before, end = terminal.tell(), time.monotonic() + 20
        while terminal.tell() == before:  # the clock of the bar goes on
            assert time.monotonic() < end
            time.sleep(0.01)
        progress.say("a line")
    with Progress("loading"):
        pass
    shown = terminal.getvalue()
    assert "| 2/4 [" in shown
    assert "\ra line\n" in re.sub(" {2,}", "", shown)
    assert "loading: 00:00" in shown


def test_a_short_phase_and_a_quiet_one_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("validation", 4, unit="task") as progress:
        progress.reach(2)
        progress.reach(4)
    with Progress("test", 4, unit="task", quiet=True, announce=True) as progress:
        progress.say("something")
    assert capsys.readouterr().err == ""


def test_durations() -> None:
    assert [duration(s) for s in (41.6, 150, 9000)] == ["42 s", "2 min", "2.5 h"]
