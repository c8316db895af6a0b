"""The layers that an optimizer finds among its parameters."""

from __future__ import annotations

import pytest
from torch import nn

from fastmeta import TaskOptimizer
from tests.helpers.problems import MODULES
from tests.optim.test_inner_gradients import similarity


def chosen(opt: TaskOptimizer, model: nn.Module) -> set[str]:
    """Names of the parameters whose gradients keep their graph."""
    params = opt._params()
    grads = opt.task().inner_gradients(sum(p.pow(3).sum() for p in params))
    kept = {p for p, g in zip(params, grads, strict=True) if g.requires_grad}
    return {n for n, p in model.named_parameters() if p in kept}


def test_layers_in_parameter_groups() -> None:
    model = MODULES["batch norm"]()
    named, head = list(model.named_parameters()), {"4.weight", "4.bias"}
    matrices = [(n, p) for n, p in named if p.dim() > 1]
    others = [(n, p) for n, p in named if p.dim() < 2]
    split = [{"params": matrices, "weight_decay": 0.1}, {"params": others}]
    assert chosen(similarity(named), model) == head
    assert chosen(similarity(split), model) == head
    assert chosen(similarity(split, layers="10"), model) == {n for n, _ in named} - head
    assert (
        chosen(similarity([{"params": m.parameters()} for m in (model[:4], model[4])]), model)
        == head
    )
    backwards = [{"params": list(model[4].named_parameters(prefix="4"))}, {"params": named[:-2]}]
    assert chosen(similarity(backwards, layers="4"), model) == head
    unnamed = [{"params": [p for _, p in part]} for part in (matrices, others)]
    with pytest.raises(ValueError, match=r"group 1 begins with a bias.*model\.named_parameters"):
        similarity(unnamed)
    opt = similarity([p for _, p in matrices])
    with pytest.raises(ValueError, match="group 1 begins with a bias"):
        opt.add_param_group(unnamed[1])
    assert len(opt.param_groups) == 1
    model[4].requires_grad_(False)
    assert chosen(similarity(named), model) == {n for n, _ in named} - head
