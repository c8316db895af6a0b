"""Rejection of sharded and meta-device tensors, which packed gradients do not support."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_PLAIN = (
    "expected plain tensors, complete on every rank. Do not use fully_shard(), "
    "distribute_module() or the like: fastmeta.distributed.Sharding shards the tasks, not the "
    "parameters."
)


def check_not_sharded(tensors: Iterable[tuple[object, Tensor]]) -> None:
    """Checks that no tensor is a DTensor, of which each rank may hold only a part.

    Args:
        tensors: names, for the message, and tensors.

    Raises:
        TypeError: if one is.
    """
    distributed = _if_imported("torch.distributed.tensor", "DTensor")
    for name, tensor in tensors:
        if isinstance(tensor, distributed):
            found: Any = tensor
            raise TypeError(
                f"{name} is a DTensor, {found.placements} over {found.device_mesh}; {_PLAIN}"
            )


def check_materialized(tensors: Iterable[tuple[object, Tensor]]) -> None:
    """Checks that no tensor is a DTensor or on the meta device.

    Raises:
        TypeError: if one is a DTensor, or on the meta device.
    """
    named = list(tensors)
    check_not_sharded(named)
    for name, tensor in named:
        if tensor.is_meta:
            raise TypeError(
                f"{name} is on the meta device, which stores no data; expected a materialized "
                "tensor. Call module.to_empty(device=...) and initialise or load the parameters "
                "first."
            )


def check_module(module: nn.Module) -> None:
    """Checks that a module is not wrapped for data parallelism, and its tensors.

    Raises:
        TypeError: if it or a submodule is wrapped, or as `check_materialized`.
    """
    sharded = _if_imported("torch.distributed.fsdp", "FullyShardedDataParallel")
    for name, submodule in module.named_modules():
        label = f"the submodule {name!r}" if name else "the module"
        if isinstance(submodule, DistributedDataParallel):
            raise TypeError(
                f"{label} is wrapped in DistributedDataParallel, which averages the gradients of "
                "each backward pass, and so those of different tasks; expected the unwrapped "
                "module. Pass module.module, and sharding=fastmeta.distributed.Sharding(tasks)."
            )
        if isinstance(submodule, sharded):
            raise TypeError(f"{label} is wrapped in FullyShardedDataParallel; {_PLAIN}")
    check_materialized((f"the parameter {n!r}", p) for n, p in module.named_parameters())
    check_materialized((f"the buffer {n!r}", b) for n, b in module.named_buffers())


def _if_imported(module: str, name: str) -> tuple[type, ...]:
    # Without an import there are no instances; importing it here would take a second.
    return (getattr(sys.modules[module], name),) if module in sys.modules else ()
