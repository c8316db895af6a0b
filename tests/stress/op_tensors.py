"""Calls of ops, and random tensors with every memory layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Draw = Callable[..., Any]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WIDE = DTYPES[:2]


@dataclass
class Call:
    """A call that has not been made yet.

    Attributes:
        op: the function, called with ``args``.
        reference: its reference implementation.
        args: tensors, numbers and lists of both.
        smooth: whether gradients are compared, too.
        corruptible: whether arguments may be corrupted; not for plain torch functions, which refuse
            what torch does.
    """

    op: Callable[..., Any]
    reference: Callable[..., Any]
    args: list[Any]
    smooth: bool = True
    corruptible: bool = True


def spread(t: Tensor) -> Tensor:
    """Every second element of a larger tensor, with NaN in between."""
    large = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), math.nan, dtype=t.dtype)
    large[..., 1::2] = t
    return large[..., 1::2]


def _margins(t: Tensor) -> Tensor:
    """Dense and unaligned, with NaN before and after."""
    large = torch.full((t.numel() + 6,), math.nan, dtype=t.dtype)
    large[3 : 3 + t.numel()] = t.reshape(-1)
    return large[3 : 3 + t.numel()].view(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t,
    "margins": _margins,
    "gaps": lambda t: spread(t) if t.dim() else t,
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() >= 2 else t,
    "channels last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 2 else t,
    "repeated": lambda t: t[:1].expand(t.shape) if t.dim() and len(t) else t,
    "negated": lambda t: torch._neg_view(-t),
    "parameter": lambda t: torch.nn.Parameter(t),
}
SOLID = ("dense", "margins")  # supported by in-place ops


def tensor(
    draw: Draw, shape: Sequence[int], dtype: torch.dtype, layouts: Sequence[str] = tuple(LAYOUTS)
) -> Tensor:
    values = torch.randn(tuple(shape), dtype=torch.float64).to(dtype)
    return LAYOUTS[draw(st.sampled_from(layouts))](values)


def sizes(draw: Draw, max_columns: int = 130) -> tuple[int, int]:
    return draw(st.integers(0, 6)), draw(
        st.integers(0, max_columns) | st.sampled_from([31, 32, 33, 64])
    )


def cut(draw: Draw, columns: int) -> list[int]:
    """Segment bounds, some segments empty."""
    return [0, *sorted(draw(st.lists(st.integers(0, columns), max_size=4))), columns]


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors_in(v)] if isinstance(value, list | tuple) else []


def plain(t: Tensor) -> bool:
    return t.layout == torch.strided and t.device.type == "cpu"
