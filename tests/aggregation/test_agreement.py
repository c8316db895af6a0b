"""Gradient agreement and the mean as aggregations of a learner."""

from __future__ import annotations

import torch

import fastmeta
from fastmeta import metagrad, ops
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from tests.helpers.problems import loss, mlp, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients, support_gradients


def test_gradient_agreement_of_meta_gradients() -> None:
    module, batch = mlp().double(), tasks(4)
    u = reference_meta_gradients(module, batch, 1, second_order=True)
    dots = u @ u.sum(0)
    learner = fastmeta.MetaLearner(
        module,
        loss,
        adaptation=SGD(LR),
        metagrad=metagrad.Exact(),
        aggregation=fastmeta.aggregation.GradientAgreement(of="meta"),
    )
    torch.testing.assert_close(learner.meta_gradient(batch)[0], (dots / dots.abs().sum()) @ u)


def test_gradient_agreement_of_inner_gradients() -> None:
    module, batch = mlp().double(), tasks(4)
    v = support_gradients(module, batch, 2)
    dots = v @ v.sum(0)
    learner = fastmeta.MetaLearner(
        module,
        loss,
        adaptation=SGD(LR, 2),
        metagrad=metagrad.FirstOrder(),
        aggregation=fastmeta.aggregation.GradientAgreement(),
    )
    u = reference_meta_gradients(module, batch, 2, second_order=False)
    torch.testing.assert_close(learner.meta_gradient(batch)[0], (dots / dots.abs().sum()) @ u)


def test_mean_is_combined_in_one_pass() -> None:
    rows = torch.randn(3, 20)
    found = ops.combine(rows, Mean().weights(fastmeta.gradients.TaskGradients(rows)))
    torch.testing.assert_close(found, rows.mean(0))
