"""Interleaved timing, so that a change of the machine's speed affects all candidates alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

from fastmeta.train.progress import Progress

Key = TypeVar("Key", bound=Hashable)

_ROUNDS = 15


def medians(
    runs: Mapping[Key, Callable[[], object]],
    device: torch.device,
    rounds: int = _ROUNDS,
    *,
    what: str = "",
    quiet: bool = True,
) -> dict[Key, float]:
    """Median seconds of each run over `rounds` rounds, after a warm-up round.

    Args:
        runs: what to time; all of them run in every round.
        device: to synchronize after each run.
        rounds: number of rounds.
        what: label of the progress.
        quiet: whether to show no progress.
    """
    seen: dict[Key, list[float]] = {key: [] for key in runs}
    with Progress(what, (rounds + 1) * len(runs), unit="call", quiet=quiet) as progress:
        for key, run in [*runs.items()] * (rounds + 1):
            begin = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.get_device_module(device).synchronize(device)
            seen[key].append(time.perf_counter() - begin)
            progress.advance()
    return {key: statistics.median(times[1:]) for key, times in seen.items()}
