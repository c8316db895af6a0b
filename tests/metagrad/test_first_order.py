"""FOMAML against plain autograd in float64."""

from __future__ import annotations

import pytest
from torch import nn

from fastmeta import FOMAML
from tests.helpers.problems import loss, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_fomaml_is_first_order(module: nn.Module, steps: int) -> None:
    batch = tasks()
    expected = reference_meta_gradients(module, batch, steps, second_order=False).mean(0)
    found, _ = FOMAML(module, loss, inner_lr=LR, inner_steps=steps).meta_gradient(batch)
    assert (found - expected).norm() <= 1e-12 * expected.norm()
