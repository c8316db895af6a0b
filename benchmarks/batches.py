"""Few-shot meta-batches of random images: their content does not change the time."""

from __future__ import annotations

import torch

from fastmeta import TaskBatch


def images(tasks: int, queries: int, channels: int = 1, size: int = 28) -> TaskBatch:
    """5-way 1-shot tasks with ``queries`` query images a class."""

    def draw(each: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(5).repeat(each).expand(tasks, -1)
        return torch.rand(tasks, 5 * each, channels, size, size), y.contiguous()

    return TaskBatch(*draw(1), *draw(queries))
