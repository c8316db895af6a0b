"""Tasks that are used again, chosen by their losses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from fastmeta._checks import check_choice, check_in_range, check_integer
from fastmeta.data.task_source import TaskSource
from fastmeta.tasks import TaskBatch, concatenate

Rank = Literal["easy", "medium", "hard"]


@runtime_checkable
class FeedbackSource(TaskSource, Protocol):
    """A task source whose next meta-batches depend on the losses of those before."""

    def feedback(self, index: int, losses: Tensor) -> None:
        """Takes the losses `(T,)` of the tasks of meta-batch `index`, after its meta-step."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to continue the stream of tasks."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""


class PrioritizedTasks:
    """Another source, a share of whose tasks are used again, chosen by the rank of their losses.

    The task buffer of Robust MAML (Nguyen et al. 2021, arXiv 2103.08233), as in the code that
    evidently is the first author's: with `R = round(share * T)`, meta-batch `i` holds the first
    `T - R` tasks of `source[i]`, then `R` tasks of the buffer: those with the smallest losses
    after adaptation (`"easy"`), the largest (`"hard"`), or in the middle of the sorted losses
    (`"medium"`). These leave the buffer; all tasks of the meta-batch enter it with their losses,
    and it keeps the newest `slots`. While it holds fewer than `R`, the others are fresh ones, as
    in the first meta-batch. Nothing is random: with `share=0` the meta-batches are those of
    `source`.

    The authors' buffer is the last meta-batch, `"medium"` (`slots=None`, the default). Their
    earlier version, 100 slots from which the 10 largest losses are taken and to which the 10
    largest of the meta-batch are added, never holds more than these 10: it is `"hard"`. As
    released, the function that sorts the tasks does not; this is the intended rule.

    ```python
    tasks = fastmeta.data.PrioritizedTasks(source)
    for i in range(1000):
        result = learner.step(tasks[i])
        tasks.feedback(i, result.query_loss)
    ```

    The buffer holds the numbers of tasks, which the source draws again. `fastmeta train` saves it;
    in a loop of your own save `state_dict()`. Worker processes do not see the feedback.

    Args:
        source: whose meta-batch `i` is a function of `i`, with the number `tasks` and the method
            `part` of [`SeededSource`][fastmeta.data.task_source.SeededSource].
        share: of the tasks of a meta-batch that are used again, in `[0, 1)`.
        rank: which tasks of the buffer.
        slots: size of the buffer, at least `T`; `T` by default.

    Raises:
        TypeError: if the source has no `tasks` or `part`.
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, source: Any, share: float = 0.25, rank: Rank = "medium", slots: int | None = None
    ) -> None:
        if not (hasattr(source, "tasks") and hasattr(source, "part")):
            raise TypeError(
                f"expected a source with tasks and part(index, start, stop), such as "
                f"fastmeta.data.EpisodeSampler or SineTasks; got {type(source).__name__}."
            )
        check_in_range("share", share, 0, 1)
        check_choice("rank", rank, get_args(Rank))
        self.source = source
        self.tasks: int = source.tasks
        if slots is not None:
            check_integer("slots", slots, self.tasks)
        self.share = share
        self.rank: Rank = rank
        self.slots = self.tasks if slots is None else slots
        self._numbers = torch.zeros(0, dtype=torch.int64)  # index * tasks + place, newest first
        self._losses = torch.zeros(0, dtype=torch.float64)
        self._next = 0  # smallest index that feedback is expected for

    def __repr__(self) -> str:
        return f"PrioritizedTasks({self.source!r}, share={self.share}, rank={self.rank!r})"

    @property
    def ways(self) -> int | None:
        """Classes per task, or `None` for regression."""
        ways: int | None = self.source.ways
        return ways

    def __getitem__(self, index: int) -> TaskBatch:
        """Meta-batch `index`, from 0, for the feedback so far.

        Raises:
            IndexError: if the source has no meta-batch `index`.
        """
        return self.part(index, 0, self.tasks)

    def part(self, index: int, start: int, stop: int) -> TaskBatch:
        """`self[index].part(start, stop)`, without drawing the other tasks."""
        if not 0 <= start < stop <= self.tasks:
            self.source.part(index, start, stop)  # explains what is wrong
        numbers = self._numbers_of(index)[start:stop].tolist()
        drawn = [self.source.part(*run) for run in _runs(numbers, self.tasks)]
        return drawn[0] if len(drawn) == 1 else concatenate(drawn)

    def numbers(self, index: int) -> list[tuple[int, int]]:
        """The tasks of meta-batch `index`, each as its meta-batch in `source` and place there."""
        return [divmod(number, self.tasks) for number in self._numbers_of(index).tolist()]

    def _numbers_of(self, index: int) -> Tensor:
        again = self._numbers[self._taken()]
        fresh = torch.arange(self.tasks - len(again)) + index * self.tasks
        return torch.cat([fresh, again])

    def _taken(self) -> Tensor:
        """Places in the buffer of the tasks that are used again."""
        held = len(self._numbers)
        count = min(round(self.share * self.tasks), held)
        first = {"easy": 0, "medium": (held - count) // 2, "hard": held - count}[self.rank]
        return self._losses.argsort(stable=True)[first : first + count]

    def feedback(self, index: int, losses: Tensor) -> None:
        """Takes the losses of the tasks of meta-batch `index` after adaptation.

        Tasks whose loss is not finite do not enter the buffer. Waits for the device.

        Args:
            index: of the meta-batch of this meta-step.
            losses: `(T,)`, [`StepResult.query_loss`][fastmeta.learners.StepResult].

        Raises:
            ValueError: if it is not one loss per task, or the feedback for this or a later
                meta-batch was given before.
        """
        if losses.shape != (self.tasks,):
            raise ValueError(
                f"losses must have the shape ({self.tasks},), one per task; got "
                f"{tuple(losses.shape)}."
            )
        if index < self._next:
            raise ValueError(
                f"index must be at least {self._next}, the feedback for earlier meta-batches was "
                f"given before; got {index}."
            )
        losses = losses.detach().to("cpu", torch.float64)
        kept = torch.ones(len(self._numbers), dtype=torch.bool)
        kept[self._taken()] = False
        known = losses.isfinite()
        numbers = torch.cat([self._numbers_of(index)[known], self._numbers[kept]])
        self._losses = torch.cat([losses[known], self._losses[kept]])[: self.slots]
        self._numbers = numbers[: self.slots]
        self._next = index + 1

    def state_dict(self) -> dict[str, Any]:
        """The buffer: numbers and losses of its tasks."""
        return {"numbers": self._numbers, "losses": self._losses, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`.

        Raises:
            ValueError: if the buffer has more tasks than slots.
        """
        if len(state["numbers"]) > self.slots:
            raise ValueError(
                f"the saved buffer has {len(state['numbers'])} tasks, more than slots={self.slots}."
            )
        self._numbers = state["numbers"].to("cpu", copy=True)
        self._losses = state["losses"].to("cpu", copy=True)
        self._next = state["next"]


def _runs(numbers: list[int], tasks: int) -> Iterator[tuple[int, int, int]]:
    """Index, start and stop of consecutive tasks of the same meta-batch."""
    for _, members in groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        run = [number for _, number in members]
        for index, of_index in groupby(run, lambda number: number // tasks):
            places = [number % tasks for number in of_index]
            yield index, places[0], places[-1] + 1
