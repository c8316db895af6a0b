"""Clipping, as a gradient transformation."""

from __future__ import annotations

from typing import Any

from torch.nn.utils import get_total_norm
from torch.utils._pytree import tree_leaves

from fastmeta.compat.torchopt.transform import GradientTransformation, map_present, stateless

__all__ = ["clip_grad_norm"]


def clip_grad_norm(
    max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> GradientTransformation:
    """As `torch.nn.utils.clip_grad_norm_`; the factor is a constant for derivatives.

    Args:
        max_norm: largest norm of all gradients together.
        norm_type: of the norm.
        error_if_nonfinite: whether `update` raises a `RuntimeError` for a norm that is not finite.
    """

    def function(updates: Any, params: Any, inplace: bool) -> Any:
        known = [g.detach() for g in tree_leaves(updates) if g is not None]
        if not known:
            return updates
        norm = get_total_norm(known, norm_type, error_if_nonfinite)
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return map_present(lambda g: g.mul(factor.to(g.device)), updates)

    return stateless(function)
