"""Meta-batches whose tasks are shared out over the ranks of a process group."""

from fastmeta.distributed.rows import ShardedRows
from fastmeta.distributed.sharding import ShardedSource, Sharding

__all__ = ["ShardedRows", "ShardedSource", "Sharding"]
