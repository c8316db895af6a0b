"""Task weights and GSL coefficients from similarities, computed without a host synchronization."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import needs_autograd

Magnitude = Literal["none", "norm-match", "ratio", "clip"]

# Added to |d| before dividing by it, so that equal gradients (d = 0) stay finite.
_EPS = 1e-12


def noise_level(dtype: torch.dtype) -> float:
    """The norm of a segment, relative to that of the whole gradient, that rounding explains.

    4096 times the machine epsilon, at most 2^-7. A parameter such as the bias of a convolution
    before BatchNorm has a gradient of exactly zero; its computed gradient is rounding noise. In
    convolutional and attention networks, before and in training, we measured noise of up to 1026
    eps in float32 (with torch's BatchNorm; 3 eps with the fused one) and 48 eps in float64. The
    smallest other segments had 0.001 of the whole norm, which is 9000 eps in float32. In bfloat16
    and float16, noise of up to 0.006 of the whole norm cannot be told from them: the gradients of
    some small segments count as zero, too, and keep their query gradient.

    Args:
        dtype: of the forward and backward passes.
    """
    return min(4096 * torch.finfo(dtype).eps, 2**-7)


def gsl_coefficients(
    stats: Tensor,
    weight: Tensor,
    rate: Tensor,
    *,
    lam_c: float = 1.0,
    lam_2: float = 0.0,
    magnitude: Magnitude = "norm-match",
    ratio: float = 1.0,
    noise: float | None = None,
) -> Tensor:
    """The closed-form GSL update as coefficients of the query and support gradients.

    With `u` the query and `v` the support gradient of a task, the gradient of
    `GSL = lam_c (1 - cos(u, v)) + lam_2/2 |u - v|^2` with respect to `u` is `d = p u + q v`;
    the task's meta-gradient `m = weight (u - rate * scale * d)` is a linear combination of `u`
    and `v`, too.
    Our reconstruction of "MAML via AHE update" (Tak & Hong 2024); differentiable.

    Args:
        stats: `(T, S, 3)` from [`row_similarity`][fastmeta.ops.row_similarity] of `u` with `v`;
            float32 or float64.
        weight: `(T,)`, the weight of each task in the meta-gradient.
        rate: one value, the AHE rate `eta` times the schedule's factor.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        magnitude: scaling of the correction `d`: `"none"` leaves it unscaled, `"norm-match"`
            rescales it to the norm of `u`, `"ratio"` to `ratio` times that norm, `"clip"`
            clips it to at most `ratio` times that norm.
        ratio: see `magnitude`.
        noise: a segment of `u` or `v` counts as zero if its norm is at most `noise` times that of
            all segments of the task; 4096 eps of the dtype of `stats` by default, see
            `fastmeta.ops.weights.noise_level`.

    Returns:
        `(T, S, 2)`, to be passed to [`combine`][fastmeta.ops.combine] with the buffers `u` and `v`.
        There is no cosine term for a segment whose `u` or `v` is zero up to `noise`.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match.
        ValueError: if `magnitude` is unknown or `noise` is not in `[0, 1)`.
    """
    rules = get_args(Magnitude)
    if magnitude not in rules:
        raise ValueError(f"magnitude must be one of {', '.join(rules)}; got {magnitude!r}.")
    if noise is None:
        noise = noise_level(stats.dtype)
    if not 0 <= noise < 1:
        raise ValueError(f"noise must be at least 0 and below 1, got {noise}.")
    args = (stats, weight, rate, lam_c, lam_2, rules.index(magnitude), ratio, _EPS, noise)
    if needs_autograd(stats, weight, rate):
        return reference.gsl_coefficients(*args)
    result: Tensor = kernels.gsl_coefficients.default(*args)
    return result


def agreement_weights(stats: Tensor, finite: Tensor | None = None) -> Tensor:
    """Gradient Agreement task weights, `w = G 1 / |G 1|_1` (Eshratifar et al. 2018, section 2).

    Weights may be negative; their absolute values sum to one. If every task gradient is orthogonal
    to their sum (so that the formula gives 0/0) the weights are `1/T`. Differentiable.

    Args:
        stats: `(T, 2)` from [`mean_similarity`][fastmeta.ops.mean_similarity]; float32 or float64.
        finite: `(T,)`, bool: which tasks have finite gradients, all by default. The gradients of
            the others are expected to be zero; so are their weights.

    Returns:
        `(T,)`, dtype of `stats`.
    """
    return _task_weights(stats, 0, 1.0, 0.0, 1.0, finite)


def gsl_task_weights(
    stats: Tensor,
    finite: Tensor | None = None,
    *,
    rule: Literal["linear", "softmax"] = "softmax",
    lam_c: float = 1.0,
    lam_2: float = 0.0,
    tau: float = 1.0,
) -> Tensor:
    """Task weights from the GSL between each task gradient and the mean (reconstruction R3).

    Args:
        stats: `(T, 2)` from [`mean_similarity`][fastmeta.ops.mean_similarity]; float32 or float64.
        finite: see [`agreement_weights`][fastmeta.ops.agreement_weights].
        rule: `"softmax"`: `softmax(-GSL / tau)`; `"linear"`: `1 - GSL` divided by the sum
            of the absolute values.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        tau: temperature of the softmax.

    Returns:
        `(T,)`, dtype of `stats`; absolute values sum to one. Differentiable.

    Raises:
        ValueError: if `tau` is not positive or `rule` is unknown.
    """
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}.")
    if rule not in ("linear", "softmax"):
        raise ValueError(f"rule must be 'linear' or 'softmax', got {rule!r}.")
    return _task_weights(stats, 1 if rule == "linear" else 2, lam_c, lam_2, tau, finite)


def _task_weights(
    stats: Tensor, rule: int, lam_c: float, lam_2: float, tau: float, finite: Tensor | None
) -> Tensor:
    if finite is not None or needs_autograd(stats):  # rare, and only T numbers
        return reference.task_weights(stats, rule, lam_c, lam_2, tau, finite)
    result: Tensor = kernels.task_weights.default(stats, rule, lam_c, lam_2, tau)
    return result


@torch.library.register_fake("fastmeta::gsl_coefficients")
def _(
    stats: Tensor,
    weight: Tensor,
    rate: Tensor,
    lam_c: float,
    lam_2: float,
    magnitude: int,
    ratio: float,
    eps: float,
    noise: float,
) -> Tensor:
    return stats.new_empty(stats.shape[0], stats.shape[1], 2)


@torch.library.register_fake("fastmeta::task_weights")
def _(stats: Tensor, rule: int, lam_c: float, lam_2: float, tau: float) -> Tensor:
    return stats.new_empty(stats.shape[0])
