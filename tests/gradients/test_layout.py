"""The layout of packed parameters and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmeta import FlatLayout, ops

SHAPES = [(3, 4, 5), (), (0, 7), (1,), (31,), (33, 2)]


def test_backward_writes_packed_gradients() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    params = list(model.parameters())
    layout = FlatLayout.of(params)
    rows = torch.zeros(2, layout.size)
    data = torch.randn(2, 4, 5)
    for row, x in zip(rows, data, strict=True):
        layout.attach_grads(params, row)
        model(x).square().sum().backward()
        assert all(p.grad.untyped_storage().data_ptr() == rows.data_ptr() for p in params)
    expected = [torch.autograd.grad(model(x).square().sum(), params) for x in data]
    assert torch.equal(rows, ops.pack([g for task in expected for g in task], 2))


def test_attach_grads_refuses_another_list() -> None:
    layout = FlatLayout.of([torch.zeros(3)])
    with pytest.raises(ValueError, match="make a new layout"):
        layout.attach_grads([torch.zeros(4)], torch.zeros(3))
    with pytest.raises(ValueError, match="last dimension of 3"):
        layout.views(torch.zeros(2, 4))


def test_views_share_memory_and_keep_the_task_dimension() -> None:
    layout = FlatLayout.of([torch.randn(shape) for shape in SHAPES])
    flat = torch.randn(3, layout.size)
    views = layout.views(flat)
    assert [v.shape for v in views] == [(3, *s) for s in SHAPES]
    assert torch.equal(ops.pack([v[i] for i in range(3) for v in views], 3), flat)
    views[1][2] = 7.0
    assert flat[2, 60] == 7.0
