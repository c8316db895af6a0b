"""Memory that autograd saves for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Meter:
    """Bytes of the tensors saved by autograd, now and at the peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        # Detached, as in autograd: a saved output would keep its node alive.
        return torch.autograd.graph.saved_tensors_hooks(
            lambda t: SavedTensor(self, t.detach()), lambda h: h.tensor
        )


class SavedTensor:
    def __init__(self, meter: Meter, tensor: Tensor) -> None:
        self.meter, self.tensor = meter, tensor
        meter.now += tensor.nbytes
        meter.peak = max(meter.peak, meter.now)

    def __del__(self) -> None:
        self.meter.now -= self.tensor.nbytes


def peak_saved_bytes(call: Callable[[], object]) -> int:
    """Peak bytes saved by autograd during a call, after which none may be left."""
    meter = Meter()
    with meter.hooks():
        call()
    assert meter.now == 0
    return meter.peak
