"""Runs a function in several processes that talk over gloo."""

from __future__ import annotations

import inspect
import os
import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Ranks are forked from a process that has imported these, and has never computed anything.
mp.get_context("forkserver").set_forkserver_preload(["fastmeta", "pytest"])


def run_ranks(size: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)`` returned on each of ``size`` ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # pytest's name of the module is none that a new process could import.
    place = inspect.getfile(function), function.__name__
    arguments = size, port, place, folder, arguments
    mp.start_processes(_rank, arguments, size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _rank(
    rank: int, size: int, port: int, place: tuple[str, str], folder: Path, arguments: Any
) -> None:
    file, name = place
    function = runpy.run_path(file)[name]
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    dist.barrier()  # one that ends while others still talk may take gloo's threads with it
    dist.destroy_process_group()
