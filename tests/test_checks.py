"""The checks of argument values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastmeta import _checks as checks

NO_NUMBERS = ["abc", "1", None, True, math.nan, math.inf, -math.inf, 10**400, [1.0], torch.ones(())]
ACCEPTED = [
    (checks.check_number, -0.5),
    (checks.check_positive, np.float32(0.5)),
    (checks.check_positive, 3),
    (checks.check_nonnegative, 0),
    (lambda n, v: checks.check_in_range(n, v, 0, 1), 0),
    (lambda n, v: checks.check_in_range(n, v, 0, 1, closed=True), 1),
    (lambda n, v: checks.check_integer(n, v, 0), np.int64(0)),
    (checks.check_bool, True),
    (lambda n, v: checks.check_choice(n, v, ("one", "two")), "one"),
    (checks.check_interval, [1, 1]),
]
REFUSED = [
    *[(checks.check_number, v, "a finite number") for v in NO_NUMBERS],
    *[(checks.check_positive, v, "a positive finite number") for v in [*NO_NUMBERS, 0, -1]],
    *[(checks.check_nonnegative, v, "a finite number of at least 0") for v in [*NO_NUMBERS, -1]],
    *[
        (lambda n, v: checks.check_in_range(n, v, 0, 1), v, r"a number in \[0, 1\)")
        for v in [*NO_NUMBERS, 1, -0.1]
    ],
    *[
        (lambda n, v: checks.check_integer(n, v, 1), v, "an integer of at least 1")
        for v in [*NO_NUMBERS[:-3], 1.0, 0]
    ],
    (checks.check_bool, 1, "true or false"),
    *[(checks.check_interval, v, "two finite numbers") for v in [3, "ab", [1], [2, 1], [0, "b"]]],
]


@pytest.mark.parametrize(("check", "value"), ACCEPTED)
def test_valid_values_pass(check, value) -> None:
    check("x", value)


@pytest.mark.parametrize(("check", "value", "expected"), REFUSED)
def test_invalid_values_are_refused(check, value, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"^x must be {expected}.*[,;] got "):
        check("x", value)


def test_the_nearest_choice_is_suggested() -> None:
    with pytest.raises(
        ValueError, match=r"x must be one of one, two; got 'twoo'\. Did you mean 'two'"
    ):
        checks.check_choice("x", "twoo", ("one", "two"))
    with pytest.raises(ValueError, match="got 3"):
        checks.check_choice("x", 3, ("one", "two"))
