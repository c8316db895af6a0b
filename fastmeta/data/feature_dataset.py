"""Datasets of feature vectors or other floating-point inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastmeta.data.dataset import describe, group_by_class, select_classes


@dataclass(frozen=True, eq=False, repr=False)
class FeatureDataset:
    """Labelled feature vectors, such as the rows of a table or the outputs of a frozen network.

    Attributes:
        features: `(n, *input)` float32.
        labels: `(n,)` int64 class indices into `class_names`, on the device of `features`.
        class_names: one distinct name per class.
        class_indices: for each class, the ascending int64 indices of its examples; on the CPU.

    Raises:
        TypeError: if `features` are not float32 or `labels` not int64.
        ValueError: if shapes or devices do not match, a label is out of range, a class has no
            example or a name occurs twice.
    """

    features: Tensor
    labels: Tensor
    class_names: Sequence[str]
    class_indices: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        features, labels = self.features, self.labels
        if features.dtype != torch.float32 or labels.dtype != torch.int64:
            raise TypeError(
                f"features must be float32 and labels int64; got {features.dtype} and "
                f"{labels.dtype}. Convert them with .float() and .long()."
            )
        if features.dim() < 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                "features must be (n, *input) and labels (n,); got "
                f"{tuple(features.shape)} and {tuple(labels.shape)}."
            )
        if features.device != labels.device:
            raise ValueError(
                f"features and labels must be on one device; got {features.device} and "
                f"{labels.device}. Move the dataset as a whole with .to(device)."
            )
        indices = group_by_class(labels.cpu(), self.class_names)
        object.__setattr__(self, "class_indices", indices)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.features)

    def __repr__(self) -> str:
        return describe(self, tuple(self.features.shape[1:]))

    def __reduce__(self) -> tuple[Any, ...]:
        # Not class_indices: these are views of one tensor, and pickle would save it once for each.
        return (type(self), (self.features, self.labels, list(self.class_names)))

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        """The device of the features, on which `inputs` gathers them."""
        return self.features.device

    def inputs(self, index: Tensor) -> Tensor:
        """The features `(*s, *input)` at the int64 indices `index` `(*s,)`, on any device."""
        return self.features[index.to(self.device)]

    def subset(self, class_ids: Sequence[int]) -> FeatureDataset:
        """The examples of `class_ids` only, sorted by class and relabelled in that order.

        Raises:
            ValueError: if `class_ids` is empty, repeats a class or contains one out of range.
        """
        indices, labels, names = select_classes(self, class_ids)
        return replace(self, features=self.features[indices], labels=labels, class_names=names)

    def to(self, device: torch.device | str) -> FeatureDataset:
        """The same dataset with features and labels on `device`."""
        return replace(self, features=self.features.to(device), labels=self.labels.to(device))
