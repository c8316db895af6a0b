"""Which rank has which tasks, and how ranks exchange what they found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastmeta.tasks import TaskBatch


class Sharding:
    """Shares the ``T`` tasks of each meta-batch out over the ranks, in order and evenly.

    Rank ``r`` has a block of consecutive tasks; blocks differ by one task at the most. Every rank
    must call the same methods in the same order.

    Args:
        tasks: of a whole meta-batch, at least one a rank.
        group: of ``torch.distributed``; all ranks by default.

    Attributes:
        rank: this process's.
        size: number of ranks.
        counts: tasks of each rank.

    Raises:
        RuntimeError: if ``torch.distributed`` is not initialised.
        ValueError: if there are more ranks than tasks.
    """

    def __init__(self, tasks: int, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed is not initialised; call torch.distributed."
                "init_process_group() first, in processes that torchrun starts."
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if tasks < self.size:
            raise ValueError(
                f"{self.size} ranks cannot share {tasks} task{'s' if tasks > 1 else ''}; expected "
                "a meta-batch of at least one task a rank."
            )
        self.tasks = tasks
        self.counts = _shares(tasks, self.size)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sharding:
        return self  # a process group has no copies

    @property
    def own(self) -> slice:
        """The tasks of this rank."""
        begin = sum(self.counts[: self.rank])
        return slice(begin, begin + self.counts[self.rank])

    def part(self, batch: TaskBatch) -> TaskBatch:
        """This rank's tasks of a whole meta-batch.

        Raises:
            ValueError: if it has another number of tasks.
        """
        self.check_materialized(len(batch))
        return batch.part(self.own.start, self.own.stop)

    def check_materialized(self, tasks: int) -> None:
        """Makes sure that meta-batches of so many tasks are the whole ones that are shared out.

        Raises:
            ValueError: otherwise.
        """
        if tasks != self.tasks:
            raise ValueError(f"expected a whole meta-batch of {self.tasks} tasks, got {tasks}.")

    def check_own(self, batch: TaskBatch) -> None:
        """Makes sure that a batch can be this rank's tasks.

        Raises:
            ValueError: if it has another number of tasks.
        """
        count = self.counts[self.rank]
        if len(batch) != count:
            raise ValueError(
                f"rank {self.rank} of {self.size} has {count} of the {self.tasks} tasks, got "
                f"{len(batch)}. Take its part of a whole meta-batch with Sharding.part."
            )

    def columns(self, total: int) -> list[int]:
        """How many of ``total`` columns each rank has where they are shared out."""
        return _shares(total, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, own: Tensor) -> Tensor:
        """One row a task, ``(T, ...)``, of each rank's ``(counts[rank], ...)``."""
        return self._gather(own, self.counts)

    def gather_all(self, own: Tensor) -> Tensor:
        """What each rank has, of one shape, stacked: ``(size, ...)``."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous(), group=self.group)
        return torch.stack(parts)

    def gather_columns(self, own: Tensor, total: int) -> Tensor:
        """``(total,)`` of each rank's columns."""
        return self._gather(own, self.columns(total))

    def _gather(self, own: Tensor, counts: list[int]) -> Tensor:
        # Equally long everywhere: that is what all backends can do.
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = zip(self.gather_all(padded), counts, strict=True)
        return torch.cat([part[:count] for part, count in parts])

    def exchange(self, rows: Tensor) -> Tensor:
        """All tasks' rows, but this rank's columns of them alone.

        Args:
            rows: ``(counts[rank], P)``, of this rank's tasks.

        Returns:
            ``(T, columns(P)[rank])``.
        """
        widths = self.columns(rows.shape[1])
        own, width = len(rows), widths[self.rank]
        sent = torch.cat([part.reshape(-1) for part in rows.split(widths, 1)])
        got = sent.new_empty(self.tasks * width)
        dist.all_to_all_single(
            got,
            sent,
            [count * width for count in self.counts],
            [own * each for each in widths],
            group=self.group,
        )
        return got.view(self.tasks, width)

    def same(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor on all of them, in place."""
        dist.broadcast(tensor, dist.get_global_rank(self.group, 0) if self.group else 0, self.group)
        return tensor

    @torch.no_grad()
    def merge_buffers(self, buffers: Sequence[Tensor]) -> None:
        """Makes buffers that each rank merged over its tasks those of all tasks, in place.

        The mean over tasks of floating-point buffers, the largest of others, as
        :meth:`fastmeta.functional.FunctionalModule.merge_buffers` in one process.
        """
        share = self.counts[self.rank] / self.tasks
        for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
            alike = [buffer for buffer in buffers if buffer.dtype == dtype]
            flat = torch.cat([buffer.reshape(-1) for buffer in alike])
            most, least = flat.clone(), flat.clone()
            dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
            if dtype.is_floating_point:
                dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
                # The mean of equal numbers is not always that number: constants must not drift.
                most = torch.where(most == least, flat, self.sum(flat * share))
            for buffer, part in zip(alike, most.split([b.numel() for b in alike]), strict=True):
                buffer.copy_(part.view_as(buffer))


class ShardedSource:
    """This rank's tasks of each meta-batch of another source.

    Of a source with a method ``part``, such as those of ``fastmeta.data``, the other ranks'
    tasks are not even drawn (see :meth:`fastmeta.data.task_source.SeededSource.part`).

    Args:
        source: of whole meta-batches, the same on all ranks.
        sharding: of their tasks.

    Raises:
        ValueError: if the meta-batches have another number of tasks.
    """

    def __init__(self, source: Any, sharding: Sharding) -> None:
        self.source, self.sharding = source, sharding
        self._draws_parts = hasattr(source, "part")
        if self._draws_parts:
            sharding.check_materialized(source.tasks)

    @property
    def ways(self) -> int | None:
        """Classes a task, or ``None`` for regression."""
        found: int | None = self.source.ways
        return found

    def __getitem__(self, index: int) -> TaskBatch:
        """This rank's part of meta-batch number ``index``."""
        if self._draws_parts:
            own = self.sharding.own
            part: TaskBatch = self.source.part(index, own.start, own.stop)
            return part
        return self.sharding.part(self.source[index])


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (k < total % parts) for k in range(parts)]
