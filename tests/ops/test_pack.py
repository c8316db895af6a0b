"""Packing, unpacking, and in-place ops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmeta import FlatLayout, ops
from tests.helpers.op_cases import DTYPES

SHAPES = [(3, 4, 5), (), (0, 7), (1,), (31,), (33, 2)]


def parameters(tasks: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(s, dtype=torch.float64).to(dtype) for _ in range(tasks) for s in SHAPES]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 31])
def test_pack_and_unpack(tasks: int, dtype: torch.dtype) -> None:
    tensors = parameters(tasks, dtype)
    flat = ops.pack(tensors, tasks)
    each = len(SHAPES)
    for i in range(tasks):
        own = tensors[i * each : (i + 1) * each]
        assert torch.equal(flat[i], torch.cat([t.reshape(-1) for t in own]))
    targets = [torch.full_like(t, float("nan")) for t in tensors]
    ops.unpack_(targets, flat)
    assert all(torch.equal(a, b) for a, b in zip(targets, tensors, strict=True))


def test_pack_takes_any_strides() -> None:
    image = torch.randn(4, 3, 5, 6)
    tensors = [
        image.to(memory_format=torch.channels_last),
        image.permute(2, 0, 3, 1),
        image[:, 1, ::2, 1:],
        torch.randn(1, 3).expand(4, 3),
    ]
    assert torch.equal(ops.pack(tensors)[0], torch.cat([t.reshape(-1) for t in tensors]))


def test_pack_into_a_part_of_a_buffer() -> None:
    tensors = parameters(2)
    size = FlatLayout.of(tensors[: len(SHAPES)]).size
    buffer = torch.full((4, size + 3), -1.0)
    ops.pack_(buffer[1:3, 2 : size + 2], tensors)
    assert torch.equal(buffer[1:3, 2 : size + 2], ops.pack(tensors, 2))
    assert (buffer[0] == -1).all()
    assert (buffer[3] == -1).all()
    assert (buffer[:, :2] == -1).all()
    assert (buffer[:, -1] == -1).all()


def test_many_small_tensors() -> None:
    tensors = [torch.randn(k % 5) for k in range(3000)]
    assert torch.equal(ops.pack(tensors)[0], torch.cat(tensors))


def test_combine_into_gradients() -> None:
    g, coef = torch.randn(3, 103), torch.randn(3)
    out = [torch.full((4, 5), float("nan")), torch.empty(0), torch.full((83,), float("nan"))]
    ops.combine_(out, g, coef)
    assert torch.equal(torch.cat([o.reshape(-1) for o in out]), ops.combine(g, coef))


@pytest.mark.parametrize("alpha", ["number", "layers", "parameters"])
def test_step_in_place_equals_step(alpha: str) -> None:
    theta, grad = [torch.randn(3, 5), torch.randn(31)], [torch.randn(3, 5), torch.randn(31)]
    rates = {
        "number": 0.3,
        "layers": torch.rand(2),
        "parameters": [torch.rand(3, 5), torch.rand(31)],
    }[alpha]
    expected = ops.inner_step(theta, grad, rates)
    ops.inner_step_(theta, grad, rates)
    assert all(torch.equal(t, e) for t, e in zip(theta, expected, strict=True))


def test_frozen_and_unused_parameters_are_unchanged() -> None:
    theta = [torch.randn(4), torch.randn(5), torch.randn(6)]
    grad = [torch.randn(4), None, torch.randn(6)]
    new = ops.inner_step(theta, grad, 0.1, frozen=[True, False, False])
    assert torch.equal(new[0], theta[0])
    assert new[1] is theta[1]
    torch.testing.assert_close(new[2], theta[2] - 0.1 * grad[2])
    assert new[0].data_ptr() != theta[0].data_ptr()
    rates = [torch.rand(4), torch.rand(5), torch.rand(6)]
    few = ops.inner_step(theta, grad, rates)
    torch.testing.assert_close(few[2], theta[2] - rates[2] * grad[2])
    assert ops.inner_step(theta, [None] * 3, 0.1) == tuple(theta)


WRITES = {
    "pack_": lambda t: ops.pack_(t, [torch.zeros(3), torch.zeros(3)]),
    "unpack_": lambda t: ops.unpack_([t], torch.zeros(1, 6)),
    "combine_": lambda t: ops.combine_([t], torch.zeros(2, 6), torch.ones(2)),
    "inner_step_": lambda t: ops.inner_step_([t], [torch.ones(2, 3)], 0.1),
}


@pytest.mark.parametrize("name", WRITES)
def test_backward_detects_overwritten_tensors(name: str) -> None:
    x = torch.randn(2, 3, requires_grad=True)
    saved = x.exp()
    WRITES[name](saved.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


def test_step_through_compile_with_shared_tensors() -> None:
    x = torch.randn(4, requires_grad=True)
    torch._dynamo.reset()
    step = torch.compile(
        lambda t: ops.inner_step([t, t], [t, t * 2], 0.1)[1].sum(),
        fullgraph=True,
        backend="aot_eager",
    )
    (grad,) = torch.autograd.grad(step(x), x)
    torch.testing.assert_close(grad, torch.full((4,), 0.8))
