"""Tasks drawn from a data set, each described before it is loaded."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, default_collate

from fastmeta.compat.learn2learn.data.meta_dataset import MetaDataset


class DataDescription:
    """Which example of a data set, and what is done to its position to load it.

    Args:
        index: its position.

    Attributes:
        index: see above.
        transforms: functions, one after the other, the first of the position.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.transforms: list[Callable[[Any], Any]] = []

    def copy(self) -> DataDescription:
        """The same example, whose transforms can be added to alone."""
        twin = DataDescription(self.index)
        twin.transforms = list(self.transforms)
        return twin


Description = list[DataDescription]  # of a task
Transform = Callable[[Description | None], Description]


class Taskset:
    """Tasks that a chain of transforms describes, drawn with Python's global ``random``.

    Args:
        dataset: of ``(x, y)``.
        task_transforms: from the description so far, at first ``None`` for all examples, to the
            next; or one function for the whole.
        num_tasks: how many tasks there are, each described when it is first asked for and then
            kept; -1 for a new one each time.
        task_collate: from a list of examples to the task, ``default_collate`` by default.

    Raises:
        ValueError: if ``num_tasks`` is neither positive nor -1.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        task_transforms: Sequence[Transform] | Transform | None = None,
        num_tasks: int = -1,
        task_collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if num_tasks < -1 or num_tasks == 0:
            raise ValueError(f"num_tasks must be positive, or -1 for no end; got {num_tasks}.")
        self.dataset = dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)
        self.task_transforms = [] if task_transforms is None else task_transforms
        self.num_tasks = num_tasks
        self.task_collate = default_collate if task_collate is None else task_collate
        self.sampled_descriptions: dict[int, Any] = {}
        self._next = 0

    def sample_task_description(self) -> Any:
        """The description of a new task."""
        if callable(self.task_transforms):
            return self.task_transforms(None)
        description: Any = None
        for transform in self.task_transforms:
            description = transform(description)
        return description

    def get_task(self, task_description: Description) -> Any:
        """The task of a description: its examples, collated."""
        examples = []
        for one in task_description:
            example: Any = one.index
            for transform in one.transforms:
                example = transform(example)
            examples.append(example)
        return self.task_collate(examples)

    def sample(self) -> Any:
        """A task at random."""
        return self[random.randint(0, len(self) - 1)]

    def __len__(self) -> int:
        """How many tasks there are; 1 if there is no end."""
        return max(self.num_tasks, 1)

    def __getitem__(self, i: int) -> Any:
        """Task number ``i``; a new one if there is no end."""
        if self.num_tasks == -1:
            return self.get_task(self.sample_task_description())
        if i not in self.sampled_descriptions:
            self.sampled_descriptions[i] = self.sample_task_description()
        return self.get_task(self.sampled_descriptions[i])

    def __iter__(self) -> Iterator[Any]:
        """From the first task on."""
        self._next = 0
        return self

    def __next__(self) -> Any:
        """The next task."""
        if self._next == self.num_tasks:
            raise StopIteration
        task = self[self._next]
        if self.num_tasks != -1:
            self._next += 1
        return task


class TaskDataset(Taskset):
    """The old name of :class:`Taskset`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("TaskDataset is now called Taskset.", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)
