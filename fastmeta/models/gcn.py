"""A graph convolutional network for nodes of one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GCN(nn.Module):
    """Graph convolutions with ReLU, then a linear classifier (Kipf and Welling 2017).

    A convolution averages over a node and its neighbours, ``A = D^-1/2 (A' + I) D^-1/2`` for the
    adjacency matrix ``A'`` and the degrees ``D`` with loops, and is linear: ``ReLU(A H W + b)``.
    Outputs are computed for the nodes asked for alone: each convolution for the neighbours that the
    next one needs. The first has ``A X`` for the features ``X`` ready, once for all.

    Args:
        features: ``(nodes, F)`` floating point.
        edges: ``(2, E)`` int64, each edge once, without loops.
        ways: outputs, one a class.
        hidden: widths of the convolutions.

    Input ``(n,)`` int64 nodes, output ``(n, ways)``. The graph is constant: it follows the module
    to a device or dtype, but is no part of its state, and tasks share it. ``torch.vmap`` takes one
    convolution only: nodes differ in their number of neighbours.

    Attributes:
        convolutions: their linear layers.
        head: the linear classifier.

    Raises:
        ValueError: if a size is below 1, there is no convolution, or an edge is there twice.
    """

    def __init__(
        self, features: Tensor, edges: Tensor, ways: int, hidden: Sequence[int] = (16, 16)
    ) -> None:
        super().__init__()
        widths = [features.shape[1], *hidden]
        if not hidden or min(ways, *widths) < 1:
            raise ValueError(
                f"ways and every width must be at least 1; got {ways} and {widths}, features first."
            )
        convolutions = [nn.Linear(wide, narrow) for wide, narrow in pairwise(widths)]
        for layer in convolutions:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.convolutions = nn.ModuleList(convolutions)
        self.head = nn.Linear(hidden[-1], ways)
        self._set_graph(features, edges)

    def _set_graph(self, features: Tensor, edges: Tensor) -> None:
        count = len(features)
        loops = torch.arange(count, device=edges.device).expand(2, -1)
        both = torch.cat([edges, edges.flip(0), loops], dim=1)
        degrees = both[0].bincount(minlength=count)
        weights = degrees[both].to(features.dtype).rsqrt().prod(0)
        adjacency = torch.sparse_coo_tensor(both, weights, (count, count), check_invariants=True)
        adjacency = adjacency.coalesce()  # sorted by row
        entries = adjacency.indices()
        if entries.shape != both.shape:
            raise ValueError(
                "edges must hold each edge once, in one direction, and no loop; "
                f"{both.shape[1] - entries.shape[1]} are there again."
            )
        self._averaged = adjacency @ features
        self._neighbours = entries[1]
        self._weights = adjacency.values()
        self._degrees = degrees
        self._starts = degrees.cumsum(0) - degrees

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GCN:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("_averaged", "_neighbours", "_weights", "_degrees", "_starts"):
            setattr(self, name, fn(getattr(self, name)))
        return self

    def forward(self, nodes: Tensor) -> Tensor:
        """Class scores ``(n, ways)`` of nodes ``(n,)``."""
        scores: Tensor = self.head(self._embed(nodes, len(self.convolutions) - 1))
        return scores

    def _embed(self, nodes: Tensor, last: int) -> Tensor:
        """What convolution ``last`` makes of ``nodes``, with those below it."""
        mean = self._average(nodes, last - 1) if last else self._averaged[nodes]
        return F.relu(self.convolutions[last](mean))

    def _average(self, nodes: Tensor, last: int) -> Tensor:
        """The rows ``nodes`` of ``A H``, where ``H`` is what convolution ``last`` makes."""
        degrees = self._degrees[nodes]
        # The entries of A in these rows, row after row, and which row each is in.
        row = torch.arange(len(nodes), device=nodes.device).repeat_interleave(degrees)
        first = self._starts[nodes] - (degrees.cumsum(0) - degrees)
        entry = first[row] + torch.arange(len(row), device=nodes.device)
        below = self._embed(self._neighbours[entry], last) * self._weights[entry, None]
        return below.new_zeros(len(nodes), below.shape[1]).index_add(0, row, below)
