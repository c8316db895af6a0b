"""The multi-step loss against plain autograd: weights, derivative order, state, limits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adam, Adaptation, MetaSGD
from fastmeta.aggregation import GradientAgreement, Mean
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, MultiStep
from tests.helpers.problems import MODULES, loss, mlp, tasks

LR, STEPS = 0.2, 3
ADAPTATIONS: dict[str, Callable[[], Adaptation]] = {
    "sgd": lambda: SGD(LR, STEPS),
    "momentum": lambda: SGD(LR, STEPS, momentum=0.7),
    "adam": lambda: Adam(LR, STEPS, eps=1e-2),
    "learned rates": lambda: MetaSGD(LR, STEPS),
}


def learner(
    module: nn.Module, metagrad: MetaGradient, adaptation: Adaptation | None = None, **options: Any
) -> MetaLearner:
    rest = {"aggregation": Mean(), "engine": "loop", **options}
    return MetaLearner(
        module, loss, adaptation=adaptation or SGD(LR, STEPS), metagrad=metagrad, **rest
    )


def update_of(kind: str, step: int, grad: Tensor, memory: list[Tensor]) -> Tensor:
    """The update that an inner optimizer subtracts from a parameter; changes its state."""
    if kind == "momentum":
        memory[0] = 0.7 * memory[0] + grad
        return LR * memory[0]
    if kind == "adam":
        memory[0] = 0.9 * memory[0] + 0.1 * grad
        memory[1] = 0.999 * memory[1] + 0.001 * grad**2
        mean, square = memory[0] / (1 - 0.9**step), memory[1] / (1 - 0.999**step)
        return LR * mean / (square.sqrt() + 1e-2)
    return LR * grad


def reference_gradients(
    module: nn.Module, batch: TaskBatch, kind: str, weights: list[float], first_order: bool
) -> Tensor:
    params = dict(module.named_parameters())
    rates = [torch.ones_like(p).requires_grad_() for p in params.values()]
    sources = [*params.values(), *(rates if kind == "learned rates" else [])]
    total = 0
    for task in batch:
        fast = dict(params)
        memories = [[torch.zeros_like(p), torch.zeros_like(p)] for p in params.values()]
        for k, weight in enumerate(weights):
            value = loss(functional_call(module, fast, (task.support_x,)), task.support_y)
            grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            if first_order:
                grads = [g.detach() for g in grads]
            fast = {
                n: p - rate * update_of(kind, k + 1, g, memory)
                for (n, p), rate, g, memory in zip(
                    fast.items(), rates, grads, memories, strict=True
                )
            }
            output = functional_call(module, fast, (task.query_x,))
            total = total + weight * loss(output, task.query_y)
    found = torch.autograd.grad(total / len(batch), sources)
    # The rates above are factors of LR.
    return torch.cat([g.flatten() / (LR if i >= len(params) else 1) for i, g in enumerate(found)])


def authors_weights(step: int, anneal: int) -> list[float]:
    """Antoniou's get_per_step_loss_importance_vector, with meta-steps in place of epochs."""
    if step >= anneal:
        return [0.0] * (STEPS - 1) + [1.0]
    decay, floor = 1 / STEPS / anneal, 0.03 / STEPS
    early = max(1 / STEPS - step * decay, floor)
    last = min(1 / STEPS + step * (STEPS - 1) * decay, 1 - (STEPS - 1) * floor)
    return [early] * (STEPS - 1) + [last]


@pytest.mark.parametrize("step", [0, 37, 99, 100])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    ("kind", "engine"),
    [*product(ADAPTATIONS, ["loop"]), *product(["sgd", "momentum", "adam"], ["batched"])],
)
def test_gradients_are_those_of_plain_autograd(
    kind: str, engine: str, first_order: bool, step: int
) -> None:
    module, batch = mlp().double(), tasks()
    metagrad = MultiStep(100, 1000 if first_order else 0)
    weights = authors_weights(step, 100)
    assert sum(weights) == pytest.approx(1)
    expected = reference_gradients(module, batch, kind, weights, first_order)
    model = learner(module, metagrad, ADAPTATIONS[kind](), engine=engine)
    model.steps_taken = step
    found, result = model.meta_gradient(batch)
    assert (found - expected).norm() <= 1e-9 * expected.norm()
    _, last = learner(module, Exact(), ADAPTATIONS[kind]()).meta_gradient(batch)
    torch.testing.assert_close(vars(result), vars(last))


@pytest.mark.parametrize("order", [Exact, FirstOrder])
@pytest.mark.parametrize("name", MODULES)
def test_only_the_last_step_is_bitwise_maml(name: str, order: type[MetaGradient]) -> None:
    module, batch, seen = MODULES[name]().double(), tasks(), []
    first_order_steps = 1 if order is FirstOrder else 0
    for metagrad in (order(), MultiStep(0, first_order_steps)):
        own = copy.deepcopy(module)
        flat, result = learner(own, metagrad, aggregation=GradientAgreement()).meta_gradient(batch)
        seen.append([flat, *vars(result).values(), *own.buffers()])
    assert all(map(torch.equal, *seen))


@pytest.mark.parametrize("steps", [0, 1])
def test_at_most_one_inner_step_needs_no_weights(steps: int) -> None:
    module, batch = mlp().double(), tasks()
    found = [
        learner(module, metagrad, SGD(LR, steps)).meta_gradient(batch)[0]
        for metagrad in (Exact(), MultiStep(10))
    ]
    assert torch.equal(*found)


def test_order_and_weights_follow_the_schedule_across_a_resume() -> None:
    module, batch = mlp().double(), tasks()
    first, exact = (learner(module, m).meta_gradient(batch)[0] for m in (FirstOrder(), Exact()))
    last = {"first": first, "exact": exact}
    names, model = [], learner(module, MultiStep(3, 5))
    for _ in range(7):
        resumed = learner(module, MultiStep(3, 5))  # simulates a new process for each meta-step
        resumed.load_state_dict(copy.deepcopy(model.state_dict()))
        model = resumed
        found, _ = model.meta_gradient(batch)
        names.append(next((n for n, g in last.items() if torch.equal(found, g)), "several"))
    assert names == ["several"] * 3 + ["first"] * 2 + ["exact"] * 2


def test_a_restored_learner_continues_exactly() -> None:
    batches = [tasks(2, torch.float32) for _ in range(6)]
    module = mlp()

    def fresh() -> MetaLearner:
        adaptation = MetaSGD(LR, STEPS, per="tensor", per_step=True)
        return learner(copy.deepcopy(module), MultiStep(5, 2), adaptation)

    whole, half, resumed = fresh(), fresh(), fresh()
    for batch in batches:
        whole.step(batch)
    for batch in batches[:3]:
        half.step(batch)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in batches[3:]:
        resumed.step(batch)
    for one, other in zip(whole._learned, resumed._learned, strict=True):
        assert torch.equal(one, other)


@settings(max_examples=10)
@given(
    order=st.permutations(range(4)),
    times=st.integers(1, 3),
    step=st.integers(0, 30),
    first=st.booleans(),
)
def test_invariant_to_order_and_repetition_of_tasks(
    order: list[int], times: int, step: int, first: bool
) -> None:
    module, batch = mlp().double(), tasks(4)
    again = TaskBatch(*(part[order * times] for part in vars(batch).values()))
    found = []
    for some in (batch, again):
        metagrad = MultiStep(20, 40 * first)
        metagrad.step = step
        found.append(learner(module, metagrad).meta_gradient(some)[0])
    assert (found[1] - found[0]).norm() <= 1e-12 * found[0].norm()


@pytest.mark.parametrize("steps", [(-1, 0), (0, -1)])
def test_invalid_options(steps: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="_steps must be an integer of at least 0"):
        MultiStep(*steps)
