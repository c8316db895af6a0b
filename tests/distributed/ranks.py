"""Runs a function on several ranks, processes that communicate over gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Ranks are forked from a server process that has imported these and has computed nothing.
mp.get_context("forkserver").set_forkserver_preload(["fastmeta", "pytest"])


def run_ranks(size: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Results of ``function(rank, *arguments)`` on each of ``size`` ranks.

    ``function`` is a module-level function: ranks import it by name.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = size, port, function, folder, arguments
    mp.start_processes(_rank, arguments, size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _rank(
    rank: int,
    size: int,
    port: int,
    function: Callable[..., Any],
    folder: Path,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    dist.barrier()  # a rank that exits while others still communicate may break their connections
    dist.destroy_process_group()
