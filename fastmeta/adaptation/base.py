"""What every way of adapting to a task offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmeta.memo import Memo
from fastmeta.steps import at_step

# The support loss as a function of the parameters.
LossFn = Callable[[Sequence[Tensor]], Tensor]
Grads = Sequence[Tensor | None]


class Cotangents(NamedTuple):
    """Derivatives of a number in the arguments of one update.

    Attributes:
        params: in the parameters, the gradients being held fixed.
        state: in the inner optimizer's state.
        grads: in the gradients; ``None`` where there was none.
        rates: in the adaptation's learned rates.
    """

    params: list[Tensor]
    state: list[Tensor]
    grads: list[Tensor | None]
    rates: list[Tensor]


# From the derivatives in one update's results (parameters, state) to those in its arguments.
Pullback = Callable[[Sequence[Tensor], Sequence[Tensor]], Cotangents]


@dataclass
class InnerStep:
    """One inner step as a walk back needs it.

    Attributes:
        params: the parameters before the step, leaves that require a gradient.
        pullback: of the update.
        grads: the gradients in ``params``: with their graph where that was kept; without one where
            the tape keeps gradients and all parameters move; else ``None``.
    """

    params: list[Tensor]
    pullback: Pullback
    grads: Grads | None


ThroughGrads = Callable[[InnerStep, Cotangents], Sequence[Tensor]]


@dataclass
class Tape:
    """The steps of one inner loop, for a walk back.

    Attributes:
        graphs: of how many last steps the graph is kept, too.
        gradients: whether the gradients of the others are kept.
        steps: the steps taken.
    """

    graphs: int = 0
    gradients: bool = False
    steps: list[InnerStep] = field(default_factory=list)

    def walk_back(
        self,
        v: Sequence[Tensor],
        state: Sequence[Tensor],
        rates: Sequence[Tensor],
        through_grads: ThroughGrads | None = None,
    ) -> tuple[Sequence[Tensor], list[Tensor]]:
        """From derivatives at the end of the inner loop to those at its beginning; empties it.

        Args:
            v: derivatives in the last parameters.
            state: the last state; it is not used afterwards, so its derivative is zero.
            rates: the learned rates.
            through_grads: from a step and its cotangents to the derivatives in its parameters,
                gradients included; without it the gradients are held fixed.

        Returns:
            The derivatives in the first parameters and in the rates.
        """
        d_state = [torch.zeros_like(s) for s in state]
        d_rates = [torch.zeros_like(r) for r in rates]
        while self.steps:
            step = self.steps.pop()
            back = step.pullback(v, d_state)
            v = back.params if through_grads is None else through_grads(step, back)
            d_state = back.state
            d_rates = [a + b for a, b in zip(d_rates, back.rates, strict=True)]
        return v, d_rates


@dataclass
class Adapted:
    """The outcome of the inner loop on one task.

    Attributes:
        fast: the fast weights, in the order of the parameters.
        inner_grads: gradients of each inner step, detached; empty unless they were asked for.
        losses: the support loss before each inner step, detached.
        state: the inner optimizer's state after the last step.
    """

    fast: list[Tensor]
    inner_grads: list[list[Tensor | None]]
    losses: list[Tensor]
    state: list[Tensor]


class Adaptation(ABC):
    """Inner adaptation: from the initialisation to a task's fast weights.

    A subclass says what one :meth:`update` is, on torch ops that autograd can differentiate, and
    what its state is at the :meth:`start`.

    Attributes:
        steps: number of inner steps during meta-training.
        rates: what the adaptation learns together with the initialisation; nothing by default.
        elementwise: whether :meth:`update`, :meth:`start` and :meth:`vjp` treat each element of a
            parameter without regard to the others and to its shape, so that the parameters of ``T``
            tasks can be stacked to ``(T, *shape)``. Not inherited (a subclass may change that): a
            class that is says so in its own body; an instance may take it back.
    """

    elementwise: bool = False
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

    def moving(self, step: int, params: Sequence[Tensor]) -> Sequence[bool]:
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

    def adapt(
        self,
        loss: LossFn,
        params: Sequence[Tensor],
        *,
        steps: int | None = None,
        create_graph: bool = False,
        record: bool = False,
        tape: Tape | None = None,
    ) -> Adapted:
        """Runs the inner loop.

        Args:
            loss: the support loss as a function of the parameters; evaluated
                :func:`~fastmeta.steps.at_step` after step.
            params: where to start; not modified.
            steps: inner steps, ``self.steps`` by default.
            create_graph: whether to keep the graph, so that the fast weights can be differentiated
                in ``params``; without it they are leaves that require a gradient.
            record: whether to keep the inner gradients.
            tape: where to note every step for a walk back; not together with ``create_graph``.
        """
        count = self.steps if steps is None else steps
        fast = list(params) if create_graph else [p.detach().requires_grad_() for p in params]
        state = self.start(fast)
        inner_grads: list[list[Tensor | None]] = []
        losses: list[Tensor] = []
        moving = [self.moving(k, fast) for k in range(count)]
        memo = Memo(_constant(fast, moving))
        for k in range(count):
            # A graph for the walk back leads to the frozen parameters, too.
            taped = tape is not None and k >= count - tape.graphs
            graph = create_graph or taped
            if not graph:
                for t, moves in zip(fast, moving[k], strict=True):
                    t.requires_grad_(moves)
            elif create_graph and k:
                fast = _apart(fast, moving[k - 1], moving[k])
            with at_step(k), nullcontext() if taped else memo.used():
                value = loss(fast)
            grads = _gradients(value, fast, moving[k], graph)
            losses.append(value.detach())
            plain: list[Tensor | None] = [None if g is None else g.detach() for g in grads]
            if record:
                inner_grads.append(plain)
            if create_graph:
                fast, state = self.update(k, fast, grads, state)
                continue
            with torch.no_grad():
                if tape is None:
                    moved, state = self.update(k, fast, plain, state)
                else:
                    moved, state, pullback = self.vjp(k, fast, plain, state)
                    kept = graph or (tape.gradients and all(moving[k]))
                    tape.steps.append(InnerStep(fast, pullback, grads if kept else None))
            fast = [t.requires_grad_() for t in moved]
        return Adapted(fast, inner_grads, losses, state)


def _constant(params: Sequence[Tensor], moving: Sequence[Sequence[bool]]) -> list[Tensor]:
    """The parameters that none of several steps adapts."""
    if len(moving) < 2:
        return []
    return [p for p, *moves in zip(params, *moving, strict=True) if not any(moves)]


def _apart(params: Sequence[Tensor], before: Sequence[bool], now: Sequence[bool]) -> list[Tensor]:
    """The parameters, those that begin to move as new nodes of the graph.

    Others have moved with gradients that depend on them: that is no part of this step's gradient.
    """
    return [p.view_as(p) if m and not b else p for p, b, m in zip(params, before, now, strict=True)]


def _gradients(
    value: Tensor, params: Sequence[Tensor], moves: Sequence[bool], create_graph: bool
) -> list[Tensor | None]:
    """The gradients in the parameters that move; ``None`` for the others and unused ones."""
    if not all(moves) and not value.requires_grad:
        return [None] * len(params)
    asked = [p for p, m in zip(params, moves, strict=True) if m]
    found = torch.autograd.grad(value, asked, create_graph=create_graph, allow_unused=True)
    known = iter(found)
    return [next(known) if m else None for m in moves]
