"""Handling of tasks whose loss or gradient is NaN or infinite."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastmeta.distributed import Sharding
from fastmeta.engines import StepBuffers, StepResult

NonFinite = Literal["keep", "skip", "raise"]


class NonFiniteError(FloatingPointError):
    """A task's loss or gradient is not finite; the message names meta-step and task."""


class NonFiniteGuard:
    """Leaves non-finite tasks out of the meta-step, the module's buffers and the learner's state.

    A task is finite if its meta-gradient, its mean support gradient (if recorded) and its losses
    are. The others are left out: the meta-step is that of the meta-batch without them (up to the
    rounding of sums; PCGrad draws other orders), for every aggregation. The module's buffers are
    merged over the finite tasks. If no task is finite, or the combined meta-gradient is not finite
    nevertheless, the meta-gradient is zero, and all tasks of the meta-step count as skipped; an
    optimizer with momentum (such as Adam) still moves the parameters. If all tasks are finite, the
    result is unchanged (on a GPU up to rounding).

    There is no host sync before `check`.

    Args:
        policy: `"keep"` does nothing; `"skip"` leaves non-finite tasks out and counts them;
            `"raise"` also raises: on the CPU before the outer optimizer's step, else from
            `check`.
        sharding: of the tasks over ranks, each of which handles its own and counts all.

    Attributes:
        skipped: number of tasks left out so far; int64, on the device.
        finite: `(T,)`, bool: which tasks the last meta-step used; `None` before the first one
            and with `"keep"`.

    Raises:
        ValueError: if the policy is unknown.
    """

    def __init__(self, policy: NonFinite = "keep", sharding: Sharding | None = None) -> None:
        if policy not in get_args(NonFinite):
            raise ValueError(
                f"non_finite must be one of {', '.join(get_args(NonFinite))}; got {policy!r}."
            )
        self.policy = policy
        self._sharding = sharding
        self.skipped = torch.zeros((), dtype=torch.int64)
        self.finite: Tensor | None = None
        self._first: Tensor | None = None  # meta-step and task that were not finite first

    def mask_tasks(self, buffers: StepBuffers, result: StepResult) -> Tensor | None:
        """Zeroes the results of non-finite tasks, in place.

        Returns:
            `(T,)`, bool: which tasks are finite; `None` if all are known to be, or with
            `"keep"`.
        """
        if self.policy == "keep":
            return None
        finite = result.support_loss.isfinite() & result.query_loss.isfinite()
        filled = [b.filled for b in (buffers.outer, buffers.support) if b.count]
        for part in filled:
            finite &= _finite(part)
        self.finite = finite
        if _on_host(finite) and finite.all():
            # Ranks must agree on what they exchange, so with sharding all return a mask.
            return None if self._sharding is None else finite
        for part in filled:
            part.masked_fill_(~finite[:, None], 0)
        for parts in buffers.extras.values():
            parts[:] = [torch.where(f, p, 0) for f, p in zip(finite, parts, strict=True)]
        return finite

    def check_combined(self, flat: Tensor, step: int) -> None:
        """Zeroes a non-finite combined meta-gradient `(P,)`, and counts the skipped tasks.

        Raises:
            NonFiniteError: on the CPU, if the policy is `"raise"` and a task was not finite.
        """
        if self.finite is None:
            return
        finite = _finite(flat[None])
        flat.masked_fill_(~finite, 0)
        self.finite = self.finite & finite
        skipped = (~self.finite).sum()
        self.skipped = self.skipped + (
            skipped if self._sharding is None else self._sharding.sum(skipped)
        )
        if self.policy == "raise":
            self._remember_first(self.finite, step)

    def _remember_first(self, finite: Tensor, step: int) -> None:
        task = finite.int().argmin()  # the first that is not
        found = torch.stack([torch.full_like(task, step), task])
        found = torch.where(finite.all(), -1, found)
        first = self._first
        self._first = found if first is None else torch.where(first[0] < 0, found, first)
        if _on_host(finite):
            self.check()

    def check(self) -> None:
        """Waits for the device and raises the pending error, once.

        Raises:
            NonFiniteError: if the policy is `"raise"` and a task was not finite since the last
                call.
        """
        if self._first is None:
            return
        step, task = self._first.tolist()
        self._first = None
        if step >= 0:
            raise NonFiniteError(
                f"meta-step {step}: the loss or the gradient of task {task} of the meta-batch "
                "(counted from 0) is not finite. The parameters have not changed. Lower the "
                "learning rates, check the task's data, or train with non_finite='skip'."
            )

    def state_dict(self) -> dict[str, Any]:
        """The number of skipped tasks."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.skipped = state["skipped"].clone()


def _on_host(tensor: Tensor) -> bool:
    """Whether its values can be read without a device sync."""
    return tensor.device.type == "cpu"


def _finite(gradients: Tensor) -> Tensor:
    """`(T,)`: whether every number of a row is finite; NaN is every reduction's extremum."""
    return gradients.amax(1).isfinite() & gradients.amin(1).isfinite()
