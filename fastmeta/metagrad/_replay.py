"""Evaluating a support loss without a trace, also once more exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmeta.adaptation import LossFn
from fastmeta.functional import Buffers
from fastmeta.inner_step import at_step, current_step
from fastmeta.metagrad.base import TaskLosses


@dataclass(frozen=True)
class _Moment:
    """What a forward pass depends on besides parameters and data."""

    cpu: Tensor
    device: Tensor | None
    buffers: Buffers
    step: int | None


@contextmanager
def untraced(losses: TaskLosses, device: torch.device) -> Iterator[None]:
    """Afterwards random number generators and the losses's buffers are as before.

    Args:
        losses: the task.
        device: the parameters' device, whose generator is watched beside the CPU's.
    """
    before = dict(losses.buffers)
    losses.buffers.update(_copies(before))
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        try:
            yield
        finally:
            losses.buffers.update(before)


class Replay:
    """The support loss of an losses; each evaluation can be repeated later without a trace.

    A repetition draws the same random numbers (dropout masks), begins with the same buffers and is
    for the same inner step. Afterwards generators and buffers are as if it had not been.

    Args:
        losses: the task.
        device: see :func:`untraced`.
    """

    def __init__(self, losses: TaskLosses, device: torch.device) -> None:
        self._losses = losses
        self._device = device
        self._moments: list[_Moment] = []

    def loss(self, params: Sequence[Tensor]) -> Tensor:
        """The support loss, evaluated for the first time."""
        state = None
        if self._device.type != "cpu":
            state = torch.get_device_module(self._device).get_rng_state(self._device)
        buffers = _copies(self._losses.buffers)
        self._moments.append(_Moment(torch.get_rng_state(), state, buffers, current_step()))
        return self._losses.support(params)[0]

    def forget(self) -> None:
        """Forgets the last evaluation."""
        self._moments.pop()

    @contextmanager
    def last(self) -> Iterator[LossFn]:
        """The loss to repeat the last evaluation with, in this context; then forgets it."""
        moment = self._moments.pop()
        with untraced(self._losses, self._device), at_step(moment.step):
            yield lambda params: self._repeat(moment, params)

    def _repeat(self, moment: _Moment, params: Sequence[Tensor]) -> Tensor:
        torch.set_rng_state(moment.cpu)
        if moment.device is not None:
            torch.get_device_module(self._device).set_rng_state(moment.device, self._device)
        self._losses.buffers.update(_copies(moment.buffers))
        return self._losses.support(params)[0]


def _copies(buffers: Buffers) -> Buffers:
    return {name: buffer.clone() for name, buffer in buffers.items()}
