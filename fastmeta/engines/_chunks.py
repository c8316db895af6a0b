"""Splitting of meta-batches that do not fit in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from fastmeta.tasks import TaskBatch

Result = TypeVar("Result")


class Chunks:
    """The number of tasks that run at once: all, until an allocation fails.

    Then half as many, also in later meta-batches; a warning is issued once.

    Attributes:
        size: the maximum number of tasks at once; `None` if no allocation has failed.
    """

    def __init__(self) -> None:
        self.size: int | None = None
        self._warned = False

    def run(
        self, batch: TaskBatch[Any, Any], run: Callable[[TaskBatch[Any, Any]], Result]
    ) -> list[Result]:
        """The results of `run` for the chunks of a meta-batch, in order.

        Args:
            batch: the tasks.
            run: runs some of them; must have no side effects if it runs out of memory.

        Raises:
            RuntimeError: torch's own, if a single task runs out of memory.
        """
        results: list[Result] = []
        start, before = 0, self.size
        while start < len(batch):
            part = batch.part(start, start + (self.size or len(batch)))
            try:
                results.append(run(part))
            except RuntimeError as error:
                if not out_of_memory(error) or len(part) == 1:
                    raise
                self.size = len(part) // 2
            else:
                start += len(part)
        if self.size != before and not self._warned:
            self._warned = True
            warnings.warn(
                f"out of memory with {len(batch)} tasks at once: engine 'batched' runs "
                f"{self.size} at once from now on.",
                RuntimeWarning,
                stacklevel=6,
            )
        return results


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
