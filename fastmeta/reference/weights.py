"""Reference implementations of the ops on similarities."""

from __future__ import annotations

import torch
from torch import Tensor


def _sqrt(squared: Tensor) -> Tensor:
    """The square root, with a derivative of 0 (not infinity) at 0."""
    nonzero = ~(squared <= 0)  # so that NaN stays NaN
    return torch.where(nonzero, torch.where(nonzero, squared, 1).sqrt(), 0)


def gsl_coefficients(
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
    """Reference implementation of [`fastmeta.ops.gsl_coefficients`][].

    `magnitude` is the index of the rule.
    """
    squares = stats[..., 1:].detach()
    is_noise = (squares <= noise**2 * squares.sum(1, keepdim=True)).any(-1)
    dot, uu, vv = stats.unbind(-1)
    u, v = _sqrt(uu), _sqrt(vv)
    norms = u * v
    nonzero = norms != 0

    def denominator(values: Tensor) -> Tensor:
        return torch.where(nonzero, values, torch.ones_like(values))

    cosine = dot / denominator(norms)
    lam_cs = lam_c * (nonzero & ~is_noise).to(dot)  # no cosine term with a zero gradient
    d_u = lam_cs * cosine / denominator(uu) + lam_2
    d_v = -(lam_cs / denominator(norms) + lam_2)
    # The components of d_u u + d_v v parallel and perpendicular to u; the minimum of the sine is
    # what the dtype can resolve.
    sine2 = (1 - cosine**2).clamp_min(8 * torch.finfo(stats.dtype).eps)
    parallel, perpendicular = lam_2 * (u - cosine * v), lam_cs / denominator(u) + lam_2 * v
    full = u / (_sqrt(parallel**2 + sine2 * perpendicular**2) + eps)
    scale = (torch.ones_like(full), full, ratio * full, (ratio * full).clamp_max(1))[magnitude]
    k = rate.reshape(()) * scale
    return weight[:, None, None] * torch.stack([1 - k * d_u, -(k * d_v)], dim=-1)


def task_weights(
    stats: Tensor,
    rule: int,
    lam_c: float,
    lam_2: float,
    tau: float,
    finite: Tensor | None = None,
) -> Tensor:
    """Reference implementation of the task weights.

    Rule 0 is [`fastmeta.ops.agreement_weights`][], rules 1 and 2 are `"linear"` and
    `"softmax"` of [`fastmeta.ops.gsl_task_weights`][].
    """
    dot, squares = stats.unbind(-1)
    included = torch.ones_like(dot) if finite is None else finite.to(dot)
    tasks, total = included.sum().clamp_min(1), dot.sum().clamp_min(0)
    norms = _sqrt(squares) * _sqrt(total)
    safe = torch.where(norms != 0, norms, torch.ones_like(norms))
    cosine = torch.where(norms != 0, dot / safe, torch.zeros_like(dot))
    distances = (squares - 2 * dot / tasks + total / tasks**2).clamp_min(0)
    loss = lam_c * (1 - cosine) + lam_2 / 2 * distances
    if rule == 2:
        scores = -loss / tau
        if finite is None:
            return torch.softmax(scores, 0)
        # Without finite tasks, softmax would be 0/0.
        return torch.softmax(torch.where(finite, scores, -torch.inf), 0).nan_to_num(0)
    raw = included * (dot if rule == 0 else 1 - loss)
    norm = raw.abs().sum()
    nonzero = norm != 0
    uniform = included / tasks
    return torch.where(nonzero, raw / torch.where(nonzero, norm, torch.ones_like(norm)), uniform)
