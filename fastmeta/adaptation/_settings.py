"""Settings of inner optimizers: numbers, or tensors that are differentiated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta._checks import check_in_range, check_nonnegative, check_positive

Setting = float | Tensor
"""A number, or a floating-point tensor without dimensions, which may require a gradient."""


def differentiated(*settings: Setting) -> list[Tensor]:
    """The settings that a gradient is wanted of: an adaptation's `rates`."""
    return [s for s in settings if isinstance(s, Tensor) and s.requires_grad]


def check_setting(
    name: str, value: Setting, *, positive: bool = False, below: float | None = None
) -> None:
    """Rejects a number that is out of range; the values of tensors are not looked at.

    Args:
        name: of the setting.
        value: see above.
        positive: whether 0 is out of range.
        below: an upper bound, which is out of range.

    Raises:
        ValueError: if it is, or a tensor has dimensions or is not of floating point.
    """
    if isinstance(value, Tensor):
        if value.dim() or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a number or a floating-point tensor without dimensions; got a "
                f"{value.dtype} tensor of shape {tuple(value.shape)}."
            )
    elif below is not None:
        check_in_range(name, value, 0, below)
    elif positive:
        check_positive(name, value)
    else:
        check_nonnegative(name, value)


def is_zero(setting: Setting) -> bool:
    """Whether it is the number 0; a tensor never is."""
    return not isinstance(setting, Tensor) and setting == 0


def are_numbers(*settings: Setting) -> bool:
    """Whether none of them is a tensor."""
    return not any(isinstance(s, Tensor) for s in settings)


def on_device(setting: Setting, params: Sequence[Tensor]) -> Setting:
    """The setting with the device of the parameters, and their dtype or float32."""
    if not isinstance(setting, Tensor) or not params:
        return setting
    return setting.to(params[0].device, torch.promote_types(params[0].dtype, torch.float32))
