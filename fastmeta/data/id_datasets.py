"""Examples that are integer ids: of the tokens of a text, or of a node of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastmeta.data.dataset import group_by_class, select_classes

_Ids = TypeVar("_Ids", bound="IdDataset")


@dataclass(frozen=True, eq=False)
class IdDataset:
    """Labelled ids; :class:`TextDataset` and :class:`NodeDataset` say what of.

    Attributes:
        ids: ``(n, *input)`` int64, not negative.
        labels: ``(n,)`` int64 class indices into ``class_names``, on the device of ``ids``.
        class_names: one distinct name a class.
        class_indices: for each class, the ascending int64 positions of its examples; on the CPU.

    Raises:
        TypeError: if ``ids`` or ``labels`` are not int64.
        ValueError: if shapes or devices disagree, an id or a label is out of range, a class has no
            example or a name occurs twice.
    """

    ids: Tensor
    labels: Tensor
    class_names: Sequence[str]
    class_indices: tuple[Tensor, ...] = field(init=False, repr=False)

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
                f"{self.labels.device}. Move the data set as a whole with .to(device)."
            )
        indices = group_by_class(self.labels.cpu(), self.class_names)
        object.__setattr__(self, "class_indices", indices)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        # Not class_indices: they are views of one tensor, and pickle writes all of it for each.
        return (type(self), tuple(getattr(self, item.name) for item in fields(self) if item.init))

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        """Where the ids are, and so where :meth:`inputs` gathers them."""
        return self.ids.device

    def inputs(self, index: Tensor) -> Tensor:
        """The ids ``(*s, *input)`` at the int64 positions ``index`` ``(*s,)``, on any device."""
        return self.ids[index.to(self.device)]

    def subset(self: _Ids, class_ids: Sequence[int]) -> _Ids:
        """The examples of ``class_ids`` only, sorted by class and relabelled in that order.

        Raises:
            ValueError: if ``class_ids`` is empty, repeats a class or names one out of range.
        """
        rows, labels, names = select_classes(self, class_ids)
        return replace(self, ids=self.ids[rows], labels=labels, class_names=names)

    def to(self: _Ids, device: torch.device | str) -> _Ids:
        """The same data set with ids and labels on ``device``."""
        return replace(self, ids=self.ids.to(device), labels=self.labels.to(device))


def _check_range(ids: Tensor, end: int, what: str) -> None:
    if ids.min() < 0 or ids.max() >= end:
        raise ValueError(
            f"ids must lie in 0..{end - 1}, the {end} {what}; got {ids.min()}..{ids.max()}."
        )


@dataclass(frozen=True, eq=False)
class TextDataset(IdDataset):
    """Labelled texts, each a row of token ids.

    Attributes:
        ids: ``(n, L)`` int64; 0 is padding.
        vocabulary: how many ids there are, padding included.
    """

    vocabulary: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self.ids, self.vocabulary, "ids of the vocabulary")


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph whose nodes have features.

    Attributes:
        features: ``(nodes, F)`` float32.
        edges: ``(2, E)`` int64, each edge once, without loops.
    """

    features: Tensor
    edges: Tensor


@dataclass(frozen=True, eq=False)
class NodeDataset(IdDataset):
    """Labelled nodes of one graph, which networks see whole, whatever the split.

    Attributes:
        ids: ``(n,)`` int64 nodes.
        graph: that the nodes are of, for the network; :meth:`to` leaves it where it is.
    """

    graph: Graph

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self.ids, len(self.graph.features), "nodes of the graph")
