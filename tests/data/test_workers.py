from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch.utils.data import DataLoader

from fastmeta.data import ClassDataset, EpisodeSampler, SineTasks
from fastmeta.tasks import TaskBatch

# Python 3.12 warns of any fork of a process with threads, and torch has some.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def assert_same(a: TaskBatch, b: TaskBatch) -> None:
    for name in ("support_x", "support_y", "query_x", "query_y"):
        assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
def test_workers_do_not_change_the_batches(
    traceable: Callable[[Sequence[int]], ClassDataset], workers: int, start: str | None
) -> None:
    sampler = EpisodeSampler(traceable([3] * 1000), 5, 1, 2, tasks=4, seed=11, length=7)
    loader = DataLoader(
        sampler, batch_size=None, num_workers=workers, multiprocessing_context=start
    )
    batches = list(loader)
    assert len(batches) == 7
    for i, batch in enumerate(batches):
        assert_same(batch, sampler[i])


def test_sines_from_workers() -> None:
    sines = SineTasks(tasks=3, shots=4, queries=5, length=4)
    loader = DataLoader(sines, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for i, batch in enumerate(loader):
        assert_same(batch, sines[i])
    assert i == 3
