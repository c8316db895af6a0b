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
    norms = _root(uu) * _root(vv)
    known = norms != 0
    safe = torch.where(known, norms, torch.ones_like(norms))
    safe_uu = torch.where(known, uu, torch.ones_like(uu))
    cosine_u = torch.where(known, lam_c * (dot / safe) / safe_uu, torch.zeros_like(dot))
    cosine_v = torch.where(known, lam_c / safe, torch.zeros_like(dot))
    d_u, d_v = cosine_u + lam_2, -(cosine_v + lam_2)
    length = _root(d_u * d_u * uu + 2 * d_u * d_v * dot + d_v * d_v * vv) + eps
    full = _root(uu) / length
    scale = (torch.ones_like(full), full, ratio * full, (ratio * full).clamp_max(1))[magnitude]
    k = rate.reshape(()) * scale
    return weight[:, None, None] * torch.stack([1 - k * d_u, -(k * d_v)], dim=-1)


def task_weights(stats: Tensor, rule: int, lam_c: float, lam_2: float, tau: float) -> Tensor:
    """See :func:`fastmeta.ops.agreement_weights` (rule 0) and ``gsl_task_weights`` (1 and 2)."""
    dot, own = stats.unbind(-1)
    tasks, total = len(dot), dot.sum().clamp_min(0)
    norms = _root(own) * _root(total)
    safe = torch.where(norms != 0, norms, torch.ones_like(norms))
    cosine = torch.where(norms != 0, dot / safe, torch.zeros_like(dot))
    squared = (own - 2 * dot / tasks + total / tasks**2).clamp_min(0)
    loss = lam_c * (1 - cosine) + lam_2 / 2 * squared
    if rule == 2:
        return torch.softmax(-loss / tau, 0)
    raw = dot if rule == 0 else 1 - loss
    norm = raw.abs().sum()
    uniform = torch.full_like(raw, 1 / max(tasks, 1))
    return torch.where(norm != 0, raw / torch.where(norm != 0, norm, torch.ones_like(norm)), uniform)
