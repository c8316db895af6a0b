"""Graph convolutional network for node classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GCN(nn.Module):
    """Graph convolutions with ReLU, then a linear classifier (Kipf and Welling 2017).

    A convolution averages over a node and its neighbours with the normalized adjacency matrix
    `A = D^-1/2 (A' + I) D^-1/2`, where `A'` is the adjacency matrix and `D` the degrees with
    self-loops, and applies a linear layer: `ReLU(A H W + b)`. Outputs are computed only for the
    requested nodes, and each convolution only for the neighbours that the next one needs. `A X`
    for the features `X`, the input of the first, is precomputed.

    Args:
        features: `(nodes, F)` floating point.
        edges: `(2, E)` int64, each edge once, without self-loops.
        ways: outputs, one per class.
        hidden: widths of the convolutions.

    Input `(n,)` int64 nodes, output `(n, ways)`. The graph is constant: it moves with the
    module to a device or dtype, but is not part of its state dict, and tasks share it.
    `torch.vmap` supports a single convolution only: nodes differ in their number of neighbours.

    Attributes:
        convolutions: the linear layers of the convolutions.
        head: the linear classifier.

    Raises:
        ValueError: if a size is below 1, there is no convolution, or an edge occurs twice.
    """

    def __init__(
        self, features: Tensor, edges: Tensor, ways: int, hidden: Sequence[int] = (16, 16)
    ) -> None:
        super().__init__()
        widths = [features.shape[1], *hidden]
        if not hidden or min(ways, *widths) < 1:
            raise ValueError(
                f"ways and widths (features first) must be at least 1; got {ways} and {widths}."
            )
        convolutions = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
        for layer in convolutions:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.convolutions = nn.ModuleList(convolutions)
        self.head = nn.Linear(hidden[-1], ways)
        self._set_graph(features, edges)

    def _set_graph(self, features: Tensor, edges: Tensor) -> None:
        count = len(features)
        loops = torch.arange(count, device=edges.device).expand(2, -1)
        index = torch.cat([edges, edges.flip(0), loops], dim=1)
        degrees = index[0].bincount(minlength=count)
        weights = degrees[index].to(features.dtype).rsqrt().prod(0)
        adjacency = torch.sparse_coo_tensor(index, weights, (count, count), check_invariants=True)
        adjacency = adjacency.coalesce()  # sorted by row
        entries = adjacency.indices()
        if entries.shape != index.shape:
            raise ValueError(
                "edges must contain each edge once, in one direction, and no self-loop; got "
                f"{index.shape[1] - entries.shape[1]} repeated entries."
            )
        self._mean_features = adjacency @ features
        self._neighbours = entries[1]
        self._weights = adjacency.values()
        self._degrees = degrees
        self._starts = degrees.cumsum(0) - degrees

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GCN:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("_mean_features", "_neighbours", "_weights", "_degrees", "_starts"):
            setattr(self, name, fn(getattr(self, name)))
        return self

    def forward(self, nodes: Tensor) -> Tensor:
        """Class scores `(n, ways)` of nodes `(n,)`."""
        scores: Tensor = self.head(self._embed(nodes, len(self.convolutions) - 1))
        return scores

    def _embed(self, nodes: Tensor, last: int) -> Tensor:
        """The output of convolution `last` for `nodes`, computed recursively."""
        mean = self._average(nodes, last - 1) if last else self._mean_features[nodes]
        return F.relu(self.convolutions[last](mean))

    def _average(self, nodes: Tensor, last: int) -> Tensor:
        """The rows `nodes` of `A H`, where `H` is the output of convolution `last`."""
        degrees = self._degrees[nodes]
        # The entries of A in these rows, row by row, and the row of each.
        row = torch.arange(len(nodes), device=nodes.device).repeat_interleave(degrees)
        first = self._starts[nodes] - (degrees.cumsum(0) - degrees)
        entry = first[row] + torch.arange(len(row), device=nodes.device)
        terms = self._embed(self._neighbours[entry], last) * self._weights[entry, None]
        return terms.new_zeros(len(nodes), terms.shape[1]).index_add(0, row, terms)
