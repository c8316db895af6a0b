"""Interface of datasets: labelled examples of any kind, grouped by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class EpisodeDataset(Protocol):
    """The dataset interface that [`fastmeta.data.EpisodeSampler`][] requires."""

    @property
    def num_classes(self) -> int:
        """The number of classes."""

    @property
    def class_names(self) -> Sequence[str]:
        """One distinct name per class."""

    @property
    def class_indices(self) -> tuple[Tensor, ...]:
        """For each class, the ascending int64 indices of its examples; on the CPU."""

    @property
    def device(self) -> torch.device:
        """The device on which `inputs` gathers examples."""

    def to(self, device: torch.device | str) -> EpisodeDataset:
        """The same dataset on `device`."""

    def inputs(self, index: Tensor) -> Tensor:
        """The examples at the int64 indices `index` `(*s,)` as model inputs `(*s, *input)`.

        Floating point, or integer ids of tokens or nodes; on `device`.
        """


def group_by_class(labels: Tensor, names: Sequence[str]) -> tuple[Tensor, ...]:
    """The ascending indices of each class in `labels` `(n,)`, which are on the CPU.

    Raises:
        ValueError: if a label is out of range, a class has no example or a name occurs twice.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"class_names must be distinct; got {_shorten(repeated)} more than once.")
    if not len(labels) or labels.min() < 0 or labels.max() >= len(names):
        found = f"{labels.min()}..{labels.max()}" if len(labels) else "no labels"
        raise ValueError(
            f"labels must lie in 0..{len(names) - 1} for {len(names)} class_names; got {found}."
        )
    counts = labels.bincount(minlength=len(names))
    empty = [names[c] for c in torch.nonzero(counts == 0).flatten().tolist()]
    if empty:
        raise ValueError(
            f"every class needs an example; got none of {_shorten(empty)}. Leave these classes out."
        )
    return torch.split(labels.argsort(stable=True), counts.tolist())


def select_classes(
    dataset: EpisodeDataset, class_ids: Sequence[int]
) -> tuple[Tensor, Tensor, list[str]]:
    """Indices, new labels and names of the examples of `class_ids`, sorted by class.

    The classes are relabelled `0..` in the order of `class_ids`; both tensors are on the device
    of the dataset.

    Raises:
        ValueError: if `class_ids` is empty, repeats a class or contains one out of range.
    """
    ids = list(class_ids)
    if not ids or len(set(ids)) != len(ids) or not set(ids) <= set(range(dataset.num_classes)):
        raise ValueError(
            f"class_ids must be distinct, at least one, and lie in 0..{dataset.num_classes - 1}; "
            f"got {_shorten(ids)}."
        )
    indices = [dataset.class_indices[c] for c in ids]
    counts = torch.tensor([len(i) for i in indices])
    labels = torch.arange(len(ids)).repeat_interleave(counts)
    names = [dataset.class_names[c] for c in ids]
    return torch.cat(indices).to(dataset.device), labels.to(dataset.device), names


def describe(dataset: EpisodeDataset, input_shape: Sequence[int], more: str = "") -> str:
    """The `repr` of a dataset: `ClassDataset(14 classes, 20 to 35 examples each, (1, 8, 8))`."""
    counts = [len(indices) for indices in dataset.class_indices]
    sizes = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    shape = f"inputs {tuple(input_shape)}"
    parts = [f"{dataset.num_classes} classes", f"{sizes} examples each", shape]
    return f"{type(dataset).__name__}({', '.join([*parts, *([more] if more else [])])})"


def _shorten(items: Sequence[object], limit: int = 10) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in total)"
