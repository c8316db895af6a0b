"""Meta-batches of tensors, of mappings and of tasks of unequal sizes: contents and checks."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmeta import RaggedTaskBatch, Task, TaskBatch


def ids(*shape: int) -> Tensor:
    return torch.randint(9, shape)


def mapping(*shape: int) -> dict[str, Tensor]:
    return {"input_ids": ids(*shape, 5), "length": ids(*shape)}


def test_mappings_are_indexed_by_task() -> None:
    x = UserDict(mapping(3, 2))  # as tokenizers return
    batch = TaskBatch(x, {"a": ids(3, 2)}, mapping(3, 4), None)
    assert len(batch) == 3
    tasks = list(batch)
    assert len(tasks) == 3
    assert type(batch.support_x) is dict
    assert torch.equal(tasks[1].support_x["input_ids"], x["input_ids"][1])
    assert torch.equal(tasks[2].support_y["a"], batch.support_y["a"][2])
    assert tasks[0].query_y is None
    part = batch.part(1, 3)
    assert len(part) == 2
    assert torch.equal(part.query_x["length"], batch.query_x["length"][1:])
    assert part.query_x["length"]._base is batch.query_x["length"]
    moved = batch.to("meta")
    assert all(t.is_meta for t in (*moved.support_x.values(), *moved.query_x.values()))
    assert torch.equal(batch.map(lambda t: t + 1).support_y["a"], batch.support_y["a"] + 1)


INVALID: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    (
        ({"a": ids(3, 2), "b": ids(3)}, ids(3, 2), ids(3, 2), ids(3, 2)),
        ValueError,
        r"support_x\['a'\] and support_x\['b'\] and support_y must all begin with "
        r"\(tasks, examples\); got \(3, 2\) and \(3,\) and \(3, 2\)",
    ),
    (
        (ids(3, 2), ids(3, 2), mapping(3, 4), ids(3, 2)),
        ValueError,
        r"query_x\['input_ids'\] .* got \(3, 4, 5\) and \(3, 4\) and \(3, 2\)",
    ),
    ((ids(3, 2), None, mapping(2, 4), None), ValueError, "3 support tasks and 2 query tasks"),
    (({}, None, ids(3, 2), None), ValueError, "support_x holds no tensor; expected at least one"),
    ((None, None, ids(3, 2), None), ValueError, "support_x holds no tensor"),
    (
        (ids(3, 2), None, {"a": ids(3, 0)}, None),
        ValueError,
        r"query_x\['a'\] must hold at least one example per task; got \(3, 0\)",
    ),
    (
        ({"a": ids(3, 2), "use_cache": False}, None, ids(3, 2), None),
        TypeError,
        r"support_x\['use_cache'\] must be a tensor or a mapping of names to tensors, got bool",
    ),
    (([1, 2], None, ids(3, 2), None), TypeError, "support_x must be a tensor .*, got list"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), INVALID)
def test_invalid_meta_batches(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TaskBatch(*arguments)


def test_ragged_tasks() -> None:
    tasks = [Task(ids(n, 4), ids(n), UserDict(mapping(n + 1)), None) for n in (1, 3)]
    batch = RaggedTaskBatch(iter(tasks))
    assert len(batch) == 2
    assert torch.equal(batch[1].support_x, tasks[1].support_x)
    assert [len(task.query_x["length"]) for task in batch] == [2, 4]
    assert batch.query_y == [None, None]
    assert len(batch.part(1, 5)) == 1
    assert torch.equal(batch.part(1, 2)[0].support_y, tasks[1].support_y)
    assert all(task.support_x.is_meta for task in batch.to("meta"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ((ids(3), ids(2), ids(2), None), r"task 1: support_x and support_y must both begin with"),
        ((ids(3), ids(3), ids(0), None), r"task 1: query_x must hold at least one example"),
    ],
)
def test_invalid_ragged_tasks(task: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RaggedTaskBatch([Task(ids(3), ids(3), ids(2), ids(2)), Task(*task)])


def test_ids_follow_their_tasks() -> None:
    x, y = torch.randn(4, 3, 2), torch.zeros(4, 3, dtype=torch.int64)
    ids = torch.arange(8).reshape(4, 2)
    batch = TaskBatch(x, y, x, y, ids)
    assert torch.equal(batch.part(1, 3).ids, ids[1:3])
    assert torch.equal(batch.to("cpu").ids, ids)
    assert TaskBatch(x, y, x, y).part(0, 2).ids is None
    for wrong in (ids[:2], ids[:, 0]):
        with pytest.raises(ValueError, match=r"ids must have the shape \(tasks, m\) with 4 tasks"):
            TaskBatch(x, y, x, y, wrong)
