"""Interleaved timing, so that a change of the machine's speed affects all candidates alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)

_ROUNDS = 15


def medians(
    runs: Mapping[Key, Callable[[], object]], device: torch.device, rounds: int = _ROUNDS
) -> dict[Key, float]:
    """Median seconds of each run over `rounds` rounds, after a warm-up round.

    Args:
        runs: what to time; all of them run in every round.
        device: to synchronize after each run.
        rounds: number of rounds.
    """
    seen: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 1):
        for key, run in runs.items():
            begin = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.get_device_module(device).synchronize(device)
            seen[key].append(time.perf_counter() - begin)
    return {key: statistics.median(times[1:]) for key, times in seen.items()}
