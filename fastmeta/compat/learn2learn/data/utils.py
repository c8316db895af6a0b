"""Data sets in memory, tasks in two parts, loaders without an end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

Part = tuple[Tensor, Tensor]


class OnDeviceDataset(TensorDataset):
    """A data set of ``(tensor, label)``, loaded as a whole.

    Args:
        dataset: the data set.
        device: where to.
        transform: of each example's tensor, when it is asked for.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        device: torch.device | str | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        examples: Any = dataset
        pairs = [examples[i] for i in range(len(examples))]
        data = torch.stack([x for x, _ in pairs]).to(device)
        labels = torch.tensor([y for _, y in pairs]).to(device)
        super().__init__(data, labels)
        self.transform = transform

    def __getitem__(self, index: Any) -> Any:
        """Example number ``index``, transformed, and its label."""
        x, y = (tensor[index] for tensor in self.tensors)
        return (x if self.transform is None else self.transform(x)), y


class InfiniteIterator:
    """Goes round a loader without an end.

    Args:
        dataloader: the loader, which gives at least one batch.
    """

    def __init__(self, dataloader: Iterable[Any]) -> None:
        self.dataloader = dataloader
        self.iterator = iter(dataloader)

    def __iter__(self) -> Iterator[Any]:
        """Itself."""
        return self

    def __next__(self) -> Any:
        """The next batch."""
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.dataloader)
            return next(self.iterator)


def partition_task(data: Tensor, labels: Tensor, shots: int = 1) -> tuple[Part, Part]:
    """Support and query set of a task, each sorted by class.

    Args:
        data: ``(n, *input)``.
        labels: ``(n,)``, each class equally often.
        shots: the first so many examples of a class are for support, the others for query.

    Returns:
        Two pairs of data and labels.

    Raises:
        ValueError: if lengths differ, a class has more examples than another, or too few.
    """
    counts = labels.unique(return_counts=True)[1]
    if len(data) != len(labels) or counts.unique().numel() != 1 or counts[0] < shots:
        raise ValueError(
            f"expected as many labels as data and at least {shots} examples of every class, of "
            f"all equally many; got {len(data)} data, {len(labels)} labels and classes of "
            f"{counts.tolist()}."
        )
    rows = labels.argsort(stable=True).view(len(counts), -1)
    support, query = rows[:, :shots].flatten(), rows[:, shots:].flatten()
    return (data[support], labels[support]), (data[query], labels[query])
