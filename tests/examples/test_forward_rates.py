"""Derivatives with respect to learning rates, forwards and backwards."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from examples import forward_rates as example
from fastmeta import TaskBatch
from fastmeta.tuning.memory import peak_bytes

Params = dict[str, Tensor]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> tuple[Params, Params, TaskBatch]:
    """Rates, initial parameters and tasks, in float64."""
    shapes = {name: p.shape for name, p in example.MODEL.named_parameters()}
    start = {n: 0.3 * torch.randn(4, *s, dtype=torch.float64) for n, s in shapes.items()}
    rates = {n: torch.tensor(0.05, dtype=torch.float64).log() for n in start}
    examples = torch.randn(4, 4, 6, 1, dtype=torch.float64)
    return rates, start, TaskBatch(*examples)


def test_forward_is_reverse(case: tuple[Params, Params, TaskBatch]) -> None:
    forward, reverse = (method(*case, 7) for method in (example.forward, example.reverse))
    for name, found in forward.items():
        torch.testing.assert_close(found, reverse[name], rtol=1e-10, atol=1e-10)


def test_one_direction(case: tuple[Params, Params, TaskBatch]) -> None:
    """All signs are drawn alike, and the product with them is the slope along them."""
    exact = example.reverse(*case, 2)
    for _ in range(3):
        found = example.one_direction(*case, 2)
        slope = next(iter(found.values())).abs()
        along = {name: value / slope for name, value in found.items()}
        expected = sum(exact[name] * sign for name, sign in along.items())
        torch.testing.assert_close(abs(expected), slope)
        torch.testing.assert_close(found, {n: expected * sign for n, sign in along.items()})


def test_memory_is_flat(case: tuple[Params, Params, TaskBatch]) -> None:
    for method in (example.forward, example.one_direction):
        method(*case, 2)
        short, long = (
            peak_bytes(partial(method, *case, steps), torch.device("cpu")) for steps in (4, 12)
        )
        assert long == short
