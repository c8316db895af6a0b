"""The meta-step of a sequence of layers in plain tensor operations, for all tasks at once.

It computes what the compiled call does, on any device. Which operations run depends on shapes and
options alone, so that a CUDA graph can capture them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmeta.ops._sequence_affine import Layer
from fastmeta.ops._sequence_layers import Norm, layer_of
from fastmeta.ops._sequence_losses import LOSSES
from fastmeta.reference.sequence import SequenceLayer

# Of every parameter, `(T, *shape)`; `None` where an evaluation does not use it.
MaybeGrads = Sequence[Tensor | None]


class Plan(NamedTuple):
    """What a meta-step consists of.

    Attributes:
        layers: as in [`fastmeta.ops.sequence_step`][].
        loss: as there.
        steps: inner steps.
        masks: over the parameters, as `differentiated` there; first order without a true value.
        compares: whether `lam_c` or `lam_2` is not 0.
        record_inner: whether to return the mean inner gradients.
    """

    layers: tuple[SequenceLayer, ...]
    loss: str
    steps: int
    masks: tuple[tuple[bool, ...], ...]
    compares: bool
    record_inner: bool


def run_plan(
    plan: Plan, params: Sequence[Tensor], tasks: Sequence[Tensor], rates: Tensor
) -> list[Tensor]:
    """The results of [`fastmeta.ops.sequence_step`][].

    Args:
        plan: the meta-step.
        params: the initialisation.
        tasks: `support_x`, `support_y`, `query_x` and `query_y`.
        rates: `lr`, `lam_d`, `lam_c` and `lam_2`: a tensor, since a graph's numbers are constant.

    Returns:
        The fields of `SequenceStep`, without `inner_gradients` unless they are recorded.
    """
    support_x, support_y, query_x, query_y = tasks
    support, query = _side_by_side(support_x), _side_by_side(query_x)
    theta = [p.expand(len(support_x), *p.shape).contiguous() for p in params]
    masks = [plan.masks[min(k, len(plan.masks) - 1)] for k in range(plan.steps)]
    kept = any(map(any, masks))
    tape: list[tuple[Evaluation, MaybeGrads]] = []
    sums = [torch.zeros_like(p) for p in theta] if plan.record_inner else []
    losses, statistics = [], []
    for k in range(plan.steps):
        evaluation = Evaluation(plan, theta, support, support_y, k)
        grads = evaluation.gradient()
        losses.append(evaluation.loss)
        statistics.append(evaluation.statistics)
        if kept:
            tape.append((evaluation, grads))
        if plan.record_inner:
            sums = [s if g is None else s.add_(g) for s, g in zip(sums, grads, strict=True)]
        theta = _descend(theta, rates[0], grads)
        del evaluation  # before the next one, if it is not kept
    evaluation = Evaluation(plan, theta, query, query_y, -1)
    found = zip(theta, evaluation.gradient(), strict=True)
    v = [torch.zeros_like(p) if g is None else g for p, g in found]
    losses.append(evaluation.loss)
    statistics.append(evaluation.statistics)
    output = evaluation.output
    del evaluation
    while tape:  # the reverse sweep
        evaluation, grads = tape.pop()
        chosen = [i for i, used in enumerate(masks[len(tape)]) if used and grads[i] is not None]
        d, rate = {i: v[i] for i in chosen}, rates[0]
        if not plan.compares:
            rate = rate * rates[1]
        elif chosen:
            d = _cotangents({i: g for i in chosen if (g := grads[i]) is not None}, d, rates)
        v = _descend(v, rate, evaluation.hessian_product(d))
    return [
        _packed(v),
        *([_packed(sums) / plan.steps] if plan.record_inner else []),
        *(losses[0], losses[-1].clone(), output),
        torch.stack(statistics, 1),
    ]


class Evaluation:
    """The network on one set of examples, with what its derivatives need.

    Args:
        plan: the meta-step.
        theta: the parameters, `(T, *shape)`.
        x: the examples, side by side.
        y: their targets, `(T, n)` or `(T, n, out)`.
        step: the inner step; -1 for the adapted network.

    Attributes:
        output: `(T, n, out)`.
        loss: `(T,)`.
        statistics: `(T, S)`, of the normalisations.
    """

    def __init__(
        self, plan: Plan, theta: Sequence[Tensor], x: Tensor, y: Tensor, step: int
    ) -> None:
        self._count = len(theta)
        self._layers: list[tuple[range, Layer]] = []
        for layer in plan.layers:
            own = _own_params(layer, step)
            self._layers.append((own, layer_of(layer, [theta[i] for i in own])))
            x = self._layers[-1][1].forward(x)
        self._loss = LOSSES[plan.loss](x, y)
        self.output, self.loss = x, self._loss.value
        norms = [layer for _, layer in self._layers if isinstance(layer, Norm)]
        parts = [part.view(len(x), -1) for norm in norms for part in (norm.mean, norm.var)]
        self.statistics = torch.cat(parts, 1) if parts else x.new_empty(len(x), 0)

    def gradient(self) -> MaybeGrads:
        """The gradient of each task's loss."""
        return self._pull(self._loss.gradient, tangents=False)

    def hessian_product(self, d: Mapping[int, Tensor]) -> MaybeGrads:
        """The tangent of the gradient along `d`, which holds some parameters' directions.

        Starts at the lowest layer with a direction. Follows `gradient`.
        """
        u: Tensor | None = None
        for own, layer in self._layers:
            directed = any(i in d for i in own)
            if directed or u is not None:
                parts = zip(own, layer.params, strict=True)
                v = [d[i] if i in d else torch.zeros_like(p) for i, p in parts]
                u = layer.tangent(u, v if directed else None)
        if u is None:
            return [None] * self._count
        return self._pull(self._loss.gradient_tangent(u), tangents=True)

    def _pull(self, dy: Tensor, tangents: bool) -> MaybeGrads:
        """The gradients of the parameters from that of the outputs, or the tangents of both."""
        grads: list[Tensor | None] = [None] * self._count
        for k in reversed(range(len(self._layers))):
            own, layer = self._layers[k]
            pull = layer.backward_tangent if tangents else layer.backward
            dy, parts = pull(dy, k > 0)
            for i, part in zip(own, parts, strict=True):
                grads[i] = part
        return grads


def _own_params(layer: SequenceLayer, step: int) -> range:
    """The indices of a layer's parameters at an inner step; -1 for the adapted network."""
    if layer.kind not in ("conv", "norm", "linear"):
        return range(0)
    at = layer.weight + 2 * (layer.sets - 1 if step < 0 else min(step, layer.sets - 1))
    return range(at, at + 1 + layer.bias)


def _descend(values: Sequence[Tensor], rate: Tensor, grads: MaybeGrads) -> list[Tensor]:
    """`values - rate * grads`, in two launches."""
    result, used = list(values), [i for i, g in enumerate(grads) if g is not None]
    if used:
        changes = torch._foreach_mul([g for g in grads if g is not None], rate)
        moved = torch._foreach_sub([values[i] for i in used], changes)
        for i, value in zip(used, moved, strict=True):
            result[i] = value
    return result


def _cotangents(
    g: Mapping[int, Tensor], v: Mapping[int, Tensor], rates: Tensor
) -> dict[int, Tensor]:
    """`d` of the similarity loss, from the gradients of the parameters that are compared."""
    dot, square = (
        torch.stack([(g[i] * other[i]).flatten(1).sum(1, dtype=torch.float64) for i in g]).sum(0)
        for other in (v, g)
    )
    _, lam_d, lam_c, lam_2 = rates
    along = lam_2 + lam_c * (dot / square).masked_fill_(square == 0, 0).to(rates.dtype)
    total = lam_d + lam_c + lam_2
    return {i: total * v[i] - along.view(-1, *[1] * (g[i].dim() - 1)) * g[i] for i in g}


def _side_by_side(x: Tensor) -> Tensor:
    """Images of all tasks as one batch `(n, T * channels, h, w)`; features as they are."""
    return x.transpose(0, 1).flatten(1, 2) if x.dim() == 5 else x


def _packed(grads: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten(1) for g in grads], 1)
