"""Few-shot meta-batches of random images; run time does not depend on their content."""

from __future__ import annotations

import torch

from fastmeta import TaskBatch


def image_batch(tasks: int, queries: int, channels: int = 1, size: int = 28) -> TaskBatch:
    """5-way 1-shot tasks with ``queries`` query images per class."""

    def draw(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(5).repeat(per_class).expand(tasks, -1)
        return torch.rand(tasks, 5 * per_class, channels, size, size), y.contiguous()

    return TaskBatch(*draw(1), *draw(queries))
