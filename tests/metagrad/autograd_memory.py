"""Memory that autograd saves for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Meter:
    """Bytes of the tensors saved by autograd, now and at the peak."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        # Detached, as autograd holds them: an output that its node saves would keep the node.
        return torch.autograd.graph.saved_tensors_hooks(
            lambda t: Held(self, t.detach()), lambda h: h.tensor
        )


class Held:
    def __init__(self, meter: Meter, tensor: Tensor) -> None:
        self.meter, self.tensor = meter, tensor
        meter.now += tensor.nbytes
        meter.most = max(meter.most, meter.now)

    def __del__(self) -> None:
        self.meter.now -= self.tensor.nbytes


def most_saved(call: Callable[[], object]) -> int:
    """Peak bytes saved by autograd during a call, after which none may be left."""
    meter = Meter()
    with meter.hooks():
        call()
    assert meter.now == 0
    return meter.most
