"""The inner loop: from the initialisation to a task's fast weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import InnerStep, Tape
from fastmeta.functional._prefix_cache import PrefixCache
from fastmeta.inner_step import at_step

# The support loss as a function of the parameters.
LossFn = Callable[[Sequence[Tensor]], Tensor]


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


def run_inner_loop(
    adaptation: Adaptation,
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
        adaptation: its update rule.
        loss: the support loss as a function of the parameters; evaluated
            :func:`~fastmeta.inner_step.at_step` after step.
        params: where to start; not modified.
        steps: inner steps, ``adaptation.steps`` by default.
        create_graph: whether to keep the graph, so that the fast weights can be differentiated
            in ``params``; without it they are leaves that require a gradient.
        record: whether to keep the inner gradients.
        tape: where to note every step for a walk back; not together with ``create_graph``.
    """
    count = adaptation.steps if steps is None else steps
    fast = list(params) if create_graph else [p.detach().requires_grad_() for p in params]
    state = adaptation.start(fast)
    inner_grads: list[list[Tensor | None]] = []
    losses: list[Tensor] = []
    moving = [adaptation.adapts(k, fast) for k in range(count)]
    memo = PrefixCache(_constant(fast, moving))
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
            fast, state = adaptation.update(k, fast, grads, state)
            continue
        with torch.no_grad():
            if tape is None:
                moved, state = adaptation.update(k, fast, plain, state)
            else:
                moved, state, pullback = adaptation.vjp(k, fast, plain, state)
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
