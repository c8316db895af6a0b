"""How well a gradient agrees with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Comparison of a gradient with a reference; detached tensors on the device.

    A gradient that equals the reference has cosine 1, norm ratio 1 and error 0, also if both are
    zero. One that is not finite has cosine 0, an infinite norm ratio and an infinite error. All
    three are NaN if the reference is not finite.

    Attributes:
        cosine: of the gradient and the reference, a scalar.
        norm_ratio: norm of the gradient, divided by that of the reference.
        relative_error: norm of the difference of the two, divided by that of the reference.
        layer_error: the part of `relative_error` in each tensor, by name: the norm of the
            difference there, divided by the norm of the *whole* reference; the squares sum to that
            of `relative_error`.
    """

    cosine: Tensor
    norm_ratio: Tensor
    relative_error: Tensor
    layer_error: dict[str, Tensor]

    def __str__(self) -> str:
        """One or two readable lines; waits for the device."""
        if self.cosine.isnan():
            return "the reference is not finite: there is nothing to compare with"
        lines = [describe(self.cosine, self.relative_error, self.norm_ratio)]
        name, part = worst_layer(self.layer_error)
        if part > 0:
            lines.append(f"largest part of the error: {part:.2g} in {name}")
        return "\n".join(lines)


def agreement(
    own: Tensor, reference: Tensor, bounds: Sequence[int], names: Sequence[str]
) -> Agreement:
    """Compares gradients `(P,)`, in the more precise of both dtypes and at least in float32.

    Args:
        own: the gradient.
        reference: see `Agreement`.
        bounds: of the tensors in it, see `FlatLayout.bounds`.
        names: of these tensors.
    """
    columns = slice(bounds[0], bounds[-1])
    return Agreement(
        *statistics(own[columns], reference[columns]),
        layer_error=layer_errors(own, reference, bounds, names),
    )


def statistics(own: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine, norm ratio and relative error of gradients `(..., P)`, see `Agreement`."""
    own, reference = _same_dtype(own, reference)
    finite, known = own.isfinite().all(-1), reference.isfinite().all(-1)
    norm, scale = own.norm(dim=-1), reference.norm(dim=-1)
    error = (own - reference).norm(dim=-1)
    # Of unit vectors: a product of small norms would underflow.
    cosine = ((own / norm[..., None]) * (reference / scale[..., None])).sum(-1).nan_to_num(0.0)
    found = (cosine, norm / scale, error / scale)
    values = [
        torch.where(finite, torch.where(error == 0, equal, value), broken)
        for value, equal, broken in zip(
            found, (1.0, 1.0, 0.0), (0.0, torch.inf, torch.inf), strict=True
        )
    ]
    cosine, ratio, relative = (torch.where(known, value, torch.nan) for value in values)
    return cosine, ratio, relative


def layer_errors(
    own: Tensor, reference: Tensor, bounds: Sequence[int], names: Sequence[str]
) -> dict[str, Tensor]:
    """The part of the relative error of gradients `(P,)` in each layer, see `Agreement`."""
    own, reference = _same_dtype(own, reference)
    scale = reference[bounds[0] : bounds[-1]].norm()
    found = {}
    for name, start, stop in zip(names, bounds, bounds[1:], strict=False):
        error = (own[start:stop] - reference[start:stop]).norm()
        found[name] = torch.where(error == 0, 0.0, (error / scale).nan_to_num(torch.inf))
    return found


def worst_layer(errors: dict[str, Tensor]) -> tuple[str, float]:
    """Name and error of the layer with the largest error."""
    values = {name: float(error) for name, error in errors.items()}
    name = max(values, key=values.__getitem__)
    return name, values[name]


def describe(cosine: Tensor, relative_error: Tensor, norm_ratio: Tensor) -> str:
    """The three numbers as text."""
    return f"cosine {cosine:.4f}, relative error {relative_error:.2g}, norm ratio {norm_ratio:.3g}"


def _same_dtype(own: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(own.dtype, reference.dtype), torch.float32)
    return own.to(dtype), reference.to(dtype)
