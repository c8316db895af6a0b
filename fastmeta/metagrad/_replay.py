"""Re-evaluation of a support loss with the same random numbers and buffers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmeta.adaptation import LossFn
from fastmeta.functional import Buffers
from fastmeta.functional._rng import RngState, preserve_rng
from fastmeta.inner_step import at_step, current_step
from fastmeta.metagrad.base import TaskLosses


@dataclass(frozen=True)
class _Snapshot:
    """All that a forward pass depends on besides parameters and data."""

    rng: RngState
    buffers: Buffers


@contextmanager
def preserve_state(losses: TaskLosses, device: torch.device) -> Iterator[None]:
    """Restores random number generators and the task's buffers on exit.

    Args:
        losses: the task.
        device: the parameters' device, whose generator is restored as well as the CPU's.
    """
    before = dict(losses.buffers)
    losses.buffers.update(_clone(before))
    with preserve_rng(device):
        try:
            yield
        finally:
            losses.buffers.update(before)


class Replay:
    """The support loss of a task, whose evaluations can be repeated later.

    A repetition draws the same random numbers (dropout masks), starts from the same buffers and
    runs at the same inner step. It leaves generators and buffers unchanged.

    Args:
        losses: the task.
        device: see `preserve_state`.
        steps: number of first inner steps that may be repeated; all by default.
    """

    def __init__(self, losses: TaskLosses, device: torch.device, steps: int = sys.maxsize) -> None:
        self._losses = losses
        self._device = device
        self._steps = steps
        self._snapshots: dict[int, _Snapshot] = {}

    def loss(self, params: Sequence[Tensor]) -> Tensor:
        """The support loss, evaluated for the first time, in an inner step."""
        number = current_step()
        assert number is not None
        if number < self._steps:
            rng = RngState.now(self._device)
            self._snapshots[number] = _Snapshot(rng, _clone(self._losses.buffers))
        return self._losses.support(params)[0]

    @contextmanager
    def repeat(self, number: int) -> Iterator[LossFn]:
        """A context with the loss that repeats an inner step, which is possible once."""
        snapshot = self._snapshots.pop(number)
        with preserve_state(self._losses, self._device), at_step(number):
            yield lambda params: self._repeat(snapshot, params)

    def _repeat(self, snapshot: _Snapshot, params: Sequence[Tensor]) -> Tensor:
        snapshot.rng.set()
        self._losses.buffers.update(_clone(snapshot.buffers))
        return self._losses.support(params)[0]


def _clone(buffers: Buffers) -> Buffers:
    return {name: buffer.clone() for name, buffer in buffers.items()}
