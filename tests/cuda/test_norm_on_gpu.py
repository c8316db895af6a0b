"""The BatchNorm-ReLU-pool block on a GPU against the CPU."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from fastmeta.functional._fusion import fused
from gpu import needs_gpu, replayed, without_waiting
from norm_cases import grouped_norm_inputs
from torch import Tensor, nn

from fastmeta import ops

pytestmark = needs_gpu

DEVICE = "cuda"
EPS = 1e-3
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5}
SIZES = [(1, 3, 5, 7, 7), (2, 25, 64, 14, 14), (3, 9, 32, 42, 42), (1, 8, 3, 500, 500)]
POOL = pytest.mark.parametrize("pool", [False, True], ids=["plain", "pool"])


def results(tensors: list[Tensor], pool: bool) -> list[Tensor]:
    """All outputs, the gradients of the first, and theirs."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    z, mean, var = ops.batch_norm_relu(*leaves, EPS, pool=pool)
    dz = (torch.arange(z.numel(), device=z.device) % 7 - 3).to(z).view(z.shape).requires_grad_()
    first = torch.autograd.grad(z, leaves, dz, create_graph=True)
    value = sum((g * g.detach()).mean() for g in first)
    return [z, mean, var, *first, *torch.autograd.grad(value, [dz, *leaves[:2]])]


def close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for f, e in zip(found, expected, strict=True):
        assert f.device.type == DEVICE
        assert f.dtype == dtype
        bound = TOLERANCE[dtype] * (e.abs().max() + 1e-3)
        assert (f.cpu().double() - e).abs().max() <= bound


@POOL
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_derivatives(size: tuple[int, ...], dtype: torch.dtype, pool: bool) -> None:
    groups, *shape = size
    tensors = grouped_norm_inputs(groups, tuple(shape), dtype, EPS)
    expected = results([t.double() for t in tensors], pool)
    on_gpu = [t.to(DEVICE) for t in tensors]
    found = results(on_gpu, pool)
    close(found, expected, dtype)
    again = results(on_gpu, pool)
    assert all(torch.equal(f, a) for f, a in zip(found, again, strict=True))


@POOL
def test_images_that_are_not_aligned(pool: bool) -> None:
    tensors = grouped_norm_inputs(2, (3, 8, 6, 7), torch.float32, EPS)
    x, *others = (t.to(DEVICE) for t in tensors)
    memory = torch.empty(x.numel() + 1, device=DEVICE)[1:]
    shifted = memory.view(6, 6, 7, 8).permute(0, 3, 1, 2).copy_(x)
    assert shifted.data_ptr() % 16
    found = results([shifted, *others], pool)
    assert all(torch.equal(f, e) for f, e in zip(found, results([x, *others], pool), strict=True))


@POOL
def test_forward_mode_and_vmap(pool: bool) -> None:
    tensors = grouped_norm_inputs(3, (4, 8, 6, 7), torch.float64, EPS)
    x, weight, bias = (t.to(DEVICE) for t in tensors)

    def tangent(*t: Tensor) -> Tensor:
        return torch.func.jvp(
            lambda *t: ops.batch_norm_relu(*t, EPS, pool=pool)[0], t, tuple(p.cos() for p in t)
        )[1]

    found = torch.vmap(tangent)(x.unflatten(0, (3, 4)), weight, bias).flatten(0, 1)
    close([found], [tangent(*tensors)], torch.float64)


def test_no_wait_for_the_gpu_and_capture_in_a_graph() -> None:
    tensors = [t.to(DEVICE) for t in grouped_norm_inputs(2, (5, 64, 8, 8), torch.float32, EPS)]
    expected = results(tensors, True)
    without_waiting(lambda: results(tensors, True))
    found = replayed(lambda: ops.batch_norm_relu(*tensors, EPS, pool=True))
    for f, e in zip(found, expected, strict=False):
        assert torch.equal(f, e)


def counted_calls():
    return mock.patch.object(ops, "batch_norm_relu", wraps=ops.batch_norm_relu)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_fused_modules(momentum: float | None) -> None:
    plain = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU(), nn.MaxPool2d(2))
    )
    plain = plain.double().to(DEVICE)
    module = copy.deepcopy(plain)
    for n in (5, 3):
        x = torch.randn(n, 1, 9, 8, dtype=torch.float64, device=DEVICE)
        with fused(module), counted_calls() as calls:
            found = module(x)
        assert calls.call_count == 1
        torch.testing.assert_close(found, plain(x))
    for f, e in zip(module.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(f, e)
    with fused(module), torch.autocast(DEVICE, dtype=torch.bfloat16), counted_calls() as calls:
        module.float()(x.float())
    assert calls.call_count == 0
