"""The distance to a bootstrapped target in the outer loss (GradNCP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_integer, check_nonnegative, check_positive
from fastmeta._options import forwards_options, named
from fastmeta.adaptation import Adaptation
from fastmeta.adaptation.base import is_task_batchable
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.metagrad.wrapper import Wrapper, inner_by_name
from fastmeta.trajectory.replay import preserve_state


class Bootstrapped(Wrapper):
    """Another meta-gradient, of the query loss plus the distance to a target that goes on.

    Tack et al. 2023 (GradNCP, arXiv 2302.00617), after the bootstrapped meta-learning of Flennerhag
    et al. 2022. From the fast weights `theta_K`, `steps` further steps of gradient descent on the
    query loss `Q` lead to the target `theta*`, which is a constant; the outer loss is

        Q(theta_K) + weight |theta* - theta_K|

    with the Euclidean norm over all parameters of a task, not squared. The target of the paper
    goes on with the loss of the full context, which is the query loss where the query set is the
    whole context, as in [`ImageRegression`][fastmeta.data.ImageRegression]. Only parameters that
    another inner step would adapt move. Query losses in results are those without the distance.

    Args:
        inner: the meta-gradient; not Leap or Reptile, which have no outer loss.
        lr: learning rate of the further steps; the default is that of the authors for images.
        steps: number of further steps; 0 turns the term off.
        weight: of the distance, `lambda` of the paper; 0 turns the term off.

    Raises:
        ValueError: if an argument is out of range, or `inner` is Leap or Reptile.
    """

    task_batchable = True

    def __init__(
        self, inner: MetaGradient, lr: float = 0.05, steps: int = 5, weight: float = 100.0
    ) -> None:
        super().__init__(inner)
        if not inner.has_query_loss:
            raise ValueError(
                "the distance to the target is part of a query loss, and metagrad."
                f"{type(inner).__name__} has none; expected another meta-gradient, such as Exact "
                "or FirstOrder."
            )
        check_positive("lr", lr)
        check_integer("steps", steps, 0)
        check_nonnegative("weight", weight)
        self.lr = lr
        self.steps = steps
        self.weight = weight
        self.task_batchable = is_task_batchable(inner)

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        if not self.steps or not self.weight:
            return self.inner.task(losses, params, adaptation, context)
        stacked = params[0].dim() > len(context.layout.shapes[0])
        plain: list[Tensor] = []

        def query(fast: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            target = self._target(losses, fast, adaptation)
            value, output = losses.query(fast)  # the last evaluation, as engines expect
            plain.append(value.detach())
            return value + self.weight * _distance(target, fast, stacked), output

        found = self.inner.task(replace(losses, query=query), params, adaptation, context)
        return replace(found, query_loss=plain[-1])

    def _target(
        self, losses: TaskLosses, fast: Sequence[Tensor], adaptation: Adaptation
    ) -> list[Tensor]:
        """The parameters after the further steps; buffers and generators stay as they are."""
        moved = adaptation.adapts(adaptation.steps, fast)
        point = [p.detach() for p in fast]
        with preserve_state(losses.buffers, point[0].device):
            for _ in range(self.steps):
                for p, moves in zip(point, moved, strict=True):
                    p.requires_grad_(moves)
                leaves = [p for p in point if p.requires_grad]
                value, _ = losses.query(point)
                grads = iter(torch.autograd.grad(value, leaves, materialize_grads=True))
                pairs = [(p, next(grads) if p.requires_grad else None) for p in point]
                point = [p.detach() if g is None else p.detach() - self.lr * g for p, g in pairs]
        return point


def _distance(target: Sequence[Tensor], fast: Sequence[Tensor], stacked: bool) -> Tensor:
    """The distance over all parameters; of stacked tasks the sum of those of the tasks."""
    rows = len(fast[0]) if stacked else 1
    pairs = zip(target, fast, strict=True)
    parts = [(t - f).square().reshape(rows, -1).sum(1) for t, f in pairs]
    square = torch.stack(parts).sum(0)
    # Its root has no derivative at zero, where there is nothing to approach.
    return torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0).sum()


def bootstrapped_by_name(
    others: Mapping[str, Callable[..., MetaGradient]],
) -> Callable[..., Bootstrapped]:
    """Makes the bootstrapped form of a meta-gradient that is given by its name.

    Args:
        others: the meta-gradients, by name.
    """

    @forwards_options(named(others, "of", "exact"))
    def bootstrapped(
        of: str = "exact",
        lr: float = 0.05,
        steps: int = 5,
        weight: float = 100.0,
        **options: Any,
    ) -> Bootstrapped:
        """Another meta-gradient, whose outer loss has the distance to a bootstrapped target.

        Args:
            of: name of the meta-gradient, whose options are accepted, too.
            lr: learning rate of the further steps that lead to the target.
            steps: number of these steps; 0 turns the term off.
            weight: of the distance; 0 turns the term off.
            **options: of this meta-gradient.
        """
        return Bootstrapped(inner_by_name(of, others, options), lr, steps, weight)

    return bootstrapped
