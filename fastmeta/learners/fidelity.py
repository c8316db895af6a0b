"""Agreement of the meta-gradients of tasks with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastmeta.gradients.agreement import Agreement, agreement, statistics


@dataclass(frozen=True)
class Fidelity(Agreement):
    """Comparison of a learner's meta-gradient with a reference; detached tensors on the device.

    The attributes of [`fastmeta.gradients.Agreement`][] compare the combined meta-gradients, the
    further ones those of the tasks.

    Attributes:
        task_cosine: `(T,)`, of each task's meta-gradient and that of the reference.
        task_norm_ratio: `(T,)`, the norm ratio of each task's meta-gradient.
        task_relative_error: `(T,)`, the relative error of each task's meta-gradient.
        finite: `(T,)`, bool: which tasks' meta-gradients are finite.
        rates: the same for the meta-gradient of the learned rates; `None` if they are not compared.
    """

    task_cosine: Tensor
    task_norm_ratio: Tensor
    task_relative_error: Tensor
    finite: Tensor
    rates: Fidelity | None = None

    def __str__(self) -> str:
        """A few readable lines; waits for the device."""
        combined, *rest = super().__str__().split("\n")
        if self.cosine.isnan():
            return combined
        lines = [combined]
        if not self.finite.all():
            tasks = (~self.finite).nonzero().flatten().tolist()
            lines.append(f"not finite: the meta-gradients of tasks {', '.join(map(str, tasks))}")
        low, high = self.task_cosine.aminmax()
        errors = self.task_relative_error.aminmax()
        lines.append(
            f"tasks: cosine {low:.4f} to {high:.4f}, relative error {errors.min:.2g} to "
            f"{errors.max:.2g}"
        )
        lines += rest
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
    cosine, ratio, error = statistics(tasks[:, columns], reference_tasks[:, columns])
    return Fidelity(
        **vars(agreement(combined, reference_combined, bounds, names)),
        task_cosine=cosine,
        task_norm_ratio=ratio,
        task_relative_error=error,
        finite=tasks[:, columns].isfinite().all(1),
    )


def rate_names(names: Sequence[str], bounds: Sequence[int]) -> list[str]:
    """Names of the learned rates: those of the parameters, if there is one for each.

    Args:
        names: of the parameters.
        bounds: of the parameters and the rates, see `FlatLayout.bounds`.
    """
    count = len(bounds) - 1 - len(names)
    return list(names) if count == len(names) else [f"rates[{i}]" for i in range(count)]
