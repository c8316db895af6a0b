"""The steps of an inner loop, summed while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.gradients import FlatLayout


class Path:
    """The sum of `theta_k - theta_{k+1}` over the points of an inner loop, visited in order.

    Args:
        unit: whether each step is divided by its length, over all parameters of a task together.
        params: the initialisation, of one task or `T` stacked ones.
        layout: of the parameters of one task.
    """

    def __init__(self, unit: bool, params: Sequence[Tensor], layout: FlatLayout) -> None:
        self._unit = unit
        self._stacked = params[0].dim() - len(layout.shapes[0])
        self._last = [p.detach() for p in params]
        self.total = [torch.zeros_like(p) for p in self._last]

    @torch.no_grad()
    def visit(self, point: Sequence[Tensor]) -> None:
        """Adds the step from the last point, at first the initialisation, to this one."""
        now = [p.detach() for p in point]
        steps = [a - b for a, b in zip(self._last, now, strict=True)]
        if self._unit:
            steps = self._units(steps)
        self.total = [t + s for t, s in zip(self.total, steps, strict=True)]
        self._last = now

    def _units(self, steps: list[Tensor]) -> list[Tensor]:
        lead = steps[0].shape[: self._stacked]
        squares = [s.square().reshape(*lead, -1).sum(-1) for s in steps]
        length = torch.stack(squares).sum(0).sqrt()
        # A step of length zero has no direction.
        factor = torch.where(length > 0, 1 / length, 0)
        return [s * factor.reshape(lead + (1,) * (s.dim() - len(lead))) for s in steps]
