"""Parameters whose gradient is zero but for rounding, such as the bias before BatchNorm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta import FOMAML, GSL, GSLOptimizer, TaskBatch, ops
from fastmeta.models import Conv4
from fastmeta.ops.weights import noise_level

WAYS = 5
BOUNDS = (0, 10, 14, 30)  # the segments of the op's tests
EPS = torch.finfo(torch.float64).eps


def images(dtype: torch.dtype, tasks: int = 4) -> TaskBatch:
    """One support and 15 query images per class, of random pixels."""
    generator = torch.Generator().manual_seed(0)

    def draw(shots: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(tasks, WAYS * shots, 1, 28, 28, generator=generator)
        return x.to(dtype), torch.arange(WAYS).repeat(shots).expand(tasks, -1).clone()

    return TaskBatch(*draw(1), *draw(15))


def gradients(
    dtype: torch.dtype = torch.float32, method: type = GSL, **options
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    # Convolutions in float16 are slow on CPUs.
    module = Conv4(1, 28, WAYS, hidden=32 if dtype is torch.float16 else 64).to(dtype)
    if method is GSL:
        options = {"variant": "correction", "scope": "layer", **options}
    learner = method(module, F.cross_entropy, inner_lr=0.1, **options)
    learner.backward(images(dtype))
    return {name: p.grad.double() for name, p in module.named_parameters()}


def norm(grads: dict[str, Tensor]) -> float:
    return torch.cat([g.flatten() for g in grads.values()]).norm().item()


HALF = {"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"autocast": torch.bfloat16}


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64}, *HALF], ids=str)
def test_the_correction_of_conv4_is_bounded(options: dict) -> None:
    """It was 4e7 times FOMAML's meta-gradient in float32, 2e16 times in float64."""
    fomaml = gradients(method=FOMAML, **options)
    corrected = gradients(magnitude="none", **options)
    assert norm(corrected) < 15 * norm(fomaml)
    biases = [f"features.{k}.0.bias" for k in range(4)]
    for name, grad in fomaml.items():
        assert torch.equal(corrected[name], grad) or name not in biases
    if options not in HALF:
        assert not any(torch.equal(corrected[n], g) for n, g in fomaml.items() if n not in biases)


@pytest.mark.parametrize("magnitude", ["none", "norm-match"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_engines_agree(dtype: torch.dtype, magnitude: str) -> None:
    loop, batched = (
        gradients(dtype, magnitude=magnitude, engine=engine) for engine in ("loop", "batched")
    )
    for name, grad in loop.items():
        torch.testing.assert_close(
            batched[name], grad, rtol=2e-3 if dtype is torch.float32 else 1e-9, atol=1e-6
        )


def test_the_optimizer_of_a_loop_in_half_precision() -> None:
    """The threshold is that of the coarsest parameters, not of the packed gradients."""
    params = [torch.nn.Parameter(torch.ones(4, dtype=d)) for d in (torch.float32, torch.bfloat16)]
    options = {"variant": "correction", "scope": "layer", "magnitude": "none"}
    opt = GSLOptimizer(params, torch.optim.SGD, lr=1.0, **options)
    grads = [torch.eye(4)[0], 1e-3 * torch.eye(4, dtype=torch.bfloat16)[0]]
    with opt.task() as task:
        task.support([g.roll(1) for g in grads])
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
    assert torch.equal(params[1].grad, grads[1])
    assert not torch.equal(params[0].grad, grads[0])


def coefficients(u: Tensor, v: Tensor, **options) -> Tensor:
    stats = ops.row_similarity(u, v, BOUNDS)
    ones = stats.new_ones(len(u))
    return ops.gsl_coefficients(stats, ones, stats.new_tensor([0.5]), **options)


@pytest.mark.parametrize("magnitude", ["none", "norm-match", "ratio", "clip"])
@pytest.mark.parametrize("noisy", ["query", "support", "both"])
def test_noise_counts_as_zero_and_a_small_gradient_does_not(magnitude: str, noisy: str) -> None:
    options = {"magnitude": magnitude, "ratio": 0.5, "lam_2": 0.3}
    u, v = torch.randn(2, 3, 30, dtype=torch.float64)
    unit = F.normalize(torch.randn(3, 4, dtype=torch.float64))
    for factor in (100, 100_000):
        small = factor * EPS * unit
        if noisy in ("query", "both"):
            u[:, 10:14] = small * u.norm(dim=1, keepdim=True)
        if noisy in ("support", "both"):
            v[:, 10:14] = small.flip(1) * v.norm(dim=1, keepdim=True)
        found = coefficients(u, v, **options)
        alone = ops.row_similarity(u[:, 10:14].contiguous(), v[:, 10:14].contiguous())
        expected = ops.gsl_coefficients(
            alone, alone.new_ones(3), alone.new_tensor([0.5]), lam_c=float(factor > 4096), **options
        )
        assert torch.equal(found[:, 1:2], expected)
        exact = coefficients(u, v, noise=0.0, **options)
        assert torch.equal(found[:, ::2], exact[:, ::2])
        assert torch.equal(found, exact) == (factor > 4096)


@pytest.mark.parametrize("magnitude", ["none", "norm-match", "ratio", "clip"])
def test_gradients_that_are_all_zero(magnitude: str) -> None:
    zero = torch.zeros(2, 30)
    found = coefficients(zero, zero, magnitude=magnitude)
    assert torch.equal(found, torch.tensor([1.0, 0.0]).expand_as(found))


def test_non_finite_gradients_stay_visible() -> None:
    u, v = torch.randn(2, 1, 30)
    u[0, 12] = float("nan")
    assert coefficients(u, v)[0, 1].isnan().all()


def test_thresholds() -> None:
    assert noise_level(torch.float64) == 4096 * EPS
    assert noise_level(torch.float32) == 4096 * torch.finfo(torch.float32).eps
    assert noise_level(torch.bfloat16) == noise_level(torch.float16) == 1 / 128
    stats = ops.row_similarity(torch.ones(1, 30), torch.ones(1, 30), BOUNDS)
    for noise in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="noise must be at least 0 and below 1"):
            ops.gsl_coefficients(stats, torch.ones(1), torch.ones(1), noise=noise)
