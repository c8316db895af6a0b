"""Calls on a GPU that are captured in CUDA graphs and replayed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The most recently used keys: of as many shapes of meta-batches, say.
MAX_GRAPHS = 8

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class _Captured:
    graph: Any
    inputs: list[Tensor]
    outputs: Sequence[Tensor]

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given)
        self.graph.replay()
        return [output.clone() for output in self.outputs]  # the next replay overwrites them


class CudaGraphs:
    """A function of tensors on the current GPU, as one CUDA graph for each key.

    The first call with a key runs the function, the second one captures it; that one and the
    following ones replay the graph: what shapes occur only once is not worth a capture. All graphs
    share the memory of their intermediate values. Within a capture of the caller's, the function
    runs and becomes part of that.
    """

    def __init__(self) -> None:
        self._calls: OrderedDict[Hashable, _Captured | None] = OrderedDict()
        self._pool: Any = None
        self._stream: Any = None

    def call(self, key: Hashable, function: Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results of `function(inputs)`.

        Args:
            key: all that the function depends on but the values of tensors: sizes, numbers, and the
                addresses of tensors other than `inputs`, whose values are read at every call.
            function: launches operations that do not depend on values.
            inputs: may be other tensors in every call.
        """
        if torch.cuda.is_current_stream_capturing():
            return function(inputs)
        self._follow_the_last_replay()
        if key not in self._calls:
            self._calls[key] = None
            if len(self._calls) > MAX_GRAPHS:
                self._calls.popitem(last=False)
            return function(inputs)
        self._calls.move_to_end(key)
        captured = self._calls[key]
        if captured is None:
            captured = self._calls[key] = self._capture(function, inputs)
        return captured.replay(inputs)

    def _follow_the_last_replay(self) -> None:
        """The buffers are free once the last replay has ended, also on another stream."""
        stream = torch.cuda.current_stream()
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
        self._stream = stream

    def _capture(self, function: Function, inputs: Sequence[Tensor]) -> _Captured:
        static = [t.clone() for t in inputs]
        # What libraries set up in a first call, on a stream like that of the capture.
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            function(static)
        current.wait_stream(side)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those that pin memory, may go on.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = function(static)
        return _Captured(graph, static, outputs)
