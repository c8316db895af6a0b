"""Base class of inner-loop adaptations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmeta.adaptation.tape import Cotangents, Grads, Pullback


class Adaptation(ABC):
    """Inner adaptation: from the initialisation to a task's fast weights.

    A subclass says what one :meth:`update` is, on torch ops that autograd can differentiate, and
    what its state is at the :meth:`start`.

    Attributes:
        steps: number of inner steps during meta-training.
        rates: what the adaptation learns together with the initialisation; nothing by default.
        task_batchable: whether :meth:`update`, :meth:`start` and :meth:`vjp` are element-wise in
            the parameters, so that those of ``T`` tasks can be stacked to ``(T, *shape)``. Not
            inherited (a subclass may change that): each class states it in its own body; an
            instance may take it back.
    """

    task_batchable: bool = False
    steps: int
    rates: Sequence[nn.Parameter] = ()

    def bind(  # noqa: B027  (most have nothing to learn)
        self, params: Sequence[Tensor], names: Sequence[str]
    ) -> None:
        """Prepares for these parameters; a learner calls it once. Nothing by default.

        Args:
            params: the initialisation; :attr:`rates` are made for it.
            names: of the parameters in the module.
        """

    def adapts(self, step: int, params: Sequence[Tensor]) -> Sequence[bool]:
        """Which parameters inner step ``step`` adapts; all by default.

        Gradients are asked for these alone; for the others they are ``None``.
        """
        return [True] * len(params)

    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The inner optimizer's state before the first step; none by default."""
        return []

    @abstractmethod
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One update, differentiable in ``params``, ``grads``, ``state`` and :attr:`rates`.

        Args:
            step: which inner step it is, from 0.
            params: the parameters; not modified.
            grads: their gradients; ``None`` leaves a parameter and its state as they are (the same
                tensors).
            state: as :meth:`start` or the last update left it; not modified.

        Returns:
            The new parameters and the new state.
        """

    def vjp(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Pullback]:
        """:meth:`update` without a graph, and its vector-Jacobian product.

        By autograd on this one update; the pullback keeps ``params``, ``grads`` and ``state``.
        """

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            known = [g for g in grads if g is not None]
            parts = [
                [t.detach().requires_grad_() for t in group] for group in (params, state, known)
            ]
            fresh = iter(parts[2])
            again = [None if g is None else next(fresh) for g in grads]
            with torch.enable_grad():
                outs = self.update(step, parts[0], again, parts[1])
            leaves = [*parts[0], *parts[1], *parts[2], *self.rates]
            found = iter(
                torch.autograd.grad(
                    [*outs[0], *outs[1]], leaves, [*d_params, *d_state], materialize_grads=True
                )
            )
            return Cotangents(
                params=[next(found) for _ in params],
                state=[next(found) for _ in state],
                grads=[None if g is None else next(found) for g in grads],
                rates=[next(found) for _ in self.rates],
            )

        with torch.no_grad():
            new_params, new_state = self.update(step, params, grads, state)
        return new_params, new_state, pullback


def check_loop(lr: float, steps: int) -> None:
    """Refuses a learning rate that is not positive and a negative number of steps.

    Raises:
        ValueError: in either case.
    """
    if not lr > 0:
        raise ValueError(f"the inner learning rate must be positive, got {lr}.")
    if steps < 0:
        raise ValueError(f"the number of inner steps must not be negative, got {steps}.")
