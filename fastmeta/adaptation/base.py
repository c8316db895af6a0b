"""Base class of inner-loop adaptations."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta._checks import check_integer, check_positive
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback
from fastmeta.functional import Buffers, FunctionalModule, Loss
from fastmeta.tasks import Examples


def is_task_batchable(component: Any) -> bool:
    """Whether a component, an adaptation or a meta-gradient, declares stacked tasks itself."""
    return "task_batchable" in vars(type(component)) and bool(component.task_batchable)


class SupportLoss(ABC):
    """The support loss of an inner step, where it is not that of all support examples."""

    @abstractmethod
    def evaluate(
        self,
        model: FunctionalModule,
        loss: Loss,
        params: Sequence[Tensor],
        buffers: Buffers,
        x: Examples,
        y: Examples,
        meta_training: bool,
    ) -> tuple[Tensor, Tensor]:
        """Loss and outputs of one task, in place of `model.evaluate(loss, params, buffers, x, y)`.

        A function of its arguments and torch's random numbers: a reverse sweep repeats it.

        Args:
            model: the module as a function of its parameters.
            loss: of the learner.
            params: the fast weights.
            buffers: the task's copy of the module's buffers; updated.
            x: support inputs.
            y: support targets.
            meta_training: whether this is a meta-step; `False` in `adapt`, `predict` and
                `evaluate`.
        """


class Adaptation(ABC):
    """Inner adaptation: from the initialisation to a task's fast weights.

    A subclass defines one `update` in torch ops that autograd can differentiate, and the
    initial state, `start`.

    Attributes:
        steps: number of inner steps during meta-training.
        rates: what the adaptation learns together with the initialisation; nothing by default. A
            learner's optimizer needs leaves that require a gradient.
        support_loss: replaces the loss of all support examples in a learner; `None` by default.
        task_batchable: whether `update`, `start` and `pullback` are element-wise in
            the parameters, so that those of `T` tasks can be stacked to `(T, *shape)`. Not
            inherited (a subclass may change that): each class states it in its own body; an
            instance may take it back.
    """

    task_batchable: bool = False
    steps: int
    rates: Sequence[Tensor] = ()
    support_loss: SupportLoss | None = None

    @property
    def own_rates(self) -> Sequence[Tensor]:
        """Those of `rates` that `step_rates` changes, not the outer optimizer; none by default."""
        return ()

    def step_rates(self) -> None:  # noqa: B027
        """Changes `own_rates` by their `.grad`; called after each step of the outer optimizer."""

    def bind(  # noqa: B027  (most have nothing to prepare)
        self, params: Sequence[Tensor], names: Sequence[str]
    ) -> None:
        """Prepares for the parameters of a network; a learner calls it once. A no-op by default.

        Args:
            params: the initialisation; `rates` are created for it.
            names: of the parameters in the module.

        Raises:
            ValueError: if it does not suit the network, or was bound to another one before.
        """

    def restricted(
        self, kept: Sequence[int], params: Sequence[Tensor], names: Sequence[str]
    ) -> Adaptation:
        """This adaptation for some of the parameters that it is bound to; the others are frozen.

        A learner calls it if `requires_grad` of a parameter has changed. By default a copy
        that is bound to `params`.

        Args:
            kept: indices of the parameters that are not frozen.
            params: these parameters.
            names: of these parameters in the module.

        Raises:
            ValueError: if the adaptation does not suit them, or learns rates (then a subclass must
                override this).
        """
        if self.rates:
            raise ValueError(
                f"requires_grad of a parameter has changed, but {type(self).__name__} learns rates "
                "for the parameters that were trainable when the learner was built. Freeze "
                f"parameters before building the learner, or override {type(self).__name__}."
                "restricted."
            )
        other = copy.copy(self)
        other.bind(params, names)
        return other

    def adapts(self, step: int, params: Sequence[Tensor]) -> Sequence[bool]:
        """Which parameters are adapted in inner step `step`; all by default.

        Gradients are computed for these only; they are `None` for the others.
        """
        return [True] * len(params)

    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The state of the inner optimizer before the first step; empty by default."""
        return []

    @abstractmethod
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One update, differentiable in `params`, `grads`, `state` and `rates`.

        Args:
            step: index of the inner step, from 0.
            params: the parameters; not modified.
            grads: their gradients; where one is `None`, the same parameter and state tensors are
                returned.
            state: from `start` or the last update; not modified.

        Returns:
            The new parameters and the new state.
        """

    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        """The vector-Jacobian product of `update`, of whose arguments it keeps what it needs.

        By default autograd on this one update, which is computed again.
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

        return pullback


def check_loop(lr: float, steps: int) -> None:
    """Checks the two arguments that every adaptation has.

    Raises:
        ValueError: if the learning rate is not a positive finite number, or the number of inner
            steps not an integer of at least 0.
    """
    check_positive("lr", lr)
    check_integer("steps", steps, 0)
