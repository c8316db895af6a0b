"""Results of meta-steps."""

from __future__ import annotations

import torch

from fastmeta.engines import StepResult


def test_the_repr_of_a_result_is_short() -> None:
    losses = torch.tensor([1.0, 2.0])
    result = StepResult(losses, losses / 4, torch.zeros(2, 5, 5))
    assert repr(result) == "StepResult(2 tasks, support loss 1.5, query loss 0.375)"
