"""Datasets of integer ids: the token ids of texts, or the nodes of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastmeta.data.dataset import describe, group_by_class, select_classes

_Ids = TypeVar("_Ids", bound="IdDataset")


@dataclass(frozen=True, eq=False, repr=False)
class IdDataset:
    """Labelled ids, the base of `TextDataset` and `NodeDataset`.

    Attributes:
        ids: `(n, *input)` int64, nonnegative.
        labels: `(n,)` int64 class indices into `class_names`, on the device of `ids`.
        class_names: one distinct name per class.
        class_indices: for each class, the ascending int64 indices of its examples; on the CPU.

    Raises:
        TypeError: if `ids` or `labels` are not int64.
        ValueError: if shapes or devices do not match, an id or a label is out of range, a class has
            no example or a name occurs twice.
    """

    ids: Tensor
    labels: Tensor
    class_names: Sequence[str]
    class_indices: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("ids", "labels"):
            dtype = getattr(self, name).dtype
            if dtype != torch.int64:
                raise TypeError(f"{name} must be int64; got {dtype}. Convert them with .long().")
        if self.labels.dim() != 1 or self.ids.shape[:1] != self.labels.shape:
            raise ValueError(
                "ids must be (n, *input) and labels (n,); got "
                f"{tuple(self.ids.shape)} and {tuple(self.labels.shape)}."
            )
        if self.ids.device != self.labels.device:
            raise ValueError(
                f"ids and labels must be on one device; got {self.ids.device} and "
                f"{self.labels.device}. Move the dataset as a whole with .to(device)."
            )
        indices = group_by_class(self.labels.cpu(), self.class_names)
        object.__setattr__(self, "class_indices", indices)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.ids)

    def __repr__(self) -> str:
        return describe(self, self.ids.shape[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        # Not class_indices: these are views of one tensor, and pickle would save it once for each.
        return (type(self), tuple(getattr(self, item.name) for item in fields(self) if item.init))

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        """The device of the ids, on which `inputs` gathers them."""
        return self.ids.device

    def inputs(self, index: Tensor) -> Tensor:
        """The ids `(*s, *input)` at the int64 indices `index` `(*s,)`, on any device."""
        return self.ids[index.to(self.device)]

    def subset(self: _Ids, class_ids: Sequence[int]) -> _Ids:
        """The examples of `class_ids` only, sorted by class and relabelled in that order.

        Raises:
            ValueError: if `class_ids` is empty, repeats a class or contains one out of range.
        """
        indices, labels, names = select_classes(self, class_ids)
        return replace(self, ids=self.ids[indices], labels=labels, class_names=names)

    def to(self: _Ids, device: torch.device | str) -> _Ids:
        """The same dataset with ids and labels on `device`."""
        return replace(self, ids=self.ids.to(device), labels=self.labels.to(device))


def _check_range(ids: Tensor, end: int, kind: str) -> None:
    if ids.min() < 0 or ids.max() >= end:
        raise ValueError(
            f"ids must lie in 0..{end - 1}, the {end} {kind}; got {ids.min()}..{ids.max()}."
        )


@dataclass(frozen=True, eq=False, repr=False)
class TextDataset(IdDataset):
    """Labelled texts, each a row of token ids.

    Attributes:
        ids: `(n, L)` int64; 0 is padding.
        vocabulary: number of token ids, padding included.
    """

    vocabulary: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self.ids, self.vocabulary, "ids of the vocabulary")

    def __repr__(self) -> str:
        return describe(self, self.ids.shape[1:], f"vocabulary of {self.vocabulary}")


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """An undirected graph with node features.

    Attributes:
        features: `(nodes, F)` float32.
        edges: `(2, E)` int64, each edge once, without self-loops.
    """

    features: Tensor
    edges: Tensor

    def __repr__(self) -> str:
        nodes, width = self.features.shape
        return f"Graph({nodes} nodes, {self.edges.shape[1]} edges, {width} features)"


@dataclass(frozen=True, eq=False, repr=False)
class NodeDataset(IdDataset):
    """Labelled nodes of a graph, all of which the network sees in every split (transductive).

    Attributes:
        ids: `(n,)` int64 nodes.
        graph: the graph of the nodes, for the network; `to` does not move it.
    """

    graph: Graph

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self.ids, len(self.graph.features), "nodes of the graph")

    def __repr__(self) -> str:
        return describe(self, self.ids.shape[1:], repr(self.graph))
