"""Calls of a module with other parameters, where a submodule is found under two names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmeta import FOMAML, MAML
from fastmeta.functional._functional_call import call_with
from tests.helpers.problems import WAYS, loss, tasks


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
        self.second = self.first
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.first[0].weight
        self.head = nn.Linear(16, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.tanh(self.first(x.flatten(1))))
        return self.head(torch.tanh(self.tied(x)))


def test_the_result_is_that_of_a_module_with_these_values() -> None:
    module, other, x = Repeated().double(), Repeated().double(), torch.randn(5, 16).double()
    params, buffers = dict(other.named_parameters()), dict(other.named_buffers())
    values = params | {name: b.clone() for name, b in buffers.items()}
    torch.testing.assert_close(call_with(module, values, (x,)), other(x), rtol=0, atol=0)
    for name, buffer in other.named_buffers():  # updated by the call
        torch.testing.assert_close(values[name], buffer, rtol=0, atol=0)
    params["first.0.weight"] = torch.zeros_like(params["first.0.weight"])
    with torch.no_grad():
        other.first[0].weight.zero_()
    torch.testing.assert_close(call_with(module, params, (x,)), other(x), rtol=0, atol=0)


def test_the_module_keeps_its_parameters() -> None:
    for method in (FOMAML, MAML):
        for fuse in (True, False):
            module = Repeated().double()
            before = {id(t) for t in [*module.parameters(), *module.buffers()]}
            weights = module.first[0].weight
            method(module, loss, inner_lr=0.1, inner_steps=2, fuse=fuse).step(tasks())
            assert {id(t) for t in [*module.parameters(), *module.buffers()]} == before
            assert module.first[0].weight is weights is module.tied.weight
