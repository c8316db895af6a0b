"""Layout of a list of parameters in a packed vector of `P` numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from fastmeta.gradients.checks import check_not_sharded


@dataclass(frozen=True)
class FlatLayout:
    """Positions of parameters in the rows of a `(T, P)` buffer, in list order, without gaps.

    Attributes:
        shapes: shape of each parameter.
        bounds: first column of each parameter, then `P`; one more than there are parameters.
            Passed to the ops, they make every parameter tensor a segment ("layer").
    """

    shapes: tuple[torch.Size, ...]
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> FlatLayout:
        """The layout of `tensors`, which may have any shapes.

        Raises:
            TypeError: if one is a DTensor.
        """
        check_not_sharded((f"tensor {k} of the layout", t) for k, t in enumerate(tensors))
        shapes = tuple(t.shape for t in tensors)
        return cls(shapes, tuple(accumulate((prod(s) for s in shapes), initial=0)))

    @property
    def size(self) -> int:
        """The number of columns, `P`."""
        return self.bounds[-1]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views of `flat` `(..., P)` with the parameters' shapes, `(..., *shape)` each.

        Raises:
            ValueError: if the last dimension of `flat` is not `P`.
        """
        if flat.shape[-1] != self.size:
            raise ValueError(
                f"expected a last dimension of {self.size}, the parameters' total size, "
                f"got shape {tuple(flat.shape)}."
            )
        lead = flat.shape[:-1]
        parts = flat.split_with_sizes([prod(shape) for shape in self.shapes], -1)
        return [part.view(lead + shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def attach_grads(self, params: Sequence[Tensor], row: Tensor) -> None:
        """Makes each `.grad` a view of `row` `(P,)`, so that `backward()` fills the row.

        Nothing is copied afterwards: autograd accumulates in place into an existing gradient. Zero
        the row first.

        Raises:
            ValueError: if `params` do not have the layout's shapes.
        """
        if [p.shape for p in params] != list(self.shapes):
            raise ValueError(
                f"expected parameters of shapes {[tuple(shape) for shape in self.shapes]}, got "
                f"{[tuple(p.shape) for p in params]}; make a new layout with FlatLayout.of."
            )
        for param, view in zip(params, self.views(row), strict=True):
            param.grad = view
