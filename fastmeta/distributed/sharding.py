"""Assignment of tasks to ranks, and the communication between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

from fastmeta.tasks import MetaBatch, RaggedTaskBatch, TaskBatch, X, Y


class Sharding:
    """Shards the `T` tasks of each meta-batch over ranks, in order and evenly.

    Each rank has a block of consecutive tasks; block sizes differ by at most one. Every rank must
    call the same methods in the same order.

    Args:
        tasks: number of tasks of a whole meta-batch, at least one per rank.
        group: a process group of `torch.distributed`; all ranks by default.

    Attributes:
        rank: of this process.
        size: number of ranks.
        counts: number of tasks of each rank.

    Raises:
        RuntimeError: if `torch.distributed` is not initialised.
        ValueError: if there are more ranks than tasks.
    """

    def __init__(self, tasks: int, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed is not initialised; call torch.distributed."
                "init_process_group() first, in processes started by torchrun."
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if tasks < self.size:
            raise ValueError(
                f"{self.size} ranks cannot share {tasks} task{'s' if tasks > 1 else ''}; expected "
                "a meta-batch of at least one task per rank."
            )
        self.tasks = tasks
        self.counts = _split_evenly(tasks, self.size)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sharding:
        return self  # process groups cannot be copied

    @property
    def own(self) -> slice:
        """The tasks of this rank."""
        begin = sum(self.counts[: self.rank])
        return slice(begin, begin + self.counts[self.rank])

    @overload
    def part(self, batch: TaskBatch[X, Y]) -> TaskBatch[X, Y]: ...

    @overload
    def part(self, batch: RaggedTaskBatch) -> RaggedTaskBatch: ...

    def part(self, batch: MetaBatch) -> MetaBatch:
        """This rank's tasks of a whole meta-batch.

        Raises:
            ValueError: if it has another number of tasks.
        """
        self.check_whole_batch(len(batch))
        return batch.part(self.own.start, self.own.stop)

    def check_whole_batch(self, tasks: int) -> None:
        """Checks that `tasks` is the number of tasks of a whole meta-batch.

        Raises:
            ValueError: if it is not.
        """
        if tasks != self.tasks:
            raise ValueError(f"expected a whole meta-batch of {self.tasks} tasks, got {tasks}.")

    def check_own(self, batch: MetaBatch) -> None:
        """Checks that a batch has the number of tasks of this rank.

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
        """The number of columns of each rank if `total` columns are sharded."""
        return _split_evenly(total, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, own: Tensor) -> Tensor:
        """Gathers `(counts[rank], ...)` of each rank to `(T, ...)`."""
        return self._gather(own, self.counts)

    def gather_all(self, own: Tensor) -> Tensor:
        """Gathers tensors of one shape from all ranks, stacked: `(size, ...)`."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous(), group=self.group)
        return torch.stack(parts)

    def gather_columns(self, own: Tensor, total: int) -> Tensor:
        """Gathers the columns of each rank to `(total,)`."""
        return self._gather(own, self.columns(total))

    def _gather(self, own: Tensor, counts: list[int]) -> Tensor:
        # Padded to the same size on all ranks, which all backends support.
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = zip(self.gather_all(padded), counts, strict=True)
        return torch.cat([part[:count] for part, count in parts])

    def exchange(self, own: Tensor) -> Tensor:
        """From all columns of this rank's tasks to this rank's columns of all tasks.

        Args:
            own: `(counts[rank], P)`.

        Returns:
            `(T, columns(P)[rank])`.
        """
        widths = self.columns(own.shape[1])
        width = widths[self.rank]
        sent = torch.cat([part.reshape(-1) for part in own.split(widths, 1)])
        received = sent.new_empty(self.tasks * width)
        dist.all_to_all_single(
            received,
            sent,
            [count * width for count in self.counts],
            [len(own) * w for w in widths],
            group=self.group,
        )
        return received.view(self.tasks, width)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Broadcasts the tensor of the first rank, in place."""
        dist.broadcast(tensor, dist.get_global_rank(self.group, 0) if self.group else 0, self.group)
        return tensor

    @torch.no_grad()
    def merge_buffers(self, buffers: Sequence[Tensor]) -> None:
        """Merges buffers over ranks, each of which has merged those of its tasks, in place.

        The mean over tasks for floating-point buffers, the maximum for others, as
        `fastmeta.functional._buffers.merge_buffers` in one process.
        """
        fraction = self.counts[self.rank] / self.tasks
        for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
            same_dtype = [buffer for buffer in buffers if buffer.dtype == dtype]
            sizes = [buffer.numel() for buffer in same_dtype]
            flat = torch.cat([buffer.reshape(-1) for buffer in same_dtype])
            merged = flat.clone()
            dist.all_reduce(merged, dist.ReduceOp.MAX, group=self.group)
            if dtype.is_floating_point:
                minimum = flat.clone()
                dist.all_reduce(minimum, dist.ReduceOp.MIN, group=self.group)
                # Rounding changes the mean of equal numbers: constants must not drift.
                merged = torch.where(merged == minimum, flat, self.sum(flat * fraction))
            for buffer, part in zip(same_dtype, merged.split(sizes), strict=True):
                buffer.copy_(part.view_as(buffer))


class ShardedSource:
    """A task source with this rank's tasks of each meta-batch of another source.

    If the source has a method `part`, as those of `fastmeta.data`, only this rank's tasks are
    sampled (see [`fastmeta.data.task_source.SeededSource.part`][]).

    Args:
        source: of whole meta-batches, the same on all ranks.
        sharding: of the tasks of a meta-batch.

    Raises:
        ValueError: if the meta-batches have another number of tasks.
    """

    def __init__(self, source: Any, sharding: Sharding) -> None:
        self.source, self.sharding = source, sharding
        self._has_parts = hasattr(source, "part")
        if self._has_parts:
            sharding.check_whole_batch(source.tasks)

    @property
    def ways(self) -> int | None:
        """Number of classes per task, or `None` for regression."""
        ways: int | None = self.source.ways
        return ways

    def __getitem__(self, index: int) -> TaskBatch:
        """This rank's part of meta-batch number `index`."""
        if self._has_parts:
            own = self.sharding.own
            part: TaskBatch = self.source.part(index, own.start, own.stop)
            return part
        whole: TaskBatch = self.source[index]
        return self.sharding.part(whole)

    def feedback(self, index: int, losses: Tensor) -> None:
        """Gives the losses of all ranks' tasks to a source that takes them.

        Args:
            index: of the meta-batch.
            losses: `(counts[rank],)`, of this rank's tasks.
        """
        if hasattr(self.source, "feedback"):
            self.source.feedback(index, self.sharding.gather(losses))

    def state_dict(self) -> dict[str, Any]:
        """That of the source, which is the same on all ranks; empty if it has none."""
        if not hasattr(self.source, "feedback"):
            return {}
        state: dict[str, Any] = self.source.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        if hasattr(self.source, "feedback"):
            self.source.load_state_dict(state)


def _split_evenly(total: int, parts: int) -> list[int]:
    return [total // parts + (k < total % parts) for k in range(parts)]
