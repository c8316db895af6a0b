"""Lines about the progress of a phase, where there is no terminal."""

from __future__ import annotations

import time

import pytest

from fastmeta.train.progress import Progress, duration


def test_a_line_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress("training", 12, 2, announce=True) as progress:
        for _ in range(10):
            now += 3
            progress.show(loss="0.5")
            progress.advance()
    assert capsys.readouterr().err.splitlines() == [
        "training: 10 steps",
        "training: 4 of 12 steps, loss 0.5, 24 s left",
        "training: 6 of 12 steps, loss 0.5, 18 s left",
        "training: 8 of 12 steps, loss 0.5, 12 s left",
        "training: 10 of 12 steps, loss 0.5, 6 s left",
    ]


def test_a_short_phase_and_a_quiet_one_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("validation", 4, unit="task") as progress:
        progress.reach(2)
        progress.reach(4)
    with Progress("test", 4, unit="task", quiet=True, announce=True) as progress:
        progress.say("something")
    assert capsys.readouterr().err == ""


def test_durations() -> None:
    assert [duration(s) for s in (41.6, 150, 9000)] == ["42 s", "2 min", "2.5 h"]
