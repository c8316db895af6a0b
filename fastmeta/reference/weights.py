"""Torch twins of the ops on similarity scalars."""

from __future__ import annotations

import torch
from torch import Tensor


def _root(squared: Tensor) -> Tensor:
    """The square root, with a derivative of 0 (not infinity) where there is nothing to measure."""
    known = ~(squared <= 0)  # so that NaN stays NaN
    return torch.where(known, torch.where(known, squared, 1).sqrt(), 0)


def gsl_coefficients(
    stats: Tensor,
    weight: Tensor,
    rate: Tensor,
    lam_c: float,
    lam_2: float,
    magnitude: int,
    ratio: float,
    eps: float,
) -> Tensor:
    """See :func:`fastmeta.ops.gsl_coefficients`; ``magnitude`` is the rule's number."""
    dot, uu, vv = stats.unbind(-1)
    u, v = _root(uu), _root(vv)
    norms = u * v
    known = norms != 0

    def directed(values: Tensor) -> Tensor:
        return torch.where(known, values, torch.ones_like(values))

    cosine = dot / directed(norms)
    lam_cs = lam_c * known.to(dot)  # a zero gradient has no cosine term
    d_u = lam_cs * cosine / directed(uu) + lam_2
    d_v = -(lam_cs / directed(norms) + lam_2)
    # Of d_u u + d_v v, along u and across it; the least sine is what the dtype can resolve.
    sine2 = (1 - cosine**2).clamp_min(8 * torch.finfo(stats.dtype).eps)
    along, across = lam_2 * (u - cosine * v), lam_cs / directed(u) + lam_2 * v
    full = u / (_root(along**2 + sine2 * across**2) + eps)
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
    """See :func:`fastmeta.ops.agreement_weights` (rule 0) and ``gsl_task_weights`` (1 and 2)."""
    dot, own = stats.unbind(-1)
    counts = torch.ones_like(dot) if finite is None else finite.to(dot)
    tasks, total = counts.sum().clamp_min(1), dot.sum().clamp_min(0)
    norms = _root(own) * _root(total)
    safe = torch.where(norms != 0, norms, torch.ones_like(norms))
    cosine = torch.where(norms != 0, dot / safe, torch.zeros_like(dot))
    squared = (own - 2 * dot / tasks + total / tasks**2).clamp_min(0)
    loss = lam_c * (1 - cosine) + lam_2 / 2 * squared
    if rule == 2:
        scores = -loss / tau
        if finite is None:
            return torch.softmax(scores, 0)
        # Where no task counts, softmax would be 0/0.
        return torch.softmax(torch.where(finite, scores, -torch.inf), 0).nan_to_num(0)
    raw = counts * (dot if rule == 0 else 1 - loss)
    norm = raw.abs().sum()
    some = norm != 0
    uniform = counts / tasks
    return torch.where(some, raw / torch.where(some, norm, torch.ones_like(norm)), uniform)
