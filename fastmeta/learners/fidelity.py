"""Agreement of a meta-gradient with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fidelity:
    """Comparison of a meta-gradient with a reference; detached tensors on the device.

    A meta-gradient that equals the reference has cosine 1, norm ratio 1 and error 0, also if both
    are zero. One that is not finite has cosine 0, an infinite norm ratio and an infinite error. All
    three are NaN if the reference is not finite.

    Attributes:
        cosine: of the combined meta-gradient and that of the reference, a scalar.
        norm_ratio: norm of the combined meta-gradient, divided by that of the reference.
        relative_error: norm of the difference of the two, divided by that of the reference.
        task_cosine: `(T,)`, of each task's meta-gradient and that of the reference.
        task_norm_ratio: `(T,)`, the norm ratio of each task's meta-gradient.
        task_relative_error: `(T,)`, the relative error of each task's meta-gradient.
        finite: `(T,)`, bool: which tasks' meta-gradients are finite.
        layer_error: the part of `relative_error` in each parameter tensor, by name: the norm of the
            difference there, divided by the norm of the *whole* reference; the squares sum to that
            of `relative_error`.
        rates: the same for the meta-gradient of the learned rates; `None` if they are not compared.
    """

    cosine: Tensor
    norm_ratio: Tensor
    relative_error: Tensor
    task_cosine: Tensor
    task_norm_ratio: Tensor
    task_relative_error: Tensor
    finite: Tensor
    layer_error: dict[str, Tensor]
    rates: Fidelity | None = None

    def __str__(self) -> str:
        """A few readable lines; waits for the device."""
        if self.cosine.isnan():
            return "the reference is not finite: there is nothing to compare with"
        lines = [describe(self.cosine, self.relative_error, self.norm_ratio)]
        if not self.finite.all():
            tasks = (~self.finite).nonzero().flatten().tolist()
            lines.append(f"not finite: the meta-gradients of tasks {', '.join(map(str, tasks))}")
        low, high = self.task_cosine.aminmax()
        errors = self.task_relative_error.aminmax()
        lines.append(
            f"tasks: cosine {low:.4f} to {high:.4f}, relative error {errors.min:.2g} to "
            f"{errors.max:.2g}"
        )
        name, part = worst_layer(self.layer_error)
        if part > 0:
            lines.append(f"largest part of the error: {part:.2g} in {name}")
        if self.rates is not None:
            lines += ["learned rates:", *(f"  {line}" for line in str(self.rates).splitlines())]
        return "\n".join(lines)


def fidelity(
    own: tuple[Tensor, Tensor],
    reference: tuple[Tensor, Tensor],
    bounds: Sequence[int],
    names: Sequence[str],
) -> Fidelity:
    """Compares meta-gradients, in the more precise of both dtypes and at least in float32.

    Args:
        own: the tasks' meta-gradients `(T, P)`, and their combination `(P,)`.
        reference: the same of the reference.
        bounds: of the layers to compare in the `P` columns, see `FlatLayout.bounds`.
        names: of these layers.
    """
    columns = slice(bounds[0], bounds[-1])
    (tasks, combined), (reference_tasks, reference_combined) = own, reference
    task_values = statistics(tasks[:, columns], reference_tasks[:, columns])
    return Fidelity(
        *statistics(combined[columns], reference_combined[columns]),
        *task_values,
        finite=tasks[:, columns].isfinite().all(1),
        layer_error=layer_errors(combined, reference_combined, bounds, names),
    )


def statistics(own: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine, norm ratio and relative error of gradients `(..., P)`, see `Fidelity`."""
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
    """The part of the relative error of gradients `(P,)` in each layer, see `Fidelity`."""
    own, reference = _same_dtype(own, reference)
    scale = reference[bounds[0] : bounds[-1]].norm()
    found = {}
    for name, start, stop in zip(names, bounds, bounds[1:], strict=False):
        error = (own[start:stop] - reference[start:stop]).norm()
        found[name] = torch.where(error == 0, 0.0, (error / scale).nan_to_num(torch.inf))
    return found


def rate_names(names: Sequence[str], bounds: Sequence[int]) -> list[str]:
    """Names of the learned rates: those of the parameters, if there is one for each.

    Args:
        names: of the parameters.
        bounds: of the parameters and the rates, see `FlatLayout.bounds`.
    """
    count = len(bounds) - 1 - len(names)
    return list(names) if count == len(names) else [f"rates[{i}]" for i in range(count)]


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
