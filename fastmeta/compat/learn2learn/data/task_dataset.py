"""Tasks sampled from a dataset."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, default_collate

from fastmeta.compat.learn2learn.data.meta_dataset import MetaDataset


class DataDescription:
    """An example of a task before it is loaded.

    Args:
        index: the index of the example in the dataset.

    Attributes:
        index: the index of the example in the dataset.
        transforms: functions that load the example, applied in turn to `index`.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.transforms: list[Callable[[Any], Any]] = []

    def copy(self) -> DataDescription:
        """A copy of the description with its own list of transforms."""
        copied = DataDescription(self.index)
        copied.transforms = list(self.transforms)
        return copied


Description = list[DataDescription]  # all examples of a task
Transform = Callable[[Description | None], Description]


class Taskset:
    """Tasks sampled by a chain of task transforms, with Python's global `random`.

    Args:
        dataset: a dataset of `(x, y)`.
        task_transforms: functions from a task description to the next, the first from `None`,
            which stands for all examples; or a single function.
        num_tasks: the number of tasks, each sampled on first access and then kept; -1 for
            unlimited tasks, sampled anew on each access.
        task_collate: makes a task of a list of examples; `default_collate` by default.

    Raises:
        ValueError: if `num_tasks` is neither positive nor -1.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        task_transforms: Sequence[Transform] | Transform | None = None,
        num_tasks: int = -1,
        task_collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if num_tasks < -1 or num_tasks == 0:
            raise ValueError(f"num_tasks must be positive, or -1 for unlimited; got {num_tasks}.")
        self.dataset = dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)
        self.task_transforms = [] if task_transforms is None else task_transforms
        self.num_tasks = num_tasks
        self.task_collate = default_collate if task_collate is None else task_collate
        self.sampled_descriptions: dict[int, Any] = {}
        self._next = 0

    def sample_task_description(self) -> Any:
        """Samples the description of a new task."""
        if callable(self.task_transforms):
            return self.task_transforms(None)
        description: Any = None
        for transform in self.task_transforms:
            description = transform(description)
        return description

    def get_task(self, task_description: Description) -> Any:
        """Loads and collates the examples of a task description."""
        examples = []
        for one in task_description:
            example: Any = one.index
            for transform in one.transforms:
                example = transform(example)
            examples.append(example)
        return self.task_collate(examples)

    def sample(self) -> Any:
        """A random task."""
        return self[random.randint(0, len(self) - 1)]

    def __len__(self) -> int:
        """The number of tasks; 1 if unlimited."""
        return max(self.num_tasks, 1)

    def __getitem__(self, i: int) -> Any:
        """The task at index `i`; a new one if unlimited."""
        if self.num_tasks == -1:
            return self.get_task(self.sample_task_description())
        if i not in self.sampled_descriptions:
            self.sampled_descriptions[i] = self.sample_task_description()
        return self.get_task(self.sampled_descriptions[i])

    def __iter__(self) -> Iterator[Any]:
        """Restarts at the first task."""
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
    """The deprecated name of [`Taskset`][fastmeta.compat.learn2learn.data.Taskset]."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("TaskDataset is now called Taskset.", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)
