"""Layers frozen by a pattern need no backward pass and store no activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.adaptation import SGD, Adam, LayerPattern, run_inner_loop
from fastmeta.metagrad import FirstOrder
from tests.adaptation.layer_pattern_reference import learner
from tests.helpers.problems import WAYS, mlp, tasks
from tests.helpers.reference_loops import LR


class Wall(torch.autograd.Function):
    """Raises an error if anything below it is differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise AssertionError("went below")


class Walled(nn.Module):
    """Three layers with a `Wall` before one of them."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, WAYS)])
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for k, layer in enumerate(self.layers):
            x = torch.tanh(layer(Wall.apply(x) if k == self.before else x))
        return x


@pytest.mark.parametrize("steps", ["{}", "{}/001", "001/{}"])
@pytest.mark.parametrize("pattern", ["001", "011", "010"])
def test_backward_stops_at_the_lowest_adapted_layer(pattern: str, steps: str) -> None:
    lowest = pattern.index("1")
    task = tasks(1, torch.float32)[0]
    for before in (1, 2):
        model = learner(Walled(before), steps.format(pattern), FirstOrder())
        if lowest >= before:
            model.adapt(task.support_x, task.support_y)
        else:
            with pytest.raises(AssertionError, match="went below"):
                model.adapt(task.support_x, task.support_y)


def test_no_activations_are_stored_below_the_lowest_adapted_layer() -> None:
    module, task = nn.Sequential(*(nn.Linear(n, n + 1) for n in (16, 17, 18))), tasks(1)[0]
    x, saved = task.support_x.flatten(1), []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    for pattern, widths in (("100", {16, 17, 18}), ("001", {18})):
        saved.clear()
        model = learner(module.double(), pattern, FirstOrder(), SGD(LR, 2))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            model.adapt(x, task.support_y)
        inputs = {shape[1] for shape in saved if shape[:1] == (len(x),) and len(shape) == 2} - {19}
        assert inputs <= widths
        assert 16 in inputs or pattern == "001"


def test_frozen_layers_and_their_state_are_unchanged() -> None:
    module, task = mlp().double(), tasks(1)[0]
    for inner in (SGD(LR, 3, momentum=0.9), Adam(LR, 3)):
        rule = LayerPattern(inner, "head")
        params = list(module.parameters())
        rule.bind(params, [n for n, _ in module.named_parameters()])

        def loss(p: Sequence[Tensor]) -> Tensor:
            values = dict(zip(dict(module.named_parameters()), p, strict=True))
            return F.cross_entropy(
                functional_call(module, values, (task.support_x,)), task.support_y
            )

        adapted = run_inner_loop(rule, loss, params, record=True)
        for k, (before, after) in enumerate(zip(params, adapted.fast, strict=True)):
            assert torch.equal(before, after) == (k < 2)
            assert after.requires_grad
            assert after is not before
        assert all((adapted.state[k::4][0] == 0).all() == (k < 2) for k in range(4))
        assert all(
            [g is None for g in grads] == [True, True, False, False]
            for grads in adapted.inner_grads
        )
