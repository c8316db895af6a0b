"""Meta-RKHS-I in first-order form, against the objective of the paper by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import FirstOrder, JointFirstOrder
from tests.helpers.problems import loss, mlp, tasks


def gradient(module: nn.Module, lr: float, batch: TaskBatch) -> Tensor:
    model = MetaLearner(
        module,
        loss,
        adaptation=SGD(lr, 1),
        metagrad=JointFirstOrder(),
        aggregation=Mean(),
    )
    return model.meta_gradient(batch)[0]


def objective(module: nn.Module, alpha: float, batch: TaskBatch) -> Tensor:
    """The gradient of the mean over tasks of `L - alpha |grad L|^2`."""
    params = dict(module.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for task in batch:
        pairs = (task.support_x, task.support_y), (task.query_x, task.query_y)
        joint = sum(loss(functional_call(module, params, x), y) for x, y in pairs) / 2
        grads = torch.autograd.grad(joint, list(params.values()), create_graph=True)
        total = total + joint - alpha * sum(g.square().sum() for g in grads)
    found = torch.autograd.grad(total / len(batch), list(params.values()))
    return torch.cat([g.flatten() for g in found])


def test_it_is_the_gradient_of_the_objective_up_to_second_order_in_the_rate() -> None:
    module, batch = mlp().double(), tasks()
    joint = objective(module, 0.0, batch)
    torch.testing.assert_close(gradient(module, 1e-12, batch), joint, rtol=1e-9, atol=1e-9)
    errors = []
    for lr in (1e-2, 5e-3):
        paper = objective(module, lr / 2, batch)
        errors.append((gradient(module, lr, batch) - paper).norm().item())
        assert errors[-1] < 0.2 * (joint - paper).norm()  # the term of alpha is there
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_it_is_fomaml_on_tasks_whose_support_set_is_the_query_set() -> None:
    module, batch = mlp().double(), tasks()
    x, y = batch.support_x, batch.support_y
    same = TaskBatch(x, y, x, y)
    adaptation = MetaSGD(0.3, 2)
    joint, split = (
        MetaLearner(module, loss, adaptation=adaptation, metagrad=metagrad, aggregation=Mean())
        for metagrad in (JointFirstOrder(), FirstOrder())
    )
    found, result = joint.meta_gradient(same)
    expected, other = split.meta_gradient(same)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(result.query_loss, other.query_loss)
    torch.testing.assert_close(result.support_loss, other.support_loss)


def test_losses_are_those_of_the_sets_and_engines_agree() -> None:
    module, batch = mlp().double(), tasks()
    found = []
    for engine in ("loop", "batched"):
        model = MetaLearner(
            module,
            loss,
            adaptation=SGD(0.1, 2),
            metagrad=JointFirstOrder(),
            aggregation=Mean(),
            engine=engine,
        )
        flat, result = model.meta_gradient(batch)
        before = [loss(module(x), y) for x, y in zip(batch.support_x, batch.support_y, strict=True)]
        torch.testing.assert_close(result.support_loss, torch.stack(before).detach())
        after = [loss(o, y) for o, y in zip(result.query_output, batch.query_y, strict=True)]
        torch.testing.assert_close(result.query_loss, torch.stack(after))
        found.append(flat)
    torch.testing.assert_close(*found)
