"""In-memory datasets, support and query splits, infinite loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

Part = tuple[Tensor, Tensor]


class OnDeviceDataset(TensorDataset):
    """A dataset of `(tensor, label)` loaded into memory.

    Args:
        dataset: the dataset.
        device: the device of the tensors.
        transform: applied to the tensor of an example on each access.
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
        """The transformed example at `index` and its label."""
        x, y = (tensor[index] for tensor in self.tensors)
        return (x if self.transform is None else self.transform(x)), y


class InfiniteIterator:
    """Iterates over a loader repeatedly, without end.

    Args:
        dataloader: the loader, with at least one batch.
    """

    def __init__(self, dataloader: Iterable[Any]) -> None:
        self.dataloader = dataloader
        self.iterator = iter(dataloader)

    def __iter__(self) -> Iterator[Any]:
        """Returns itself."""
        return self

    def __next__(self) -> Any:
        """The next batch."""
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.dataloader)
            return next(self.iterator)


def partition_task(data: Tensor, labels: Tensor, shots: int = 1) -> tuple[Part, Part]:
    """Splits a task into a support and a query set, each sorted by class.

    Args:
        data: `(n, *input)`.
        labels: `(n,)`, with equally many examples of each class.
        shots: support examples per class, which are the first of each class.

    Returns:
        Data and labels of the support set, and those of the query set.

    Raises:
        ValueError: if lengths differ, or classes have different numbers of examples or fewer than
            `shots`.
    """
    counts = labels.unique(return_counts=True)[1]
    if len(data) != len(labels) or counts.unique().numel() != 1 or counts[0] < shots:
        raise ValueError(
            f"expected as many labels as examples, and equally many examples of each class, at "
            f"least {shots}; got {len(data)} examples, {len(labels)} labels and classes of "
            f"{counts.tolist()} examples."
        )
    rows = labels.argsort(stable=True).view(len(counts), -1)
    support, query = rows[:, :shots].flatten(), rows[:, shots:].flatten()
    return (data[support], labels[support]), (data[query], labels[query])
