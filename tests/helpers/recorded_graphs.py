"""A stand-in for CUDA graphs on the CPU: what is captured is recorded, and run again by a replay.

As on a GPU, a replay reads and writes the memory of the capture, and repeats its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmeta.ops import sequence


class RecordedGraph(TorchDispatchMode):
    """Operations in order, with the tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, before in self.calls:
            now = func(*args, **kwargs)
            for target, value in zip(tree_leaves(before), tree_leaves(now), strict=True):
                # Views, and results of operations in place, are in their memory already.
                if isinstance(target, Tensor) and target.data_ptr() != value.data_ptr():
                    target.copy_(value)


class Stream:
    """A stream that notes what it waits for."""

    def __init__(self) -> None:
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


class RecordedCuda:
    """The functions of `torch.cuda` that a capture uses.

    Attributes:
        graphs: all that were captured.
        pools: of these.
        stream: the current one.
        capturing: whether the caller captures.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs: list[RecordedGraph] = []
        self.pools: list[Any] = []
        self.stream = Stream()
        self.capturing = False
        for name, function in {
            "is_current_stream_capturing": lambda: self.capturing,
            "current_stream": lambda: self.stream,
            "Stream": Stream,
            "stream": lambda stream: nullcontext(),
            "graph_pool_handle": object,
            "CUDAGraph": RecordedGraph,
            "graph": self._capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

    @contextmanager
    def _capture(
        self, graph: RecordedGraph, pool: object, capture_error_mode: str
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        assert not self.capturing
        self.graphs.append(graph)
        self.pools.append(pool)
        self.capturing = True
        with graph:
            yield
        self.capturing = False

    @property
    def replays(self) -> list[int]:
        """Of each graph."""
        return [graph.replays for graph in self.graphs]


def sequence_step_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> RecordedCuda:
    """Lets `ops.sequence_step` take the way of tensors on a GPU, with recorded graphs."""
    monkeypatch.setattr(sequence, "_ONE_CALL", ())
    return RecordedCuda(monkeypatch)
