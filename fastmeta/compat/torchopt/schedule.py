"""Schedules: functions of the number of steps taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fastmeta._checks import check_integer

__all__ = ["exponential_decay", "linear_schedule", "polynomial_schedule"]

Schedule = Callable[[Any], Any]


def polynomial_schedule(
    init_value: Any,
    end_value: Any,
    power: float,
    transition_steps: int,
    transition_begin: int = 0,
) -> Schedule:
    """From one value to another by a polynomial of the number of steps.

    Args:
        init_value: the first value.
        end_value: the last one.
        power: of the polynomial.
        transition_steps: number of steps from the first to the last.
        transition_begin: number of steps before.

    Raises:
        ValueError: if `transition_steps` is below 1 or `transition_begin` negative.
    """
    check_integer("transition_steps", transition_steps, 1)
    check_integer("transition_begin", transition_begin, 0)

    def schedule(count: Any) -> Any:
        done = torch.as_tensor(count - transition_begin).clamp(0, transition_steps)
        left = 1.0 - done / transition_steps
        return (init_value - end_value) * left**power + end_value

    return schedule


def linear_schedule(
    init_value: Any, end_value: Any, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """`polynomial_schedule` with power 1."""
    return polynomial_schedule(init_value, end_value, 1, transition_steps, transition_begin)


def exponential_decay(
    init_value: Any,
    decay_rate: float,
    transition_begin: int = 0,
    transition_steps: int = 1,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """`init_value * decay_rate ** (steps / transition_steps)`.

    Args:
        init_value: the first value.
        decay_rate: factor of `transition_steps` steps.
        transition_begin: number of steps before.
        transition_steps: see `decay_rate`.
        staircase: whether it changes after every `transition_steps` steps only.
        end_value: a bound, from below if `decay_rate < 1`, else from above.

    Raises:
        ValueError: if `transition_steps` is below 1 or `transition_begin` negative.
    """
    check_integer("transition_steps", transition_steps, 1)
    check_integer("transition_begin", transition_begin, 0)

    def schedule(count: Any) -> Any:
        value = init_value
        if count > transition_begin:
            done = (count - transition_begin) / transition_steps
            value = init_value * decay_rate ** (math.floor(done) if staircase else done)
        if end_value is None:
            return value
        return max(value, end_value) if decay_rate < 1 else min(value, end_value)

    return schedule
