"""Checks that the inner loops share."""

from __future__ import annotations


def check_loop(lr: float, steps: int) -> None:
    """Refuses a learning rate that is not positive and a negative number of steps.

    Raises:
        ValueError: in either case.
    """
    if not lr > 0:
        raise ValueError(f"the inner learning rate must be positive, got {lr}.")
    if steps < 0:
        raise ValueError(f"the number of inner steps must not be negative, got {steps}.")
