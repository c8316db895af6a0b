"""States in memory and inner steps computed again."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmeta import MetaLearner
from fastmeta.adaptation import SGD, Adam, Adaptation, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, Recursion
from fastmeta.trajectory import Replay, Trajectory
from fastmeta.trajectory.trajectory import branches
from tests.helpers.problems import loss, tasks

ADAPTATIONS: dict[str, Callable[[int], Adaptation]] = {
    "momentum": lambda steps: SGD(0.1, steps, momentum=0.9),
    "adam": lambda steps: Adam(0.01, steps, eps=1e-3),
    "meta-sgd": lambda steps: MetaSGD(0.1, steps, per="tensor", per_step=True),
}


def network() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(8, 5)).double()


@pytest.mark.parametrize("memory", ["sqrt", "log", 8])
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


class Counted(Trajectory):
    """Records how many states are held at once."""

    most = 0

    def _record_leaf(self, *args: Any) -> Any:
        found = super()._record_leaf(*args)
        # The last boundary is the state before the first recorded step.
        self.most = max(self.most, len(self._stack) - 1 + len(self._tape.steps))
        return found


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 27, 100])
@pytest.mark.parametrize("memory", ["all", "sqrt", "log", 14, 30])
def test_states_and_steps_are_bounded(memory: Any, steps: int) -> None:
    """`L` levels with `b` children: `L b` states and `L K` steps, besides those of the sweep."""
    b = branches(memory, steps)
    levels = max(1, math.ceil(round(math.log(steps) / math.log(b), 9))) if b > 1 else 1
    evaluations = 0

    def square(params: Any) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return (params[0] ** 2).sum()

    weight = torch.ones(3).double().requires_grad_()
    trajectory = Counted(SGD(0.01), Replay(square, {}, weight.device), memory)
    adapted = trajectory.run([weight], steps)
    torch.testing.assert_close(adapted.fast[0].detach(), weight.detach() * 0.98**steps)
    order: list[int] = []

    def through(step: Any, back: Any) -> list[Tensor]:
        order.append(step.number)
        torch.testing.assert_close(step.params[0].detach(), weight.detach() * 0.98**step.number)
        return [back.params[0] + 2 * back.grads[0]]

    v, _ = trajectory.reverse([torch.ones(3).double()], through)
    torch.testing.assert_close(v[0], torch.full((3,), 0.98**steps).double())
    assert order == list(reversed(range(steps)))
    assert evaluations <= levels * steps
    assert trajectory.most <= levels * b
    if isinstance(memory, int):
        assert levels * b <= memory


def test_too_few_states() -> None:
    with pytest.raises(ValueError, match="are too few for 1000 inner steps; expected at least 20"):
        branches(19, 1000)
    assert branches(20, 1000) == 4
    assert branches("sqrt", 17) == 5
    assert branches("all", 17) == 17
