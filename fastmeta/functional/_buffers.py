"""The buffers of a module that each task has a copy of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Buffers = dict[str, Tensor]


@torch.no_grad()
def merge_buffers(
    module: Iterable[tuple[str, Tensor]], tasks: Sequence[Buffers], finite: Tensor | None
) -> None:
    """Writes the tasks' buffers back: the mean of floating-point ones, the maximum of others.

    Every task begins with the module's running statistics; their mean over the meta-batch is
    what the module has when it is used without adaptation statistics (`eval()`).

    Args:
        module: names and buffers of the module, which are written to.
        tasks: the buffers after each of `T` tasks.
        finite: `(T,)`, bool: the tasks that count; `None` means all. If none does, nothing changes.
    """
    for name, buffer in module:
        stacked = torch.stack([task[name] for task in tasks])
        if finite is not None:
            counts = finite.view(-1, *[1] * buffer.dim())
            stacked = torch.where(counts, stacked, buffer)
        if not buffer.is_floating_point():
            merged = stacked.amax(0)
        elif finite is None:
            merged = stacked.mean(0)
        else:
            merged = torch.where(counts, stacked, 0).sum(0) / finite.sum()
        # The mean of equal numbers may be rounded to another number: constants must not drift.
        buffer.copy_(torch.where((stacked == buffer).all(0), buffer, merged))
