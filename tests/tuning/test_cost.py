"""The cost model against its formula, with a clock that follows it exactly."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch

from fastmeta.tuning import cost, measure_cost, timing

CPU = torch.device("cpu")


def taken(
    runs: Mapping[Any, Callable[[], float]], device: torch.device, **_: Any
) -> dict[Any, float]:
    """The time that each run reports."""
    return {key: run() for key, run in runs.items()}


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_predictions_are_the_formula(layers: int, steps: int) -> None:
    forward, inputs, weights = ([random.random() for _ in range(layers)] for _ in range(3))

    def seconds(pattern: str, count: int) -> float:
        lowest = pattern.index("1")
        step = sum(forward[lowest:]) + sum(inputs[lowest + 1 :])
        step += sum(w for w, bit in zip(weights, pattern, strict=True) if bit == "1")
        return sum(forward[:lowest]) + count * step

    with mock.patch.object(cost, "medians", taken):
        model = measure_cost(seconds, layers, steps, CPU)
    for bits in list(product("01", repeat=layers))[1:]:
        pattern = "".join(bits)
        for count in (1, steps, 10):
            assert model.predict(pattern, count) == pytest.approx(seconds(pattern, count))


def test_medians_of_interleaved_runs_after_a_warm_up() -> None:
    now, order = 0.0, []
    durations = {"a": iter([100.0, 1.0, 5.0, 2.0]), "b": iter([100.0, 7.0, 7.0, 9.0])}

    def run(name: str) -> None:
        nonlocal now
        order.append(name)
        now += next(durations[name])

    with mock.patch.object(time, "perf_counter", side_effect=lambda: now):
        found = timing.medians({n: lambda n=n: run(n) for n in durations}, CPU, rounds=3)
    assert found == {"a": 2.0, "b": 7.0}
    assert order == ["a", "b"] * 4
