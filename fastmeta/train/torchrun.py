"""Training by the processes that torchrun starts."""

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
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is the one that writes and reports."""
    return os.environ.get("RANK", "0") == "0"


def own_device(name: str) -> str:
    """The device option of this process: each process on a machine has a GPU of its own."""
    if under_torchrun() and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


@contextmanager
def joined(config: TrainConfig, device: torch.device) -> Iterator[Sharding | None]:
    """How the meta-batches of a run are shared out; ``None`` for a process by itself.

    Raises:
        ConfigError: if the processes do not know one folder, or are more than a meta-batch's tasks.
    """
    if not under_torchrun():
        yield None
        return
    if config.out is None:
        raise ConfigError("processes of torchrun share a run's folder: name it with out.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _init("nccl" if device.type == "cuda" else "gloo")
    try:
        try:
            sharding = Sharding(config.meta_batch)
        except ValueError as error:
            raise ConfigError(f"meta_batch: {error}") from error
        yield sharding
        dist.barrier()  # one that ends early would break what the others still send
    finally:
        dist.destroy_process_group()


def _init(backend: str) -> None:
    store, rank, size = next(rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # torchrun keeps its store when it restarts processes, and with it the addresses of those
        # that died. (On several machines, whose restarts are counted apart, it must not share it:
        # TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.)
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"fastmeta, restart {restarts}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
