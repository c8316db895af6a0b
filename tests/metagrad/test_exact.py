"""MAML against plain autograd in float64."""

from __future__ import annotations

import pytest
from torch import nn

from fastmeta import MAML
from tests.helpers.problems import loss, mlp, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_maml_is_exact(module: nn.Module, steps: int) -> None:
    batch = tasks()
    expected = reference_meta_gradients(module, batch, steps, second_order=True).mean(0)
    found, _ = MAML(module, loss, inner_lr=LR, inner_steps=steps).meta_gradient(batch)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_second_derivatives_contribute() -> None:
    module, batch = mlp().double(), tasks()
    exact, first = (
        reference_meta_gradients(module, batch, 3, order).mean(0) for order in (True, False)
    )
    assert (exact - first).norm() > 0.01 * exact.norm()
