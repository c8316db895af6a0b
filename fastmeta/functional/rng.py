"""The state of random number generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RngState:
    """The generators of the CPU and of one device, at one time.

    Attributes:
        device: whose generator is included, besides the CPU's.
        cpu: the CPU's state.
        own: that of `device`, if it is another one.
    """

    device: torch.device
    cpu: Tensor
    own: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RngState:
        """The present state."""
        own = None
        if device.type != "cpu":
            own = torch.get_device_module(device).get_rng_state(device)
        return cls(device, torch.get_rng_state(), own)

    def set(self) -> None:
        """Sets the generators to this state."""
        torch.set_rng_state(self.cpu)
        if self.own is not None:
            torch.get_device_module(self.device).set_rng_state(self.own, self.device)


@contextmanager
def preserve_rng(device: torch.device) -> Iterator[None]:
    """Restores the generators of the CPU and of `device` on exit."""
    before = RngState.now(device)
    try:
        yield
    finally:
        before.set()
