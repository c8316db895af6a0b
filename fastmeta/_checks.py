"""Checks of argument values, with one form of message: `NAME must be ..., got ...`.

They look at Python numbers alone and never at a tensor's elements, so none waits for a device.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any


def is_number(value: object) -> bool:
    """Whether `value` is a finite number of Python or NumPy; `True` and `False` are not."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def is_integer(value: object) -> bool:
    """Whether `value` is an integer of Python or NumPy; `True` and `False` are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_number(name: str, value: Any) -> None:
    """Refuses anything but a finite number.

    Args:
        name: of the argument, for the message; likewise below.
        value: of the argument.

    Raises:
        ValueError: in that case.
    """
    _require(is_number(value), name, "a finite number", value)


def check_positive(name: str, value: Any) -> None:
    """Refuses anything but a positive finite number; raises as `check_number`."""
    _require(is_number(value) and value > 0, name, "a positive finite number", value)


def check_nonnegative(name: str, value: Any) -> None:
    """Refuses anything but a finite number of at least 0; raises as `check_number`."""
    _require(is_number(value) and value >= 0, name, "a finite number of at least 0", value)


def check_in_range(name: str, value: Any, low: float, high: float, *, closed: bool = False) -> None:
    """Refuses a number outside `[low, high)`, or `[low, high]` if `closed`.

    Raises:
        ValueError: in that case, or if `value` is not a number.
    """
    inside = is_number(value) and low <= value and (value <= high if closed else value < high)
    _require(inside, name, f"a number in [{low}, {high}{']' if closed else ')'}", value)


def check_integer(name: str, value: Any, minimum: int) -> None:
    """Refuses anything but an integer of at least `minimum`; raises as `check_number`."""
    _require(
        is_integer(value) and value >= minimum, name, f"an integer of at least {minimum}", value
    )


def check_bool(name: str, value: Any) -> None:
    """Refuses anything but `True` and `False`; raises as `check_number`."""
    _require(isinstance(value, bool), name, "true or false", value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuses what is not one of `choices`, and names the nearest one.

    Raises:
        ValueError: in that case.
    """
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(choices)}; got {value!r}."
            f"{did_you_mean(value, choices)}"
        )


def check_interval(name: str, value: Any) -> None:
    """Refuses anything but two finite numbers, the lower end first; raises as above."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
    _require(
        pair and value[0] <= value[1], name, "two finite numbers, the smaller one first", value
    )


def did_you_mean(name: object, known: Collection[str]) -> str:
    """` Did you mean 'x'?` for the nearest known name, or nothing."""
    nearest = get_close_matches(name, known, n=1) if isinstance(name, str) else []
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def _require(valid: bool, name: str, expected: str, value: object) -> None:
    if not valid:
        raise ValueError(f"{name} must be {expected}, got {value!r}.")
