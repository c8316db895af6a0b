"""Meta-batches sharded over the ranks of a process group."""

from fastmeta.distributed.sharding import ShardedSource, Sharding
from fastmeta.distributed.task_gradients import ShardedTaskGradients

__all__ = ["ShardedSource", "ShardedTaskGradients", "Sharding"]
