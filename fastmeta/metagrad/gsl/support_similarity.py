"""The gradient similarity loss, differentiated through the support gradient of the head."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_integer, check_nonnegative, check_number
from fastmeta.adaptation import Cotangents, Grads, InnerStep
from fastmeta.metagrad._hvp import hvp_of_graph
from fastmeta.metagrad._replay import Replay
from fastmeta.metagrad._reverse_sweep import ReverseSweep
from fastmeta.metagrad.base import StepContext
from fastmeta.schedules import schedule as read_schedule


class GSL(ReverseSweep):
    """FOMAML plus the gradient of a similarity loss of the support and the query gradient.

    With `g(theta)` the support gradient of the last layer and `v` the query gradient, held fixed,

    `L(theta) = -lam_d <g, v> + lam_c |g| |v| (1 - cos(g, v)) + lam_2/2 |g - v|^2`

    (the norms in front of the cosine held fixed) is differentiated with respect to all parameters:
    `v <- v + a rho(t) eta grad L(theta_k)`, from the last inner step `k` of rate `a` to the first.
    Of other inner optimizers `a g` is the update's derivative with respect to the gradient. Our
    reconstruction of GSL/AHE (Tak & Hong 2024) as a loss.

    `grad <g, v>` is the product of the Hessian's columns of that layer with `v`: with `lam_d = 1`
    alone this is MAML's meta-gradient with these columns exact and the others dropped, so exactly
    MAML's if only the head is adapted (ANIL). It takes first-order calculations only: one more
    backward pass of the support set, with the cotangents of the head's support gradient. Buffers
    are constants.

    Args:
        eta: rate of the similarity loss; 0 is FOMAML.
        lam_d: weight of the inner product.
        lam_c: weight of the cosine.
        lam_2: weight of the L2 distance.
        schedule: `rho(t)`, see [`fastmeta.schedules.schedule`][].
        layers: whose support gradient is compared, see
            [`read_pattern`][fastmeta.adaptation.layer_pattern.read_pattern]; `"head"` is the last
            one. Second derivatives are taken down to the lowest of them.
        graphs: number of last inner steps whose graph is kept for the second backward pass; the
            others are evaluated again, which saves their memory. All by default.

    Raises:
        ValueError: if an option is out of range.
    """

    task_batchable = True

    def __init__(
        self,
        eta: float = 1.0,
        lam_d: float = 1.0,
        lam_c: float = 0.0,
        lam_2: float = 0.0,
        schedule: str = "constant",
        layers: str = "head",
        graphs: int | None = None,
    ) -> None:
        super().__init__(layers)
        check_number("eta", eta)
        for name, weight in (("lam_d", lam_d), ("lam_c", lam_c), ("lam_2", lam_2)):
            check_nonnegative(name, weight)
        read_schedule(schedule)  # not kept, so that the object can be pickled
        if graphs is not None:
            check_integer("graphs", graphs, 0)
        self.eta = eta
        self.lam_d, self.lam_c, self.lam_2 = lam_d, lam_c, lam_2
        self.schedule = schedule
        self.graphs = sys.maxsize if graphs is None else graphs
        self.task_batchable = lam_c == 0  # the cosine takes inner products over parameters

    @property
    @override
    def is_first_order(self) -> bool:
        return self.eta == 0 or super().is_first_order

    def rate(self, step: int) -> float:
        """`rho(t) eta` in meta-step `t`."""
        return self.eta * read_schedule(self.schedule)(step)

    @override
    def through_grads(
        self, step: InnerStep, cotangents: Cotangents, replay: Replay, context: StepContext
    ) -> Sequence[Tensor]:
        chosen = [i for i, grad in enumerate(cotangents.grads) if grad is not None]
        if step.grads is not None or not chosen:
            replay.discard_last()
            return self._descend(step, step.grads or cotangents.grads, cotangents, context)
        grads: list[Tensor | None] = [None] * len(step.params)
        with replay.repeat_last() as loss:
            found = torch.autograd.grad(
                loss(step.params),
                [step.params[i] for i in chosen],
                create_graph=True,
                allow_unused=True,
            )
            for i, grad in zip(chosen, found, strict=True):
                grads[i] = grad
            return self._descend(step, grads, cotangents, context)

    def _descend(
        self, step: InnerStep, grads: Grads, cotangents: Cotangents, context: StepContext
    ) -> Sequence[Tensor]:
        """The parameters' cotangents plus the gradient of the similarity loss of this step."""
        with torch.no_grad():
            direction = self._direction(step, grads, cotangents)
            rate = self.rate(context.step)
            direction = [None if d is None else rate * d for d in direction]
        return ops.inner_step(cotangents.params, hvp_of_graph(grads, step.params, direction), -1.0)

    def _direction(
        self, step: InnerStep, grads: Grads, cotangents: Cotangents
    ) -> list[Tensor | None]:
        """`-dL/dg`, as the cotangent of the gradients: `-a` times it for gradient descent."""
        total = self.lam_d + self.lam_c + self.lam_2
        direction = [None if c is None else total * c for c in cotangents.grads]
        if self.lam_c == self.lam_2 == 0:
            return direction
        # Both other losses have a part along g; that of the cosine removes the part of v along g.
        pairs = [
            (g, v)
            for g, v, c in zip(grads, cotangents.params, direction, strict=True)
            if g is not None and c is not None
        ]
        along: float | Tensor = self.lam_2
        if self.lam_c and pairs:
            dot = torch.stack([(g * v).sum() for g, v in pairs]).sum()
            square = torch.stack([g.square().sum() for g, _ in pairs]).sum()
            along = self.lam_2 + self.lam_c * torch.where(square > 0, dot / square, 0)
        parts = [
            torch.zeros_like(p) if g is None or c is None else -along * g
            for p, g, c in zip(step.params, grads, direction, strict=True)
        ]
        extra = step.pullback(parts, [torch.zeros_like(s) for s in cotangents.state]).grads
        return [
            d if d is None or e is None else d + e for d, e in zip(direction, extra, strict=True)
        ]
