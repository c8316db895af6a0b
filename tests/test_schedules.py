"""Named schedules."""

from __future__ import annotations

import math

import pytest

from fastmeta.schedules import schedule

VALUES = {
    "constant": [(0, 1.0), (10**6, 1.0)],
    "warmup:4": [(0, 0.25), (3, 1.0), (99, 1.0)],
    "linear:10": [(0, 1.0), (5, 0.5), (10, 0.0), (99, 0.0)],
    "cosine:10": [(0, 1.0), (5, 0.5), (10, 0.0), (99, 0.0)],
    "step:3:0.1": [(0, 1.0), (2, 1.0), (3, 0.1), (6, 0.01)],
    "late:5": [(4, 0.0), (5, 1.0)],
    "until:5": [(4, 1.0), (5, 0.0)],
}


@pytest.mark.parametrize("spec", VALUES)
def test_values(spec: str) -> None:
    factor = schedule(spec)
    for step, value in VALUES[spec]:
        assert math.isclose(factor(step), value, abs_tol=1e-15)


@pytest.mark.parametrize(
    "spec",
    ["", "cosine", "constant:3", "cosine:a", "cosine:0", "cosine:nan", "step:3", "sawtooth:3"],
)
def test_invalid_schedules_are_named(spec: str) -> None:
    with pytest.raises(ValueError, match=f"schedule '{spec}'"):
        schedule(spec)
