"""The buffer of tasks that are used again, by the rank of their losses."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmeta import TaskBatch
from fastmeta.data import EpisodeSampler, FeedbackSource, PrioritizedTasks, SineTasks
from fastmeta.tasks import concatenate

TASKS = 8


def source(tasks: int = TASKS, **options: Any) -> SineTasks:
    return SineTasks(tasks, 3, 2, seed=4, **options)


def tensors(batch: TaskBatch) -> list[Tensor]:
    found = [getattr(batch, item.name) for item in fields(batch)]
    return [t for t in found if t is not None]


def same(one: TaskBatch, other: TaskBatch) -> bool:
    pairs = zip(tensors(one), tensors(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def random_losses() -> Tensor:
    return torch.rand(TASKS)


@pytest.mark.parametrize("rank", ["easy", "medium", "hard"])
def test_the_tasks_of_a_rank_are_used_again(rank: Any) -> None:
    tasks, losses = PrioritizedTasks(source(), 0.25, rank), random_losses()
    assert same(tasks[5], source()[5])  # all fresh
    tasks.feedback(5, losses)
    first = {"easy": 0, "medium": (TASKS - 2) // 2, "hard": TASKS - 2}[rank]
    places = sorted(range(TASKS), key=lambda i: losses[i].item())[first : first + 2]
    fresh = [(9, place) for place in range(TASKS - 2)]
    assert tasks.numbers(9) == [*fresh, *((5, place) for place in places)]
    batch = tasks[9]
    assert same(batch.part(0, TASKS - 2), source()[9].part(0, TASKS - 2))
    for k, place in enumerate(places, TASKS - 2):
        assert same(batch.part(k, k + 1), source()[5].part(place, place + 1))


def test_a_share_of_zero_leaves_the_source_as_it_is(traceable: Any) -> None:
    sampler = EpisodeSampler(traceable([5] * 4), 3, 1, 2, TASKS)
    tasks = PrioritizedTasks(sampler, 0, "hard")
    assert tasks.ways == 3
    for i in range(3):
        assert same(tasks[i], sampler[i])
        tasks.feedback(i, random_losses())


def reference(share: float, slots: int, rounds: list[Tensor]) -> list[list[tuple[int, int]]]:
    """The tasks of each meta-batch by rank "medium", with lists."""
    buffer: list[tuple[float, tuple[int, int]]] = []
    found = []
    for i, losses in enumerate(rounds):
        count = min(round(share * TASKS), len(buffer))
        start = (len(buffer) - count) // 2
        again = sorted(buffer)[start : start + count]
        numbers = [(i, place) for place in range(TASKS - count)] + [number for _, number in again]
        found.append(numbers)
        scored = zip(losses.double().tolist(), numbers, strict=True)
        buffer = [*scored, *(entry for entry in buffer if entry not in again)]
        buffer = [entry for entry in buffer if abs(entry[0]) < float("inf")][:slots]
    return found


def test_the_stream_of_a_longer_buffer() -> None:
    rounds = [random_losses() for _ in range(6)]
    rounds[2][:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    expected = reference(0.4, 20, rounds)
    tasks = PrioritizedTasks(source(), 0.4, slots=20)
    for i, losses in enumerate(rounds):
        assert tasks.numbers(i) == expected[i]
        tasks.feedback(i, losses)
    again = {number for i, batch in enumerate(expected) for number in batch if number[0] < i}
    assert max(i - number[0] for i, batch in enumerate(expected) for number in batch) > 1
    assert (2, 0) not in again  # its loss was not finite


def test_a_part_equals_that_of_the_whole_meta_batch() -> None:
    tasks = PrioritizedTasks(source(grid=(3, 3)), 0.5, "hard", slots=2 * TASKS)
    for i in range(3):
        tasks.feedback(i, random_losses())
    whole = tasks[3]
    assert whole.ids is not None
    for start in range(TASKS):
        for stop in range(start + 1, TASKS + 1):
            assert same(tasks.part(3, start, stop), whole.part(start, stop))
    with pytest.raises(ValueError, match="0 <= start < stop <= 8; got 3 to 9"):
        tasks.part(3, 3, TASKS + 1)


def test_a_restored_buffer_continues_the_stream() -> None:
    rounds = [random_losses() for _ in range(6)]
    whole, half = (PrioritizedTasks(source(), 0.5, slots=12) for _ in range(2))
    streams = []
    for i, losses in enumerate(rounds):
        streams.append(whole[i])
        whole.feedback(i, losses)
    for i, losses in enumerate(rounds[:3]):
        half.feedback(i, losses)
    resumed = PrioritizedTasks(source(), 0.5, slots=12)
    assert isinstance(resumed, FeedbackSource)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for i, losses in enumerate(rounds[3:], 3):
        assert same(resumed[i], streams[i])
        resumed.feedback(i, losses)
    assert torch.equal(resumed.state_dict()["losses"], whole.state_dict()["losses"])


def test_mappings_are_joined_by_name() -> None:
    def batch(value: float) -> TaskBatch:
        x = {"a": torch.full((2, 3), value), "b": torch.full((2, 3, 1), -value)}
        return TaskBatch(x, None, x, None)

    joined = concatenate([batch(1.0), batch(2.0)])
    assert joined.support_y is None
    assert joined.support_x["a"][:, 0].tolist() == [1, 1, 2, 2]
    assert joined.query_x["b"][:, 0, 0].tolist() == [-1, -1, -2, -2]


def test_what_does_not_fit_is_refused() -> None:
    tasks = PrioritizedTasks(source())
    with pytest.raises(ValueError, match=r"losses must have the shape \(8,\), one per task"):
        tasks.feedback(0, torch.zeros(3))
    tasks.feedback(0, random_losses())
    with pytest.raises(ValueError, match=r"index must be at least 1, .* got 0"):
        tasks.feedback(0, random_losses())
    with pytest.raises(ValueError, match=r"share must be a number in \[0, 1\), got 1"):
        PrioritizedTasks(source(), 1)
    with pytest.raises(ValueError, match="slots must be an integer of at least 8, got 3"):
        PrioritizedTasks(source(), slots=3)
    with pytest.raises(TypeError, match=r"expected a source with tasks and part"):
        PrioritizedTasks([1, 2])
    larger = PrioritizedTasks(source(), slots=20)
    for i in range(3):
        larger.feedback(i, random_losses())
    with pytest.raises(ValueError, match="the saved buffer has 20 tasks, more than slots=8"):
        tasks.load_state_dict(larger.state_dict())
