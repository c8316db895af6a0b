"""Support gradients that keep their graph, for the similarity loss of one task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastmeta.adaptation import Cotangents, Grads, InnerStep, Pullback, Tape
from fastmeta.adaptation.inner_loop import inner_gradients
from fastmeta.metagrad import GSL, StepContext
from fastmeta.metagrad._mixed_order import Masks, mask_of


class SupportGraphs:
    """The support gradients of the chosen layers in the inner steps of one task.

    Without `inner_lr` they are returned with their graph: the query loss is differentiated through
    the user's own updates, and the derivative of the similarity loss is taken on the way. With
    `inner_lr`, the rate of gradient descent, they are returned without, and `complete` adds the
    derivatives to the query gradient.

    Args:
        metagrad: the similarity loss.
        masks: the chosen layers, see `layer_masks`.
        context: the meta-step.
        inner_lr: see above.
        reached: called when a derivative has been taken.
    """

    def __init__(
        self,
        metagrad: GSL,
        masks: Masks | None,
        context: StepContext,
        inner_lr: float | None,
        reached: Callable[[], None],
    ) -> None:
        self.inner_lr = inner_lr
        self._reached = False
        self._metagrad = metagrad
        self._masks = masks
        self._context = context
        self._report = reached
        self._count = 0
        self._tape = Tape()
        # Parameters of each inner step, with their version and values.
        self._seen: list[tuple[Tensor, int, Tensor]] = []
        self._used: list[bool] = []

    def gradients(self, loss: Tensor, params: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of one inner step; `None` for parameters that are `None` or unused."""
        given = [p is not None for p in params]
        mask = given if self._masks is None else mask_of(self._masks, self._count)
        inputs: Any = params
        grads = inner_gradients(loss, inputs, given, mask)
        kept = [i for i, g in enumerate(grads) if g is not None and mask[i]]
        if self.inner_lr is None:
            if kept:
                chosen = _similarity(self, *(grads[i] for i in kept))
                for i, grad in zip(kept, chosen, strict=True):
                    grads[i] = grad
        else:
            graph = [grads[i] if i in kept else None for i in range(len(grads))]
            step = InnerStep(self._count, inputs, _descent(self.inner_lr), graph)
            self._tape.steps.append(step)
            self._seen += [(p, p._version, p.detach().clone()) for p in params if p is not None]
            grads = [None if g is None else g.detach() for g in grads]
            used = [g is not None for g in grads]
            self._used = [a or b for a, b in zip(used, self._used or used, strict=True)]
        self._count += 1
        return grads

    def complete(self, query: Grads, params: Sequence[Tensor], scale: float) -> list[Tensor | None]:
        """The query gradient plus the derivatives of the similarity loss; frees the graphs.

        Args:
            query: the query gradient, which has these derivatives without `inner_lr`.
            params: the meta-parameters.
            scale: factor of the query loss in the loop; the similarity is that without it.

        Raises:
            RuntimeError: if there is a query gradient, but no derivative of the similarity loss, or
                fast weights were changed through `.data`.
        """
        if self._tape.steps:
            return self._sweep(query, params, scale)
        if any(g is not None for g in query) and not self._reached:
            raise RuntimeError(
                "metagrad.GSL had no effect on this task: the query loss was not differentiated "
                "through gradients of task.inner_gradients(support_loss). Take the inner gradients "
                "by it; and if the updates are not differentiable (in place, or by an inner "
                "optimizer), use opt.task(inner_lr=...)."
            )
        return list(query)

    def _sweep(self, query: Grads, params: Sequence[Tensor], scale: float) -> list[Tensor | None]:
        def through(step: InnerStep, back: Cotangents) -> Sequence[Tensor]:
            assert step.grads is not None
            graph = [None if g is None else c for g, c in zip(step.grads, back.grads, strict=True)]
            back = back._replace(grads=graph)
            return self._metagrad.descend(step, step.grads, back, self._context)

        self._check_values()
        start = [
            torch.zeros_like(p) if g is None else g / scale
            for g, p in zip(query, params, strict=True)
        ]
        swept, _, _ = self._tape.reverse_sweep(start, [], [], through)
        self.reach()
        return [
            None if g is None and not used else v * scale
            for v, g, used in zip(swept, query, self._used, strict=True)
        ]

    def _check_values(self) -> None:
        """Rejects changes that autograd does not see, with which the graphs would be wrong."""
        for param, version, values in self._seen:
            if param._version == version and not torch.equal(param, values):
                raise RuntimeError(
                    "fast weights were changed through .data in the inner loop, which autograd "
                    "does not see; expected an update under torch.no_grad(), such as "
                    "p.sub_(lr * g), or by an optimizer."
                )

    def reach(self) -> None:
        """Notes that the similarity loss has been differentiated."""
        self._reached = True
        self._report()

    def direction(self, grads: Sequence[Tensor], cotangents: Grads) -> list[Tensor | None]:
        """The cotangents of `grads` through the similarity loss, from those of the query loss."""
        # The cotangents suffice: the L2 distance, which needs more, is refused without inner_lr.
        step = InnerStep(0, list(grads), _descent(1.0), grads)
        back = Cotangents([], [], cotangents, [])
        return self._metagrad.direction(step, grads, back, self._context)


class _Similarity(torch.autograd.Function):
    """The identity, whose derivative is that of the similarity loss of support gradients."""

    @staticmethod
    def forward(ctx: Any, graphs: SupportGraphs, *grads: Tensor) -> tuple[Tensor, ...]:
        ctx.graphs = graphs
        ctx.save_for_backward(*grads)
        ctx.set_materialize_grads(False)
        return tuple(g.clone() for g in grads)  # not views, which could not be changed in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.graphs.reach()
        return (None, *ctx.graphs.direction(ctx.saved_tensors, cotangents))


_similarity: Callable[..., tuple[Tensor, ...]] = _Similarity.apply


def _descent(rate: float) -> Pullback:
    """The pullback of `params - rate * grads`."""

    def pullback(v: Sequence[Tensor], state: Sequence[Tensor]) -> Cotangents:
        return Cotangents(list(v), [], [-rate * x for x in v], [])

    return pullback
