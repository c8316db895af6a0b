"""Classification datasets indexed by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset
from typing_extensions import override


class MetaDataset(Dataset[Any]):
    """A classification dataset with an index of the examples of each class.

    Args:
        dataset: a map-style dataset of `(x, y)` with a scalar label `y`.
        labels_to_indices: the examples of each class, if known.
        indices_to_labels: the class of each example, if known; by default the attribute
            `indices_to_labels` of the dataset, if it has one. If neither is known, every
            example is loaded once.

    Attributes:
        dataset: the dataset.
        labels_to_indices: the indices of the examples of each class.
        indices_to_labels: the class of each example.
        labels: the classes, in the order of `labels_to_indices`.

    Raises:
        TypeError: if `dataset` is not a `torch.utils.data.Dataset`.
        ValueError: if a label is not a scalar.
    """

    labels_to_indices: Mapping[Any, Sequence[int]]
    indices_to_labels: Mapping[int, Any]
    labels: list[Any]

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
        if labels_to_indices is None and indices_to_labels is None:
            indices_to_labels = getattr(dataset, "indices_to_labels", None)
        self.create_bookkeeping(labels_to_indices, indices_to_labels)

    def create_bookkeeping(
        self,
        labels_to_indices: Mapping[Any, Sequence[int]] | None = None,
        indices_to_labels: Mapping[int, Any] | None = None,
    ) -> None:
        """Builds `labels_to_indices`, `indices_to_labels` and `labels`.

        The constructor calls it; call it again after changing the dataset. Without arguments,
        every example is loaded once.

        Args:
            labels_to_indices: the examples of each class, if known; takes precedence.
            indices_to_labels: the class of each example, if known.

        Raises:
            ValueError: if a label is not a scalar.
        """
        if labels_to_indices is not None:
            indices_to_labels = {
                i: label for label, indices in labels_to_indices.items() for i in indices
            }
        else:
            if indices_to_labels is None:
                indices_to_labels = self._read_labels()
            by_label: dict[Any, list[int]] = {}
            for i, label in indices_to_labels.items():
                by_label.setdefault(label, []).append(i)
            labels_to_indices = by_label
        self.labels_to_indices = labels_to_indices
        self.indices_to_labels = indices_to_labels
        self.labels = list(labels_to_indices)

    def _read_labels(self) -> Mapping[int, Any]:
        return {i: _scalar(self.dataset[i][1], i) for i in range(len(self.dataset))}

    def __getitem__(self, item: int) -> Any:
        """The example at index `item`."""
        return self.dataset[item]

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.dataset)


class UnionMetaDataset(MetaDataset):
    """The concatenation of several datasets, with classes renumbered consecutively.

    Args:
        datasets: the datasets.
    """

    def __init__(self, datasets: Iterable[Dataset[Any]]) -> None:
        self.datasets = [_meta(dataset) for dataset in datasets]
        self.create_bookkeeping()

    @override
    def _read_labels(self) -> Mapping[int, Any]:
        self._positions = [(dataset, i) for dataset in self.datasets for i in range(len(dataset))]
        found: dict[int, Any] = {}
        examples = classes = 0
        for dataset in self.datasets:
            number = {label: classes + k for k, label in enumerate(dataset.labels)}
            found |= {examples + i: number[label] for i, label in dataset.indices_to_labels.items()}
            examples += len(dataset)
            classes += len(dataset.labels)
        return found

    @override
    def __getitem__(self, item: int) -> Any:
        """The example at index `item`, as a list, with its class in the union."""
        dataset, i = self._positions[item]
        x, _, *rest = dataset[i]
        return [x, self.indices_to_labels[item], *rest]

    @override
    def __len__(self) -> int:
        return len(self._positions)


class FilteredMetaDataset(MetaDataset):
    """The examples of selected classes, sorted by class; classes keep their labels.

    Args:
        dataset: the dataset.
        labels: the classes to keep.

    Raises:
        ValueError: if the dataset lacks one of the classes.
    """

    def __init__(self, dataset: Dataset[Any], labels: Iterable[Any]) -> None:
        self.dataset = _meta(dataset)
        self._kept = list(labels)
        self.create_bookkeeping()

    @override
    def _read_labels(self) -> Mapping[int, Any]:
        by_label = self.dataset.labels_to_indices
        unknown = [label for label in self._kept if label not in by_label]
        if unknown:
            raise ValueError(
                f"expected labels among the {len(by_label)} classes of the dataset; got "
                f"{unknown[:10]}, which it does not have."
            )
        self.to_true_indices = [i for label in self._kept for i in by_label[label]]
        return {n: self.dataset.indices_to_labels[i] for n, i in enumerate(self.to_true_indices)}

    @override
    def __getitem__(self, item: int) -> Any:
        return self.dataset[self.to_true_indices[item]]

    @override
    def __len__(self) -> int:
        return len(self.to_true_indices)


def _meta(dataset: Dataset[Any]) -> MetaDataset:
    return dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)


def _scalar(label: Any, i: int) -> Any:
    try:
        return label.item() if hasattr(label, "item") else label
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"example {i}: expected a scalar label; got one of shape {list(label.shape)}. Wrap the "
            "dataset in one that returns (x, y) with y an int."
        ) from error
