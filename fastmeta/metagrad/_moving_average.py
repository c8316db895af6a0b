"""The meta-gradient at a moving average of a task's fast weights, shared by MOML and LocalMOML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fastmeta._checks import check_number
from fastmeta.adaptation import Adaptation
from fastmeta.gradients import FlatLayout
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.exact import Exact
from fastmeta.metagrad.first_order import FirstOrder
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.metagrad.wrapper import innermost

Form = Literal["code", "paper"]
# From packed fast weights `(P,)` to the point where the query loss is evaluated.
Average = Callable[[Tensor], Tensor]


def inner_of(form: Form, inner: MetaGradient | None, name: str) -> MetaGradient:
    """The inner meta-gradient, by default that of the form.

    Raises:
        ValueError: if it has no query loss.
    """
    if inner is not None and not inner.has_query_loss:
        raise ValueError(
            f"{name} needs a meta-gradient that takes the query gradient at the fast weights; "
            f"got {type(innermost(inner)).__name__}. Use FirstOrder, Exact or another one."
        )
    return inner or (FirstOrder() if form == "code" else Exact())


def check_beta(beta: float) -> None:
    """Refuses a weight that is not in `(0, 1]`.

    Raises:
        ValueError: in that case.
    """
    check_number("beta", beta)
    if not 0 < beta <= 1:
        raise ValueError(f"beta must be a number in (0, 1], got {beta}.")


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors as one, `(P,)`, detached."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def task_at_average(
    inner: MetaGradient,
    losses: TaskLosses,
    params: Sequence[Tensor],
    adaptation: Adaptation,
    context: StepContext,
    average: Average,
    scale: float,
) -> tuple[TaskGradient, Tensor]:
    """A task's meta-gradient with the query loss at another point than the fast weights.

    Args:
        inner: the meta-gradient, whose Jacobian of the inner loop is used.
        losses: the task.
        params: the initialisation.
        adaptation: the inner loop.
        context: the meta-step.
        average: the point.
        scale: factor of the meta-gradient.

    Returns:
        The meta-gradient, and the point `(P,)`.

    Raises:
        ValueError: if `inner` does not evaluate the query loss once.
    """
    layout = FlatLayout.of(params)
    seen: list[Tensor] = []

    def query(fast: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        seen.append(average(pack(fast)))
        # The value is that of the point, the derivative with respect to the fast weights `scale`.
        pairs = zip(layout.views(seen[-1]), fast, strict=True)
        return losses.query([point + scale * (f - f.detach()) for point, f in pairs])

    found = inner.task(replace(losses, query=query), params, adaptation, context)
    if len(seen) != 1:
        raise ValueError(
            "a moving average of fast weights needs a meta-gradient that evaluates the query loss "
            f"once, after the inner loop; metagrad.{type(inner).__name__} did {len(seen)} times. "
            "Use FirstOrder, Exact or another one."
        )
    return found, seen[0]
