"""States in memory and inner steps computed again."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmeta import MetaLearner
from fastmeta.adaptation import SGD, Adam, Adaptation, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, Recursion
from fastmeta.trajectory import metagradient, states_kept, steps_run
from fastmeta.trajectory.schedule import runs_needed
from tests.helpers.problems import loss, tasks

ADAPTATIONS: dict[str, Callable[[int], Adaptation]] = {
    "momentum": lambda steps: SGD(0.1, steps, momentum=0.9),
    "adam": lambda steps: Adam(0.01, steps, eps=1e-3),
    "meta-sgd": lambda steps: MetaSGD(0.1, steps, per="tensor", per_step=True),
}


def network() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(8, 5)).double()


@pytest.mark.parametrize("memory", ["sqrt", "log", 4])
@pytest.mark.parametrize("name", ADAPTATIONS)
def test_learners_with_few_states(name: str, memory: Any) -> None:
    """Dropout masks, running statistics and learned rates are those of one pass."""
    module, batch, results = network(), tasks(2), []
    for metagrad in (Exact(), Recursion(memory=memory)):
        own = copy.deepcopy(module)
        torch.manual_seed(1)
        learner = MetaLearner(
            own,
            loss,
            adaptation=ADAPTATIONS[name](11),
            metagrad=metagrad,
            aggregation=Mean(),
        )
        gradient, result = learner.meta_gradient(batch)
        results.append([gradient, result.query_output, *own.buffers(), torch.rand(1)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def test_memory_of_recursion_is_checked() -> None:
    with pytest.raises(ValueError, match="graphs must be 0 or 1 with memory='sqrt'; got 2"):
        Recursion(graphs=2, memory="sqrt")
    with pytest.raises(ValueError, match="memory must be one of all, sqrt, log; got 'some'"):
        Recursion(memory="some")


class Watched(Adam):
    """Counts how many of the states that it returned exist at the same time."""

    def __init__(self) -> None:
        super().__init__(0.01, eps=1e-3)
        self.states: list[weakref.ref[Tensor]] = []

    def update(self, *args: Any) -> Any:
        params, state = super().update(*args)
        self.states.append(weakref.ref(params[0]))
        return params, state

    def alive(self) -> int:
        return sum(state() is not None for state in self.states)


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 27, 100])
@pytest.mark.parametrize("memory", ["all", "sqrt", "log", 3, 30])
@pytest.mark.parametrize("hvp", ["reverse", "forward"])
def test_states_and_steps_are_as_documented(memory: Any, steps: int, hvp: Any) -> None:
    """`s` states exist at most, and the inner steps run are the documented number."""
    weight, optimizer = torch.ones(3).double(), Watched()
    evaluations = most = 0

    def inner(params: Tensor, _meta: None, target: Tensor) -> Tensor:
        nonlocal evaluations, most
        evaluations += 1
        most = max(most, optimizer.alive())
        return ((params - target) ** 4).sum()

    metagradient(
        inner,
        lambda params, _: params.sum(),
        weight,
        None,
        torch.randn(steps, 3).double().unbind(),
        optimizer=optimizer,
        memory=memory,
        hvp=hvp,
    )
    states = states_kept(memory, steps)
    # The initial parameters are not the optimizer's; the final ones are kept for the result.
    assert most <= states
    if hvp == "reverse":
        assert evaluations == steps_run(memory, steps) + steps  # one repetition each in the sweep
    else:
        assert evaluations <= (runs_needed(states, steps) + 1) * steps


def test_formulas() -> None:
    for steps in (1, 2, 3, 10, 11, 32, 100, 1000):
        few, most = states_kept("sqrt", steps), states_kept("log", steps)
        assert few == min(math.ceil(math.sqrt(steps)) + 1, steps)
        assert most < 2 + math.log2(steps)
        assert states_kept("all", steps) == steps_run("all", steps) == steps
        assert runs_needed(few, steps) <= 3
        assert steps_run("sqrt", steps) < 2.5 * steps
        assert steps_run("log", steps) <= most * steps
    assert [states_kept(m, 32) for m in ("sqrt", "log", 6)] == [7, 4, 6]
    assert [steps_run(m, 32) for m in ("all", "sqrt", 6, "log")] == [32, 61, 69, 94]
    assert states_kept("log", 1000) == 7


def test_fewest_steps() -> None:
    """No other division of a run needs fewer inner steps with as many states."""

    @cache
    def best(steps: int, states: int, again: bool) -> float:
        if steps <= states:
            return steps - again
        if states == 1:
            return math.inf
        return min(
            first + best(steps - first, states - 1, again) + best(first, states, True)
            for first in range(1, steps)
        )

    for steps in range(1, 25):
        for states in range(2, 7):
            assert steps_run(states, steps) == best(steps, states, False)
