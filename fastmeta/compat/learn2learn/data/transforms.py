"""Task transforms: which classes and examples a task has, and how they are loaded.

They sample with Python's global `random` in the same order as learn2learn 0.2.0, so the same seed
gives the same tasks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from fastmeta.compat.learn2learn.data.meta_dataset import MetaDataset
from fastmeta.compat.learn2learn.data.task_dataset import DataDescription, Description


class TaskTransform:
    """Base class of task transforms.

    A transform maps a task description to the next; `None` stands for the whole dataset.

    Args:
        dataset: the dataset.
    """

    def __init__(self, dataset: MetaDataset) -> None:
        self.dataset = dataset

    def new_task(self) -> Description:
        """The description of all examples."""
        return [DataDescription(i) for i in range(len(self.dataset))]

    def __call__(self, task_description: Description | None) -> Description:
        """The transformed description."""
        return self.new_task() if task_description is None else task_description

    def label(self, one: DataDescription) -> Any:
        """The class of an example."""
        return self.dataset.indices_to_labels[one.index]


class LoadData(TaskTransform):
    """Loads the examples."""

    def __call__(self, task_description: Description | None) -> Description:
        """Appends the dataset's `__getitem__` to the transforms of each example."""
        task = super().__call__(task_description)
        for one in task:
            one.transforms.append(self.dataset.__getitem__)
        return task


class FilterLabels(TaskTransform):
    """Keeps the examples of selected classes.

    Args:
        dataset: the dataset.
        labels: the classes to keep.
    """

    def __init__(self, dataset: MetaDataset, labels: Sequence[Any]) -> None:
        super().__init__(dataset)
        self.labels = set(labels)

    def __call__(self, task_description: Description | None) -> Description:
        """The examples of these classes."""
        task = super().__call__(task_description)
        return [one for one in task if self.label(one) in self.labels]


class ConsecutiveLabels(TaskTransform):
    """Sorts the examples by their label in the dataset."""

    def __call__(self, task_description: Description | None) -> Description:
        """The sorted examples."""
        return sorted(super().__call__(task_description), key=self.label)


class RemapLabels(TaskTransform):
    """Relabels the classes of a task as 0, 1, ... in random order.

    Args:
        dataset: the dataset.
        shuffle: whether to shuffle the order.
    """

    def __init__(self, dataset: MetaDataset, shuffle: bool = True) -> None:
        super().__init__(dataset)
        self.shuffle = shuffle

    def __call__(self, task_description: Description | None) -> Description:
        """The relabelled examples."""
        task = super().__call__(task_description)
        labels = list({self.label(one) for one in task})
        if self.shuffle:
            random.shuffle(labels)
        number = {label: k for k, label in enumerate(labels)}

        def remap(example: Any) -> list[Any]:
            x, label, *rest = example
            return [x, number[label.item() if hasattr(label, "item") else label], *rest]

        for one in task:
            one.transforms.append(remap)
        return task


class NWays(TaskTransform):
    """Keeps the examples of `n` random classes.

    Args:
        dataset: the dataset.
        n: classes per task.
    """

    def __init__(self, dataset: MetaDataset, n: int = 2) -> None:
        super().__init__(dataset)
        self.n = n

    def __call__(self, task_description: Description | None) -> Description:
        """The examples of these classes."""
        if task_description is None:
            chosen = random.sample(self.dataset.labels, k=self.n)
            return [DataDescription(i) for k in chosen for i in self.dataset.labels_to_indices[k]]
        kept = set(random.sample(list({self.label(one) for one in task_description}), k=self.n))
        return [one for one in task_description if self.label(one) in kept]


class KShots(TaskTransform):
    """Keeps `k` random examples of each class.

    Args:
        dataset: the dataset.
        k: examples per class.
        replacement: whether to sample with replacement.
    """

    def __init__(self, dataset: MetaDataset, k: int = 1, replacement: bool = False) -> None:
        super().__init__(dataset)
        self.k = k
        self.replacement = replacement

    def __call__(self, task_description: Description | None) -> Description:
        """The sampled examples, grouped by class."""
        by_label: dict[Any, Description] = {}
        for one in super().__call__(task_description):
            by_label.setdefault(self.label(one), []).append(one)
        return [one for group in by_label.values() for one in self._draw(group)]

    def _draw(self, group: Description) -> Description:
        if self.replacement:
            return [one.copy() for one in random.choices(group, k=self.k)]
        return random.sample(group, k=self.k)


class FusedNWaysKShots(TaskTransform):
    """Keeps `k` random examples of each of `n` random classes.

    Args:
        dataset: the dataset.
        n: classes per task.
        k: examples per class.
        replacement: whether to sample with replacement.
        filter_labels: the classes to sample from; all by default.
    """

    def __init__(
        self,
        dataset: MetaDataset,
        n: int = 2,
        k: int = 1,
        replacement: bool = False,
        filter_labels: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(dataset)
        self.n = n
        self.k = k
        self.replacement = replacement
        self.filter_labels = dataset.labels if filter_labels is None else list(filter_labels)
        labels = FilterLabels(dataset, self.filter_labels)
        self._steps = (labels, NWays(dataset, n), KShots(dataset, k, replacement))

    def __call__(self, task_description: Description | None) -> Description:
        """The sampled examples."""
        if task_description is None:
            chosen = random.sample(self.filter_labels, k=self.n)
            return [DataDescription(i) for label in chosen for i in self._draw(label)]
        for step in self._steps:
            task_description = step(task_description)
        return task_description

    def _draw(self, label: Any) -> list[int]:
        indices = self.dataset.labels_to_indices[label]
        if self.replacement:
            return [random.choice(indices) for _ in range(self.k)]
        return random.sample(indices, k=self.k)
