"""A small MLP, and learners of it with the MLP engine and with the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastmeta import MetaLearner, TaskBatch
from tests.helpers.problems import WAYS


def mlp(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), activation(), nn.Linear(8, WAYS))


def both(make: Callable[..., MetaLearner], module: nn.Module, loss: Any, batch: TaskBatch) -> None:
    """Gradient and results of both engines, each with a learner of its own."""
    (expected, by_loop), (found, by_mlp) = (
        make(module, loss, inner_lr=0.2, inner_steps=3, engine=engine).meta_gradient(batch)
        for engine in ("loop", "mlp")
    )
    assert (found - expected).norm() <= 1e-10 * expected.norm()
    for name in ("support_loss", "query_loss", "query_output"):
        torch.testing.assert_close(getattr(by_mlp, name), getattr(by_loop, name))
