"""The inner loop: from the initialisation to the fast weights of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmeta._checks import check_integer
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Tape
from fastmeta.functional._prefix_cache import PrefixCache
from fastmeta.inner_step import at_step

# The support loss as a function of the parameters.
LossFn = Callable[[Sequence[Tensor]], Tensor]


@dataclass
class Adapted:
    """The outcome of the inner loop on one task.

    Attributes:
        fast: the fast weights, in the order of the parameters.
        inner_grads: the gradients of each inner step, detached; empty unless recorded.
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
    first: int = 0,
    state: Sequence[Tensor] | None = None,
    create_graph: bool = False,
    record: bool = False,
    tape: Tape | None = None,
    differentiated: Sequence[Sequence[bool]] | None = None,
) -> Adapted:
    """Runs the inner loop.

    Args:
        adaptation: the update rule.
        loss: the support loss as a function of the parameters; evaluated
            once per inner step, inside [`at_step`][fastmeta.inner_step.at_step].
        params: the initialisation; not modified.
        steps: inner steps, `adaptation.steps` by default.
        first: number of inner steps before these.
        state: the inner optimizer's state after them; its initial state by default.
        create_graph: whether to keep the graph, so that the fast weights can be differentiated
            with respect to `params`; without it they are leaves that require a gradient.
        record: whether to keep the inner gradients.
        tape: records every step for the reverse sweep; not together with `create_graph`.
        differentiated: which parameters' gradients keep their graph, one mask per inner step (the
            last one for all further steps); all by default. The others are constants, and nothing
            below the lowest of these parameters is differentiated twice.

    Raises:
        ValueError: if `steps` is not an integer of at least 0.
    """
    count = adaptation.steps if steps is None else steps
    check_integer("steps", count, 0)
    fast = list(params) if create_graph else [p.detach().requires_grad_() for p in params]
    own_state = adaptation.start(fast) if state is None else list(state)
    inner_grads: list[list[Tensor | None]] = []
    losses: list[Tensor] = []
    adapted = [adaptation.adapts(first + k, fast) for k in range(count)]
    cache = PrefixCache(_constant(fast, adapted))
    for k in range(count):
        # The graph of a taped step leads to the frozen parameters, too.
        taped = tape is not None and k >= count - tape.graphs
        graph = create_graph or taped
        if not graph:
            for t, trained in zip(fast, adapted[k], strict=True):
                t.requires_grad_(trained)
        elif create_graph and k:
            fast = _new_nodes(fast, adapted[k - 1], adapted[k])
        mask: Sequence[bool] = [graph] * len(fast)
        if graph and differentiated is not None:
            mask = differentiated[min(first + k, len(differentiated) - 1)]
            if create_graph:  # one update is one node, through which others would be reached
                fast = [p.view_as(p) if m else p for p, m in zip(fast, mask, strict=True)]
        with at_step(first + k), nullcontext() if taped else cache.used():
            value = loss(fast)
        grads = inner_gradients(value, fast, adapted[k], mask, retain_graph=taped)
        losses.append(value.detach())
        del value  # and what its graph holds
        plain: list[Tensor | None] = [None if g is None else g.detach() for g in grads]
        if record:
            inner_grads.append(plain)
        if create_graph:
            fast, own_state = adaptation.update(first + k, fast, grads, own_state)
            continue
        with torch.no_grad():
            if tape is not None:
                kept = graph or (tape.gradients and all(adapted[k]))
                number = first + k
                tape.record(adaptation, number, fast, plain, own_state, grads if kept else None)
            updated, own_state = adaptation.update(first + k, fast, plain, own_state)
        fast = [t.requires_grad_() for t in updated]
    return Adapted(fast, inner_grads, losses, own_state)


def _constant(params: Sequence[Tensor], adapted: Sequence[Sequence[bool]]) -> list[Tensor]:
    """The parameters that none of several steps adapts."""
    if len(adapted) < 2:
        return []
    return [p for p, *steps in zip(params, *adapted, strict=True) if not any(steps)]


def _new_nodes(
    params: Sequence[Tensor], before: Sequence[bool], now: Sequence[bool]
) -> list[Tensor]:
    """The parameters; those adapted now but not in the step before as new nodes of the graph.

    The updates of other parameters depend on them: that is no part of this step's gradient.
    """
    return [p.view_as(p) if n and not b else p for p, b, n in zip(params, before, now, strict=True)]


def inner_gradients(
    value: Tensor,
    params: Sequence[Tensor],
    adapted: Sequence[bool],
    graph: Sequence[bool],
    retain_graph: bool = False,
) -> list[Tensor | None]:
    """Gradients with respect to adapted parameters; `None` for the others and unused ones.

    Args:
        value: the support loss.
        params: the parameters.
        adapted: for each parameter, whether its gradient is wanted.
        graph: for each parameter, whether its gradient keeps its graph; the others are constants.
        retain_graph: whether to keep the graph of the loss, too.
    """
    # Those with a graph first: their pass ends at the lowest of these parameters.
    found: list[Tensor | None] = [None] * len(params)
    if not all(adapted) and not value.requires_grad:
        return found
    kept = [i for i, used in enumerate(adapted) if used and graph[i]]
    plain = [i for i, used in enumerate(adapted) if used and not graph[i]]
    for chosen, keep in ((kept, True), (plain, False)):
        if chosen:
            grads = torch.autograd.grad(
                value,
                [params[i] for i in chosen],
                create_graph=keep,
                retain_graph=retain_graph or bool(kept),
                allow_unused=True,
            )
            for i, grad in zip(chosen, grads, strict=True):
                found[i] = grad
    return found
