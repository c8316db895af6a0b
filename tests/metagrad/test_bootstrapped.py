"""The distance to a bootstrapped target, against plain autograd and its limits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adaptation, LayerPattern
from fastmeta.aggregation import Mean
from fastmeta.learners import build
from fastmeta.metagrad import (
    Bootstrapped,
    CentralDifference,
    ClassWeights,
    Exact,
    FirstOrder,
    Implicit,
    MetaGradient,
    Recursion,
    Reptile,
)
from tests.helpers.problems import convolution, loss, mlp, tasks

LR, BOOT_LR, WEIGHT = 0.3, 0.1, 2.0


def learner(
    module: nn.Module,
    metagrad: MetaGradient,
    adaptation: Adaptation | None = None,
    **options: Any,
) -> MetaLearner:
    return MetaLearner(
        module,
        loss,
        adaptation=SGD(LR, 2) if adaptation is None else adaptation,
        metagrad=metagrad,
        aggregation=Mean(),
        **options,
    )


def reference(module: nn.Module, batch: TaskBatch, first: bool, head: bool = False) -> Tensor:
    """Two inner steps, three further ones on the query loss, and the norm of the difference."""
    params = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    moved = list(params)[2:] if head else list(params)
    total = torch.zeros((), dtype=torch.float64)
    for task in batch:
        fast = dict(params)
        for _ in range(2):
            value = loss(functional_call(module, fast, (task.support_x,)), task.support_y)
            grads = torch.autograd.grad(value, [fast[n] for n in moved], create_graph=True)
            for n, g in zip(moved, grads, strict=True):
                fast[n] = fast[n] - LR * (g.detach() if first else g)
        target = {n: p.detach() for n, p in fast.items()}
        for _ in range(3):
            leaves = {n: target[n].requires_grad_() for n in target}
            value = loss(functional_call(module, leaves, (task.query_x,)), task.query_y)
            grads = torch.autograd.grad(value, [leaves[n] for n in moved])
            target = {n: p.detach() for n, p in leaves.items()}
            for n, g in zip(moved, grads, strict=True):
                target[n] = target[n] - BOOT_LR * g
        gap = torch.cat([(target[n] - fast[n]).flatten() for n in fast]).norm()
        value = loss(functional_call(module, fast, (task.query_x,)), task.query_y)
        total = total + (value + WEIGHT * gap) / len(batch)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(params.values()))])


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("inner", [Exact(), Recursion(graphs=0), FirstOrder()])
def test_meta_gradients_are_those_of_plain_autograd(inner: MetaGradient, engine: str) -> None:
    module, batch = mlp().double(), tasks()
    model = learner(module, Bootstrapped(inner, BOOT_LR, 3, WEIGHT), engine=engine)
    found, result = model.meta_gradient(batch)
    expected = reference(module, batch, isinstance(inner, FirstOrder))
    assert (found - expected).norm() <= 1e-9 * expected.norm()
    plain, other = learner(module, inner).meta_gradient(batch)
    assert (found - plain).norm() > 1e-2 * plain.norm()
    # Losses in results are without the distance.
    torch.testing.assert_close(result.query_loss, other.query_loss, rtol=1e-12, atol=0)


def test_layers_that_the_inner_loop_leaves_do_not_move_in_the_target() -> None:
    module, batch = mlp().double(), tasks()
    adaptation = LayerPattern(SGD(LR, 2), "head")
    model = learner(module, Bootstrapped(Exact(), BOOT_LR, 3, WEIGHT), adaptation)
    found, _ = model.meta_gradient(batch)
    expected = reference(module, batch, first=False, head=True)
    assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("off", [{"steps": 0}, {"weight": 0.0}])
@pytest.mark.parametrize(
    "inner",
    [Exact(), Recursion(), FirstOrder(), CentralDifference(), Implicit(), ClassWeights(Exact())],
)
def test_without_the_term_it_is_the_other_meta_gradient_bit_for_bit(
    inner: MetaGradient, off: dict[str, Any]
) -> None:
    batch, module = tasks(dtype=torch.float32), mlp()
    plain, other = (
        learner(copy.deepcopy(module), m, engine="loop").meta_gradient(batch)
        for m in (inner, Bootstrapped(inner, **off))
    )
    assert torch.equal(plain[0], other[0])
    assert torch.equal(plain[1].query_loss, other[1].query_loss)


def test_maml_is_gradncp_that_prunes_nothing_and_has_no_target() -> None:
    batch, module = tasks(dtype=torch.float32), mlp()
    batch = TaskBatch(batch.query_x, batch.query_y, batch.query_x, batch.query_y)
    maml = build("maml", copy.deepcopy(module), loss, inner_lr=LR, inner_steps=3, engine="loop")
    off = build(
        "gradncp",
        module,
        loss,
        inner_lr=LR,
        inner_steps=3,
        adaptation_options={"keep": 1.0},
        metagrad_options={"weight": 0.0},
    )
    for _ in range(3):
        maml.step(batch)
        off.step(batch)
    for p, q in zip(maml.module.parameters(), module.parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(maml.predict(batch), off.predict(batch))


def test_a_target_that_is_reached_has_no_gradient() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).double()
    x = torch.randn(1, 4, 1, 4, 4, dtype=torch.float64)
    y = module(x[0])[None].detach()
    model = MetaLearner(
        module,
        F.mse_loss,
        adaptation=SGD(0.1, 1),
        metagrad=Bootstrapped(Exact()),
        aggregation=Mean(),
    )
    found, _ = model.meta_gradient(TaskBatch(x, y, x, y))
    assert (found == 0).all()


def test_further_steps_leave_running_statistics_and_generators_as_they_are() -> None:
    torch.manual_seed(0)
    module, batch = convolution(running_statistics=True).double(), tasks()
    plain = learner(copy.deepcopy(module), Exact())
    boot = learner(module, Bootstrapped(Exact(), steps=2))
    for model in (plain, boot):
        model.meta_gradient(batch)
    for mine, other in zip(module.buffers(), plain.module.buffers(), strict=True):
        assert torch.equal(mine, other)
    noisy = nn.Sequential(nn.Dropout(0.5), mlp())
    after = []
    for metagrad in (FirstOrder(), Bootstrapped(FirstOrder())):
        torch.manual_seed(1)
        learner(noisy, metagrad).meta_gradient(tasks(1, torch.float32))
        after.append(torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(*after)


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"metagrad.Reptile has none; expected another"):
        Bootstrapped(Reptile())
    for name, value in {"lr": 0, "steps": -1, "weight": -1.0}.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            Bootstrapped(Exact(), **{name: value})
