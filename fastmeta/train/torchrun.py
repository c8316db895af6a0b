"""Training on several ranks, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from fastmeta.distributed import Sharding
from fastmeta.train.config.schema import TrainConfig
from fastmeta.train.errors import ConfigError


def under_torchrun() -> bool:
    """Whether this process is one of several ranks started by torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is rank 0, which writes files and reports."""
    return os.environ.get("RANK", "0") == "0"


def own_device(name: str) -> str:
    """The device of this process: each process on a machine has its own GPU."""
    if under_torchrun() and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


@contextmanager
def process_group(config: TrainConfig, device: torch.device) -> Iterator[Sharding | None]:
    """The sharding of meta-batches in a new process group, or `None` for a single process.

    Raises:
        ConfigError: if the run's folder is not given, or there are more ranks than tasks per
            meta-batch.
    """
    if not under_torchrun():
        yield None
        return
    if config.out is None:
        raise ConfigError("ranks started by torchrun share the folder of a run: set it with out.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _init("nccl" if device.type == "cuda" else "gloo")
    try:
        try:
            sharding = Sharding(config.meta_batch)
        except ValueError as error:
            raise ConfigError(f"meta_batch: {error}") from error
        yield sharding
        dist.barrier()  # a rank that exits early would break pending communication
    finally:
        dist.destroy_process_group()


def _init(backend: str) -> None:
    store, rank, size = next(rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # torchrun keeps its store when it restarts processes, and with it the addresses of those
        # that died. (Several machines count their restarts separately, so there the store must not
        # be shared: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.)
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"fastmeta, restart {restarts}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
