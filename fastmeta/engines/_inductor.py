"""Regions of a graph, compiled by Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule


class InductorRegion:
    """A region, compiled in its first call.

    Without Dynamo, which `torch.compile` puts in front of the compiler: the region is a graph
    already, and each call would take as long as many small operations.

    Args:
        region: operations on tensors, without mutation.
        options: of Inductor.
    """

    def __init__(self, region: GraphModule, options: dict[str, Any]) -> None:
        self._region = region
        self._options = options
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        if self._compiled is None:
            import torch._inductor  # large, and only needed here

            self._compiled = torch._inductor.compile(self._region, list(inputs), self._options)
        return self._compiled(*inputs)
