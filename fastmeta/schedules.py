"""Schedules of a rate over meta-steps, specified by a string, as in a configuration file."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def _number(text: str, spec: str, minimum: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not minimum <= value < math.inf:
        raise ValueError(
            f"schedule {spec!r}: expected a finite number of at least {minimum}, got {text!r}."
        )
    return value


def _warmup(steps: float) -> Schedule:
    return lambda t: min(1.0, (t + 1) / steps)


def _linear(steps: float) -> Schedule:
    return lambda t: max(0.0, 1.0 - t / steps)


def _cosine(steps: float) -> Schedule:
    return lambda t: 0.5 * (1.0 + math.cos(math.pi * min(1.0, t / steps)))


def _late(start: float) -> Schedule:
    return lambda t: float(t >= start)


def _until(stop: float) -> Schedule:
    return lambda t: float(t < stop)


def _step(every: float, factor: float) -> Schedule:
    return lambda t: factor ** (t // every)


_BUILDERS: dict[str, tuple[Callable[..., Schedule], tuple[float, ...]]] = {
    "warmup": (_warmup, (1,)),
    "linear": (_linear, (1,)),
    "cosine": (_cosine, (1,)),
    "late": (_late, (0,)),
    "until": (_until, (0,)),
    "step": (_step, (1, 0)),
}


def schedule(spec: str) -> Schedule:
    """Builds a schedule: the factor of a rate as a function of the meta-step (0, 1, 2, ...).

    Args:
        spec: `"constant"`; `"warmup:N"` rises to 1 over N steps; `"linear:N"` decays to 0
            over N steps; `"cosine:N"` is `(1 + cos(pi t / N)) / 2`; `"step:N:F"` multiplies
            by F every N steps; `"late:N"` is 0 before step N; `"until:N"` is 0 from step N on.

    Raises:
        ValueError: if `spec` is not one of these.
    """
    if not isinstance(spec, str):
        raise ValueError(f"schedule must be a string such as 'cosine:1000', got {spec!r}.")
    name, *texts = spec.split(":")
    if name == "constant" and not texts:
        return lambda t: 1.0
    builder, minimums = _BUILDERS.get(name, (None, ()))
    if builder is None or len(texts) != len(minimums):
        raise ValueError(
            f"unknown schedule {spec!r}; expected constant, warmup:N, linear:N, cosine:N, "
            "step:N:F, late:N or until:N."
        )
    return builder(*(_number(text, spec, low) for text, low in zip(texts, minimums, strict=True)))
