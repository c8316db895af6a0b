"""What becomes of tasks whose loss or gradient is NaN or infinite."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.distributed import Sharding
from fastmeta.engines import Rows, StepResult
from fastmeta.reference import accumulation_dtype

NonFinite = Literal["keep", "skip", "raise"]


class NonFiniteError(FloatingPointError):
    """A task had a loss or a gradient that is not finite; the message names meta-step and task."""


class NonFiniteGuard:
    """Keeps tasks that are not sound from spoiling parameters, buffers and what a room remembers.

    A task is sound if its row, its mean inner gradient (if recorded) and its losses are finite. The
    rows of the others are replaced by the mean of the sound ones, before room 2 sees them: under
    :class:`fastmeta.aggregation.Mean` the meta-gradient of MAML, FOMAML or Reptile is exactly that
    of the sound tasks alone; what compares tasks sees one more like their mean. The module's
    buffers are merged over the sound tasks. A meta-step without any, or whose combined
    meta-gradient is not finite in spite of all, has a meta-gradient of zero, and all its tasks
    count as skipped; an optimizer with momentum (Adam) still moves by what it remembers. Where all
    tasks are sound nothing differs (on a GPU the rounding of merged buffers may).

    The host does not wait for a GPU before :meth:`check`.

    Args:
        policy: ``"keep"`` does nothing; ``"skip"`` contains and counts; ``"raise"`` contains,
            counts, and raises: on the CPU before the outer optimizer's step, else from
            :meth:`check`.
        sharding: of the tasks over ranks, each of which contains its own and counts all.

    Attributes:
        steps: meta-gradients so far.
        skipped: how many tasks were not sound so far; int64, on the device.
        finite: ``(T,)``, bool: which tasks the last meta-step learned from; ``None`` before the
            first and under ``"keep"``.

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
        self.steps = 0
        self.skipped = torch.zeros((), dtype=torch.int64)
        self.finite: Tensor | None = None
        self._noted: Tensor | None = None  # the first meta-step and task that were not sound

    def mask_tasks(self, rows: Rows, result: StepResult) -> None:
        """Makes the rows of a meta-step finite, in place."""
        if self.policy == "keep":
            return
        sound = result.support_loss.isfinite() & result.query_loss.isfinite()
        filled = [buffer.filled for buffer in rows[:2] if buffer.count]
        for part in filled:
            sound &= _finite(part)
        if not (_on_host(sound) and sound.all()):
            for part in filled:
                _replace(part, sound)
        self.finite = sound

    def check_combined(self, flat: Tensor) -> None:
        """Makes the combined meta-gradient ``(P,)`` finite, in place, and counts.

        Raises:
            NonFiniteError: on the CPU, if the policy is ``"raise"`` and a task was not sound.
        """
        self.steps += 1
        if self.finite is None:
            return
        fine = _finite(flat[None])
        flat.masked_fill_(~fine, 0)
        self.finite &= fine
        skipped = (~self.finite).sum()
        self.skipped = self.skipped + (
            skipped if self._sharding is None else self._sharding.sum(skipped)
        )
        if self.policy == "raise":
            self._note(self.finite)

    def _note(self, sound: Tensor) -> None:
        task = sound.int().argmin()  # the first that is not
        found = torch.stack([torch.full_like(task, self.steps), task])
        found = torch.where(sound.all(), -1, found)
        first = self._noted
        self._noted = found if first is None else torch.where(first[0] < 0, found, first)
        if _on_host(sound):
            self.check()

    def check(self) -> None:
        """Waits for the device, and forgets what it reports.

        Raises:
            NonFiniteError: if the policy is ``"raise"`` and a task was not sound since last time.
        """
        if self._noted is None:
            return
        step, task = self._noted.tolist()
        self._noted = None
        if step >= 0:
            raise NonFiniteError(
                f"meta-step {step}: the loss or the gradient of task {task} of its meta-batch "
                "(counted from 0) is not finite. The parameters have not taken it up. Lower the "
                "learning rates, look at the task's data, or train with non_finite='skip'."
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"steps": self.steps, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.steps, self.skipped = state["steps"], state["skipped"].clone()


def _on_host(tensor: Tensor) -> bool:
    """Whether its numbers can be read without waiting."""
    return tensor.device.type == "cpu"


def _finite(rows: Tensor) -> Tensor:
    """``(T,)``: whether every number of a row is finite; NaN is every reduction's extremum."""
    return rows.amax(1).isfinite() & rows.amin(1).isfinite()


def _replace(rows: Tensor, sound: Tensor) -> None:
    """Puts the mean of the sound rows, or zeros if there are none, in place of the others."""
    rows.masked_fill_(~sound[:, None], 0)
    weights = sound.to(accumulation_dtype(rows.dtype)) / sound.sum().clamp(min=1)
    rows.addr_((~sound).to(rows.dtype), ops.combine(rows, weights))
