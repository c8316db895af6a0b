"""The batched engine with little memory: fewer tasks at once, the same results."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta import GSL, MAML, MetaLearner
from fastmeta.engines import BatchedEngine
from fastmeta.gradients import GradientBuffer
from tests.helpers.problems import MODULES, mlp, tasks


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


FAILURES: dict[str, Callable[[], Any]] = {
    "GPU": out_of_memory,
    "CPU": lambda: torch.empty(10**15),
}


def limit(monkeypatch: pytest.MonkeyPatch, max_tasks: int, fail: Callable[[], Any]) -> list[int]:
    """Makes more than ``max_tasks`` tasks run out of memory, and returns the attempted sizes."""
    tries = []
    extend = GradientBuffer.extend

    def short(self: GradientBuffer, grads: Any, count: int) -> None:
        if self.name == "outer":
            tries.append(count)
            if count > max_tasks:
                fail()
        extend(self, grads, count)

    monkeypatch.setattr(GradientBuffer, "extend", short)
    return tries


def learner_of(module: torch.nn.Module, engine: Any) -> MetaLearner:
    learner = GSL(
        copy.deepcopy(module), F.cross_entropy, inner_lr=0.3, inner_steps=2, engine=engine
    )
    for name in ("outer", "support"):
        getattr(learner._step.buffers, name).name = name
    return learner


def outcome(learner: MetaLearner, batch: Any) -> list[Tensor]:
    flat, result = learner.meta_gradient(batch)
    buffers = learner._step.buffers
    task_gradients = [b.filled.clone() for b in (buffers.outer, buffers.support)]
    return [flat, *task_gradients, *vars(result).values(), *learner.module.buffers()]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("max_tasks", [1, 2, 3])
def test_results_match_the_loop_engine(
    max_tasks: int, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = MODULES["running batch norm"]().double(), tasks(7)
    expected = outcome(learner_of(module, "loop"), batch)
    tries = limit(monkeypatch, max_tasks, FAILURES[failure])
    learner = learner_of(module, "batched")
    halves = [7, 3] if max_tasks == 3 else [7, 3, 1]
    size = halves[-1]
    with pytest.warns(RuntimeWarning, match=f"7 tasks at once: engine 'batched' runs {size} at"):
        found = outcome(learner, batch)
    assert tries == [*halves[:-1], *[size] * (7 // size), *([7 % size] if 7 % size else [])]
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-11)


def test_the_chunk_size_is_kept_and_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(mlp(), "batched")
    tries = limit(monkeypatch, 4, out_of_memory)
    with pytest.warns(RuntimeWarning, match="runs 4 at once"):
        learner.step(tasks(8, torch.float32))
    tries.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.step(tasks(6, torch.float32))
        learner.step(tasks(2, torch.float32))
        assert tries == [4, 2, 2]
        limit(monkeypatch, 2, out_of_memory)
        learner.step(tasks(4, torch.float32))  # even less memory: no second warning
    assert learner._step.engines._special[0].chunks.size == 2


def test_one_task_exceeds_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(MODULES["running batch norm"](), "batched")
    before = copy.deepcopy(learner.state_dict())
    limit(monkeypatch, 0, out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        learner.step(tasks(3, torch.float32))
    after = learner.state_dict()
    assert all(torch.equal(before["module"][k], v) for k, v in after["module"].items())


def test_out_of_memory_in_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        if short:
            short.pop()
            torch.empty(10**15)
        return F.cross_entropy(output, target)

    short = [True]
    batch = tasks(4)
    module = mlp().double()
    learner = MAML(copy.deepcopy(module), loss, inner_lr=0.3, engine="batched")
    with pytest.warns(RuntimeWarning, match="runs 2 at once"):
        found, _ = learner.meta_gradient(batch)
    expected, _ = MAML(module, F.cross_entropy, inner_lr=0.3, engine="loop").meta_gradient(batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_other_errors_are_not_treated_as_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(BatchedEngine, "_run", fail)
    learner = learner_of(mlp(), "batched")
    with pytest.raises(RuntimeError, match="something else"):
        learner.step(tasks(4, torch.float32))
    assert learner._step.engines._special[0].chunks.size is None
