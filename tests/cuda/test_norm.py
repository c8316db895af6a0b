"""The emulated CUDA kernels of the BatchNorm-ReLU-pool block against the references."""

from __future__ import annotations

import emulated
import pytest
import torch
from emulated import array, name, run
from fastmeta._testing import cuda
from norm_cases import grouped_norm_inputs
from torch import Tensor

from fastmeta import reference

EPS = 1e-3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
# (G, N, C, H, W): around one, two and four channels a thread, 16 such threads, the strides of a
# block; odd planes, groups of one image; the last has several blocks a group.
SIZES = [
    *((1, 1, 1, 2, 3), (2, 3, 2, 3, 2), (3, 1, 3, 3, 3), (2, 5, 4, 7, 7), (1, 31, 5, 2, 2)),
    *((2, 1, 16, 5, 33), (1, 3, 33, 4, 5), (2, 2, 64, 3, 4), (1, 2, 68, 2, 5), (3, 1, 70, 6, 1)),
    (2, 3, 1, 31, 70),
]
LARGE = (1, 1, 17, 363, 363)  # a thread adds more than one chain of 16 pixels
POOL = pytest.mark.parametrize("pool", [False, True], ids=["plain", "pool"])
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def images(t: Tensor) -> Tensor:
    """Channels last, the memory format of the kernels."""
    return t.permute(0, 2, 3, 1).contiguous()


def exact(*tensors: Tensor) -> list[Tensor]:
    return [t.double() for t in tensors]


class Case:
    """Inputs of the four ops, all from one point."""

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype, pool: bool) -> None:
        groups, *shape = size
        self.dtype, self.pool = dtype, pool
        self.x, self.weight, self.bias = grouped_norm_inputs(groups, tuple(shape), dtype, EPS)
        self.u, self.p, self.q = (torch.randn_like(t) for t in (self.x, self.weight, self.bias))
        z, mean, var = reference.batch_norm_relu(*exact(self.x, self.weight, self.bias), EPS, pool)
        self.dz, self.mean, self.var = (t.to(dtype) for t in (torch.randn_like(z), mean, var))

    def run(self, op: str, likes: list[Tensor], *args: object) -> list[Tensor]:
        """Runs a kernel on `args`, the point and the options; outputs are shaped like `likes`."""
        shapes = [tuple(images(t).shape if t.dim() == 4 else t.shape) for t in likes]
        point = [array(t) for t in (images(self.x), self.weight, self.bias)]
        if op != "norm_forward":
            point += [array(self.mean), array(self.var)]
        found = run(
            shapes,
            self.dtype,
            lambda out, seed: getattr(cuda, op)(
                name(self.dtype), *args, *point, EPS, self.pool, out, seed
            ),
        )
        return [t.permute(0, 3, 1, 2) if t.dim() == 4 else t for t in found]

    def forward(self) -> list[Tensor]:
        return self.run("norm_forward", [self.dz, self.mean, self.var])

    def backward(self) -> list[Tensor]:
        likes = [self.x, self.weight, self.bias]
        return self.run("norm_backward", likes, array(images(self.dz)))

    def second(self, tangent: bool = False) -> list[Tensor]:
        likes = [self.dz] if tangent else [self.dz, self.x, self.weight]
        direction = [array(t) for t in (images(self.u), self.p, self.q)]
        return self.run("norm_second", likes, array(images(self.dz)), direction)

    def check(self) -> None:
        """All four against the references in float64."""
        block = (*exact(self.x, self.weight, self.bias), EPS, self.pool)
        dz, *direction = exact(self.dz, self.u, self.p, self.q)
        second = reference.norm_second(dz, *direction, *block)
        for found, expected in (
            (self.forward(), reference.batch_norm_relu(*block)),
            (self.backward(), reference.norm_backward(dz, *block)),
            (self.second(), second),
            (self.second(tangent=True), second[:1]),
        ):
            for f, e in zip(found, expected, strict=True):
                bound = TOLERANCE[self.dtype] * (1 + e.abs().max())
                assert (f.double() - e).abs().max() <= bound, (f, e)


@DTYPES
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_the_twins(size: tuple[int, ...], dtype: torch.dtype) -> None:
    Case(size, dtype, pool=False).check()
    if min(size[3:]) >= 2:
        Case(size, dtype, pool=True).check()


@POOL
@DTYPES
def test_long_sums(dtype: torch.dtype, pool: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "SEEDS", (1,))
    Case(LARGE, dtype, pool).check()


@POOL
@DTYPES
def test_constant_channels_and_ties(dtype: torch.dtype, pool: bool) -> None:
    case = Case((2, 5, 4, 4, 4), dtype, pool)
    case.x[:, 1] = 3.7
    case.x[:5, 2] = -1e4
    case.bias[:, 1:3] = 0.5
    z, mean, var = case.forward()
    assert (var[:, 1] == 0).all()
    assert var[0, 2] == 0
    assert mean[0, 2] == -1e4
    assert (z[:, 1] == 0.5).all()
    case.mean, case.var = mean, var
    case.check()


def test_variance_of_images_with_a_far_first_pixel() -> None:
    """The shifts of the group and of a chain may be far from the mean."""
    case = Case((2, 4, 8, 31, 33), torch.float32, False)
    case.x += 1000
    case.x[::4, :, 0, 0] = 0
    _, mean, var = case.forward()
    exact = case.x.double().unflatten(0, (2, 4))
    torch.testing.assert_close(mean.double(), exact.mean((1, 3, 4)), rtol=1e-7, atol=0)
    expected = exact.transpose(1, 2).flatten(2).var(2, unbiased=False)
    torch.testing.assert_close(var.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@POOL
def test_what_is_not_finite_stays_in_its_channel_and_group(value: float, pool: bool) -> None:
    case = Case((2, 3, 4, 5, 5), torch.float32, pool)
    case.x[1, 2, 2, 2] = value
    z, case.mean, case.var = case.forward()
    for t in (z, case.backward()[0], *case.second()[:2]):
        hit = torch.zeros_like(t, dtype=torch.bool)
        hit[:3, 2] = True
        assert t[hit].isnan().all()
        assert t[~hit].isfinite().all()
