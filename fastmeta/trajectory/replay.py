"""Re-evaluation of a loss with the same random numbers and buffers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmeta.adaptation import LossFn
from fastmeta.functional import Buffers
from fastmeta.functional.rng import RngState, preserve_rng
from fastmeta.inner_step import at_step, current_step


@dataclass(frozen=True)
class Snapshot:
    """All that a forward pass depends on besides parameters and data."""

    rng: RngState
    buffers: Buffers


@contextmanager
def preserve_state(buffers: Buffers, device: torch.device) -> Iterator[None]:
    """Restores random number generators and buffers on exit.

    Args:
        buffers: by name; entries are replaced.
        device: the parameters' device, whose generator is restored as well as the CPU's.
    """
    before = dict(buffers)
    buffers.update(_clone(before))
    with preserve_rng(device):
        try:
            yield
        finally:
            buffers.update(before)


class Replay:
    """The loss of the inner steps, whose evaluations can be repeated later.

    A repetition draws the same random numbers (dropout masks), starts from the same buffers and
    runs at the same inner step. It leaves generators and buffers unchanged.

    Args:
        loss: a function of the parameters, evaluated inside
            [`at_step`][fastmeta.inner_step.at_step].
        buffers: what the loss reads and updates besides, by name; replacing an entry takes effect.
        device: see `preserve_state`.
        steps: number of first inner steps that may be repeated; all by default.
    """

    def __init__(
        self, loss: LossFn, buffers: Buffers, device: torch.device, steps: int = sys.maxsize
    ) -> None:
        self.plain = loss
        self._buffers = buffers
        self._device = device
        self._steps = steps
        self._snapshots: dict[int, Snapshot] = {}

    def snapshot(self) -> Snapshot:
        """The present state."""
        return Snapshot(RngState.now(self._device), _clone(self._buffers))

    def loss(self, params: Sequence[Tensor]) -> Tensor:
        """The loss in an inner step that may be repeated."""
        number = current_step()
        assert number is not None
        if number < self._steps:
            self.note(number)
        return self.plain(params)

    def note(self, number: int) -> None:
        """Makes it possible to repeat an inner step that begins in the present state."""
        self._snapshots[number] = self.snapshot()

    def before(self, number: int) -> Snapshot:
        """The state before an inner step that may be repeated."""
        return self._snapshots[number]

    def drop(self, number: int) -> None:
        """Forgets an inner step that is not repeated."""
        self._snapshots.pop(number, None)

    @contextmanager
    def returned_to(self, snapshot: Snapshot) -> Iterator[None]:
        """A context that begins in an earlier state and ends in the present one."""
        with preserve_state(self._buffers, self._device):
            self._set(snapshot)
            yield

    @contextmanager
    def repeat(self, number: int) -> Iterator[LossFn]:
        """A context with the loss that repeats an inner step, which is possible once.

        It begins in the state before the step.
        """
        snapshot = self._snapshots.pop(number)
        with preserve_state(self._buffers, self._device), at_step(number):
            self._set(snapshot)
            yield self._from(snapshot, self.plain)

    def from_here(self, loss: LossFn) -> LossFn:
        """The loss, each evaluation of which begins in the present state."""
        return self._from(self.snapshot(), loss)

    def _from(self, snapshot: Snapshot, loss: LossFn) -> LossFn:
        def again(params: Sequence[Tensor]) -> Tensor:
            self._set(snapshot)
            return loss(params)

        return again

    def _set(self, snapshot: Snapshot) -> None:
        snapshot.rng.set()
        self._buffers.update(_clone(snapshot.buffers))


def _clone(buffers: Buffers) -> Buffers:
    return {name: buffer.clone() for name, buffer in buffers.items()}
