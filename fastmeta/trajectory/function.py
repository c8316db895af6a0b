"""Meta-gradients of any training run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta._checks import check_choice, check_integer
from fastmeta.adaptation import Adaptation, run_inner_loop
from fastmeta.functional import twice_differentiable
from fastmeta.functional._calls import compiled_calls
from fastmeta.gradients.sums import added
from fastmeta.trajectory._losses import InnerLosses, OuterLosses, check_outer_steps
from fastmeta.trajectory._sweep import MetaSweep
from fastmeta.trajectory._trees import Leaves
from fastmeta.trajectory.hvp import PRODUCTS, Hvp
from fastmeta.trajectory.methods import AtEnd, Exact, Info, Method, RunEnd, Sweep, left_out
from fastmeta.trajectory.replay import Replay
from fastmeta.trajectory.result import InnerState, Metagradient
from fastmeta.trajectory.schedule import Memory
from fastmeta.trajectory.store import Store
from fastmeta.trajectory.trajectory import Trajectory


def metagradient(
    inner_loss: Callable[[Any, Any, Any], Tensor],
    outer_loss: Callable[..., Tensor],
    params: Any,
    meta: Any,
    batches: Iterable[Any],
    *,
    optimizer: Adaptation,
    outer_batches: Mapping[int, Any] | None = None,
    memory: Memory = "all",
    offload: str | os.PathLike[str] | None = None,
    micro_batches: int = 1,
    method: Method | None = None,
    hvp: Hvp = "reverse",
    truncate: int | None = None,
    state: InnerState | None = None,
    buffers: Iterable[Tensor] = (),
) -> Metagradient:
    """The gradient of an outer loss through a training run, the inner loop.

    The run takes one step of `optimizer` on `inner_loss(params, meta, batch)` per batch. The
    derivatives of the outer loss at its end are exact up to rounding, and deterministic: a reverse
    sweep over the steps computes each step's Hessian-vector product, and the derivative of
    `<gradient, v>` with respect to the meta-parameters. It keeps the graph of one step at a time,
    and repeats a step with the same random numbers (dropout masks) and buffers. Functions of
    `torch.nn.functional` in the losses run as compiled ops as in learners, see
    [`fastmeta.functional.FusedModule`][].

    ```python
    def inner_loss(params, weights, batch):  # data weights
        x, y, i = batch
        losses = F.cross_entropy(functional_call(model, params, (x,)), y, reduction="none")
        return (weights.sigmoid()[i] * losses).mean()

    def outer_loss(params, weights):
        return F.cross_entropy(functional_call(model, params, (x_val,)), y_val)

    found = fastmeta.metagradient(
        inner_loss, outer_loss, dict(model.named_parameters()), weights, batches,
        optimizer=fastmeta.adaptation.AdamW(lr=1e-3), memory="sqrt",
    )
    weights.grad = found.meta
    ```

    Args:
        inner_loss: of `(params, meta, batch)`; a scalar.
        outer_loss: of `(params, meta)`, or of `(params, meta, batch)` with `outer_batches`; a
            scalar.
        params: the initial parameters: floating-point tensors, in any structure of dicts, lists and
            tuples; not changed.
        meta: the meta-parameters, likewise; `None` or `()` if there are none.
        batches: one per inner step. A sequence is indexed, several times; another iterable is read
            once into a list.
        optimizer: the inner optimizer; `steps` is not used. Its settings may be tensors without
            dimensions that require a gradient, and are computed from leaves of `meta` or are such
            leaves: `AdamW(lr=meta["log_lr"].exp())`.
        outer_batches: the outer loss is the sum of the outer losses at these numbers of inner
            steps, from 0 to `K`, on these batches. By default one at `K`, without a batch.
        memory: how many states of the run (parameters and state of `optimizer`) are kept at once:
            `"all"`, `"sqrt"`, `"log"` or a number, see [`fastmeta.trajectory.Trajectory`][].
        offload: where they are kept: `"cpu"`: in the host's memory, or a folder: in temporary
            files. Not those of which a step is computed at the time. By default on the device.
        micro_batches: gradient accumulation: the inner loss of each step is the mean over so many
            equal parts of the batch, which are evaluated and differentiated (once and twice) one
            after another, with the graph of one at a time. Every tensor in the batch is divided
            along its first dimension; everything else is given to all parts. For a loss that is a
            mean over examples that is the loss of the batch.
        method: how the run is differentiated; by default [`fastmeta.trajectory.Exact`][].
        hvp: how second derivatives are computed: `"reverse"` or `"forward"` over reverse, see
            [`fastmeta.metagrad.Recursion`][], or `"difference"`: the central difference of two
            gradients, an approximation.
        truncate: go back this many steps only. `params` of the result are the derivatives with
            respect to the parameters there.
        state: of a run that this one continues.
        buffers: tensors that the losses change in place, such as `model.buffers()`. They are as
            after the run in the end.

    Returns:
        The derivatives, losses and final parameters.

    Raises:
        ValueError: if an argument is out of range, there is no parameter, or a leaf is not a
            floating-point tensor, or `optimizer` chooses support examples; with a method that
            differentiates no inner step, also if `truncate` or another `hvp` is given, or there is
            no inner step.
        NotImplementedError: with `hvp="forward"`, where torch has no forward derivative.
    """
    check_choice("hvp", hvp, PRODUCTS)
    if optimizer.support_loss is not None:
        raise ValueError(
            f"{type(optimizer).__name__} chooses support examples of a learner's tasks; here the "
            "inner loss decides what is used. Pass the optimizer that it wraps."
        )
    method = Exact() if method is None else method
    own = batches if isinstance(batches, Sequence) else list(batches)
    initial, others = Leaves(params, "params"), Leaves(meta, "meta")
    if not initial.tensors:
        raise ValueError("params holds no tensor; expected at least one parameter.")
    before, skip = 0 if state is None else state.step, 0
    if truncate is not None:
        check_integer("truncate", truncate, 1)
        skip = max(len(own) - truncate, 0)
    if isinstance(method, AtEnd):
        method.check_run(len(own), truncate, hvp)
        skip = len(own)
    check_outer_steps(outer_batches, skip, len(own))
    check_integer("micro_batches", micro_batches, 1)
    inner = InnerLosses(inner_loss, initial, others, own, before, list(buffers), micro_batches)
    outer = OuterLosses(outer_loss, initial, others, outer_batches, inner)
    replay = Replay(inner, inner.buffers, initial.tensors[0].device)
    exact = isinstance(method, Sweep) and method.hessians
    sweep = MetaSweep(
        replay, inner.parts, outer, others.tensors, outer_batches or {}, before, exact, hvp
    )
    optimizer.bind(initial.tensors, initial.names)
    start = optimizer.start(initial.tensors) if state is None else state.optimizer
    with twice_differentiable(), compiled_calls(), Store(offload) as store:
        trajectory = Trajectory(optimizer, replay, memory, store=store, again=sweep.has_gradients)
        skipped = run_inner_loop(
            optimizer, inner, initial.tensors, steps=skip, first=before, state=start
        )
        adapted = trajectory.run(skipped.fast, len(own) - skip, before + skip, skipped.state)
        final = [t.detach() for t in adapted.fast]
        residual = None
        d_params: Sequence[Tensor | None] = [None] * len(initial.tensors)
        v = sweep.at_end(len(own), adapted.fast)
        if isinstance(method, AtEnd):
            end = RunEnd(
                replay=replay,
                parts=inner.parts,
                snapshot=replay.snapshot(),
                optimizer=optimizer,
                params=adapted.fast,
                state=adapted.state,
                step=before + len(own),
                steps=len(own),
                meta=others.tensors,
            )
            through, d_rates, residual = method.derivatives(end, v)
            sweep.meta = list(through)
        else:
            adapted.fast = []
            d_params, d_rates = trajectory.reverse(v, sweep.through)
    inner.write_buffers()
    found = added(added(sweep.meta, outer.meta), _through_settings(optimizer, others, d_rates))
    return Metagradient(
        params=initial.filled(d_params),
        meta=others.filled(found),
        outer_loss=torch.stack(list(outer.values.values())).sum(),
        outer_losses=dict(sorted(outer.values.items())),
        inner_losses=torch.stack([*skipped.losses, *adapted.losses])
        if len(own)
        else final[0].new_empty(0),
        final_params=initial.tree(final),
        state=InnerState(before + len(own), tuple(t.detach() for t in adapted.state)),
        info=Info(method, left_out(method, hvp, skip, len(own)), residual),
    )


def _through_settings(
    optimizer: Adaptation, meta: Leaves, d_rates: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Derivatives with respect to meta-parameters from which the optimizer's settings come."""
    leaves = [i for i, t in enumerate(meta.given) if t.requires_grad]
    pairs = [(r, d) for r, d in zip(optimizer.rates, d_rates, strict=True) if r.requires_grad]
    total: list[Tensor | None] = [None] * len(meta.given)
    if not leaves or not pairs:
        return total
    rates, cotangents = zip(*pairs, strict=True)
    found = torch.autograd.grad(
        rates, [meta.given[i] for i in leaves], cotangents, retain_graph=True, allow_unused=True
    )
    for i, grad in zip(leaves, found, strict=True):
        total[i] = grad
    return total
