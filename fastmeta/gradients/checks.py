"""Plain tensors that a rank has whole: what packed gradients are made of."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_PLAIN = (
    "expected plain tensors, whole on every rank. Leave fully_shard(), distribute_module() and the "
    "like out: fastmeta.distributed.Sharding shares out the tasks, not the parameters."
)


def check_not_sharded(tensors: Iterable[tuple[object, Tensor]]) -> None:
    """Makes sure that no tensor is a DTensor, of which each rank may have a part only.

    Args:
        tensors: what to call each in the message, and the tensor.

    Raises:
        TypeError: if one is.
    """
    distributed = _known("torch.distributed.tensor", "DTensor")
    for name, tensor in tensors:
        if isinstance(tensor, distributed):
            found: Any = tensor
            raise TypeError(
                f"{name} is a DTensor, {found.placements} over {found.device_mesh}; {_PLAIN}"
            )


def check_materialized(tensors: Iterable[tuple[object, Tensor]]) -> None:
    """:func:`check_not_sharded`, and makes sure that the tensors have numbers.

    Raises:
        TypeError: if one is a DTensor, or on the meta device.
    """
    named = list(tensors)
    check_not_sharded(named)
    for name, tensor in named:
        if tensor.is_meta:
            raise TypeError(
                f"{name} is on the meta device, which keeps no numbers; expected a real one. Call "
                "module.to_empty(device=...), then initialise or load the parameters, first."
            )


def check_module(module: nn.Module) -> None:
    """Makes sure that a module and its tensors are plain ones.

    Raises:
        TypeError: if it has a part wrapped for data parallelism, or as :func:`check_materialized`.
    """
    sharded = _known("torch.distributed.fsdp", "FullyShardedDataParallel")
    for name, part in module.named_modules():
        what = f"the module's part {name!r}" if name else "the module"
        if isinstance(part, DistributedDataParallel):
            raise TypeError(
                f"{what} is wrapped in DistributedDataParallel, which averages the gradients of "
                "each backward pass, and so of different tasks; expected the module in it. Pass "
                "module.module, and sharding=fastmeta.distributed.Sharding(tasks)."
            )
        if isinstance(part, sharded):
            raise TypeError(f"{what} is wrapped in FullyShardedDataParallel; {_PLAIN}")
    check_materialized((f"the parameter {n!r}", p) for n, p in module.named_parameters())
    check_materialized((f"the buffer {n!r}", b) for n, b in module.named_buffers())


def _known(module: str, name: str) -> tuple[type, ...]:
    # There are instances only where someone has imported the class; imports take a second.
    return (getattr(sys.modules[module], name),) if module in sys.modules else ()
