"""Data sets that know which examples are of which class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset


class MetaDataset(Dataset[Any]):
    """A classification data set with its examples by class.

    Args:
        dataset: indexable, of ``(x, y)`` with a scalar label ``y``.
        labels_to_indices: the examples of each class, if known; otherwise from
            ``indices_to_labels``, given or an attribute of the data set; otherwise all examples
            are looked at once.
        indices_to_labels: the class of each example, if known.

    Attributes:
        dataset: see above.
        labels_to_indices: the positions of each class's examples.
        indices_to_labels: the class of each example.
        labels: the classes, in the order in which they first occur.

    Raises:
        TypeError: if ``dataset`` is no ``torch.utils.data.Dataset``.
    """

    labels_to_indices: Mapping[Any, Sequence[int]]
    indices_to_labels: Mapping[int, Any]

    def __init__(
        self,
        dataset: Dataset[Any],
        labels_to_indices: Mapping[Any, Sequence[int]] | None = None,
        indices_to_labels: Mapping[int, Any] | None = None,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"expected a torch.utils.data.Dataset; got {type(dataset).__name__}. Wrap tensors "
                "in a TensorDataset."
            )
        self.dataset: Any = dataset
        if labels_to_indices is not None:
            known = [(i, label) for label, rows in labels_to_indices.items() for i in rows]
        else:
            given = indices_to_labels or getattr(dataset, "indices_to_labels", None)
            known = list(given.items() if given else enumerate(self._read_labels()))
        self._keep(known)

    def _read_labels(self) -> Iterable[Any]:
        for i in range(len(self)):
            label = self.dataset[i][1]
            yield label.item() if hasattr(label, "item") else label

    def _keep(self, indices_to_labels: Iterable[tuple[int, Any]]) -> None:
        self.indices_to_labels = dict(indices_to_labels)
        by_label: dict[Any, list[int]] = {}
        for i, label in self.indices_to_labels.items():
            by_label.setdefault(label, []).append(i)
        self.labels_to_indices = by_label
        self.labels = list(by_label)

    def __getitem__(self, item: int) -> Any:
        """Example number ``item`` of the data set."""
        return self.dataset[item]

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.dataset)


class UnionMetaDataset(MetaDataset):
    """Several data sets, one after the other, whose classes are numbered through.

    Args:
        datasets: the data sets.
    """

    def __init__(self, datasets: Iterable[Dataset[Any]]) -> None:
        self.datasets = [_meta(dataset) for dataset in datasets]
        self._rows = [(dataset, i) for dataset in self.datasets for i in range(len(dataset))]
        known: list[tuple[int, int]] = []
        rows = classes = 0
        for dataset in self.datasets:
            number = {label: classes + k for k, label in enumerate(dataset.labels)}
            known += [(rows + i, number[label]) for i, label in dataset.indices_to_labels.items()]
            rows += len(dataset)
            classes += len(dataset.labels)
        self._keep(known)

    def __getitem__(self, item: int) -> Any:
        """Example number ``item``, a list, with its class in the union."""
        dataset, i = self._rows[item]
        x, _, *rest = dataset[i]
        return [x, self.indices_to_labels[item], *rest]

    def __len__(self) -> int:
        """How many examples there are in all."""
        return len(self._rows)


class FilteredMetaDataset(MetaDataset):
    """The examples of some classes, sorted by class; classes keep their labels.

    Args:
        dataset: the data set.
        labels: the classes.

    Raises:
        ValueError: if the data set has no such class.
    """

    def __init__(self, dataset: Dataset[Any], labels: Iterable[Any]) -> None:
        self.dataset = _meta(dataset)
        wanted = list(labels)
        unknown = [label for label in wanted if label not in self.dataset.labels_to_indices]
        if unknown:
            raise ValueError(
                f"the data set has {len(self.dataset.labels)} classes, but not {unknown[:10]}."
            )
        self.to_true_indices = [i for k in wanted for i in self.dataset.labels_to_indices[k]]
        self._keep(
            (n, self.dataset.indices_to_labels[i]) for n, i in enumerate(self.to_true_indices)
        )

    def __getitem__(self, item: int) -> Any:
        """Example number ``item`` of those kept."""
        return self.dataset[self.to_true_indices[item]]

    def __len__(self) -> int:
        """How many examples are kept."""
        return len(self.to_true_indices)


def _meta(dataset: Dataset[Any]) -> MetaDataset:
    return dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)
