"""Gradient transformations, of which functional optimizers are made.

Updates, parameters and states are structures of tensors, in which `None` is a missing gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "GradientTransformation",
    "chain",
    "identity",
    "nan_to_num",
    "scale_by_adam",
    "scale_by_neg_lr",
    "scale_by_rms",
    "trace",
]

# A number, a tensor without dimensions, or a function of the number of steps taken.
ScalarOrSchedule = Any


class Update(Protocol):
    """From updates (gradients at first) and a state to new ones."""

    def __call__(
        self, updates: Any, state: Any, *, params: Any = None, inplace: bool = True
    ) -> tuple[Any, Any]:
        """Without `inplace`, the result is a differentiable function of the parameters, too.

        No tensor is overwritten here, other than in TorchOpt.
        """


class GradientTransformation(NamedTuple):
    """A functional optimizer, or a part of one.

    Attributes:
        init: from parameters to the state.
        update: see `Update`; the result is added to the parameters.
    """

    init: Callable[[Any], Any]
    update: Update

    def chain(self, next: GradientTransformation) -> GradientTransformation:
        """This transformation, then `next`."""
        return chain(self, next)


def chain(*transformations: GradientTransformation) -> GradientTransformation:
    """The transformations one after another; with their states in a tuple."""

    def update(
        updates: Any, state: Any, *, params: Any = None, inplace: bool = True
    ) -> tuple[Any, Any]:
        if len(state) != len(transformations):
            raise ValueError(
                f"expected the state of {len(transformations)} transformations, from init; got "
                f"{len(state)}."
            )
        states = []
        for transformation, own in zip(transformations, state, strict=True):
            updates, new = transformation.update(updates, own, params=params, inplace=inplace)
            states.append(new)
        return updates, tuple(states)

    return GradientTransformation(
        lambda params: tuple(t.init(params) for t in transformations), update
    )


def flattened(inner: GradientTransformation) -> GradientTransformation:
    """The transformation of the lists of leaves; its state is that of lists."""

    def update(
        updates: Any, state: Any, *, params: Any = None, inplace: bool = True
    ) -> tuple[Any, Any]:
        leaves, structure = tree_flatten(updates)
        flat = None if params is None else tree_leaves(params)
        found, state = inner.update(leaves, state, params=flat, inplace=inplace)
        return tree_unflatten(found, structure), state

    return GradientTransformation(lambda params: inner.init(tree_leaves(params)), update)


def map_present(function: Callable[..., Any], updates: Any, *rest: Any) -> Any:
    """`function` of each update that is not `None`, and the same place in other structures."""
    leaves, structure = tree_flatten(updates)
    others = [structure.flatten_up_to(tree) for tree in rest]
    return tree_unflatten(
        [g if g is None else function(g, *more) for g, *more in zip(leaves, *others, strict=True)],
        structure,
    )


def stateless(function: Callable[[Any, Any, bool], Any]) -> GradientTransformation:
    """The transformation of updates by a function of these, the parameters and `inplace`."""

    def update(
        updates: Any, state: Any, *, params: Any = None, inplace: bool = True
    ) -> tuple[Any, Any]:
        return function(updates, params, inplace), state

    return GradientTransformation(lambda params: (), update)


def identity() -> GradientTransformation:
    """The transformation that changes nothing."""
    return stateless(lambda updates, *_: updates)


def nan_to_num(
    nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> GradientTransformation:
    """`torch.nan_to_num` of the updates."""
    return stateless(
        lambda updates, *_: map_present(lambda g: g.nan_to_num(nan, posinf, neginf), updates)
    )


def decayed(weight_decay: float, maximize: bool = False) -> GradientTransformation:
    """Updates plus `weight_decay` times the parameters, negated first with `maximize`."""

    def function(updates: Any, params: Any, inplace: bool) -> Any:
        if maximize:
            updates = map_present(torch.neg, updates)
        if not weight_decay:
            return updates
        if params is None:
            raise ValueError("weight decay needs the parameters: pass params= to update.")

        def added(g: Tensor, p: Tensor) -> Tensor:
            constant = inplace and not g.requires_grad
            return g.add(p.detach() if constant else p, alpha=weight_decay)

        return map_present(added, updates, params)

    return stateless(function)


class TraceState(NamedTuple):
    """State of momentum: the buffers, and the number of steps."""

    trace: Any
    steps: int


def trace(
    momentum: float,
    dampening: float = 0.0,
    nesterov: bool = False,
    moment_requires_grad: bool = False,
) -> GradientTransformation:
    """Momentum as in `torch.optim.SGD`; nothing if it is 0."""
    if not momentum:
        return identity()

    def init(params: Any) -> TraceState:
        return TraceState(_zeros(params, moment_requires_grad), 0)

    def update(
        updates: Any, state: TraceState, *, params: Any = None, inplace: bool = True
    ) -> tuple[Any, TraceState]:
        def buffer(t: Tensor, g: Tensor | None) -> Tensor:
            if g is None:
                return t
            return t.add(g) if not state.steps else t.mul(momentum).add(g, alpha=1 - dampening)

        new = tree_map(buffer, state.trace, updates)
        if nesterov:
            moved = map_present(lambda g, t: g.add(t, alpha=momentum), updates, new)
        else:
            moved = map_present(lambda g, t: t.clone(), updates, new)
        return moved, TraceState(new, state.steps + 1)

    return GradientTransformation(init, update)


class AdamState(NamedTuple):
    """Moments of the gradients, and the number of steps of each parameter."""

    mu: Any
    nu: Any
    steps: Any


def scale_by_adam(
    betas: tuple[float, float], eps: float, eps_root: float, moment_requires_grad: bool
) -> GradientTransformation:
    """The direction of Adam. The square root has derivative zero at zero."""
    first, second = betas

    def init(params: Any) -> AdamState:
        mu, nu = (_zeros(params, moment_requires_grad) for _ in range(2))
        return AdamState(mu, nu, _counts(params))

    def update(
        updates: Any, state: AdamState, *, params: Any = None, inplace: bool = True
    ) -> tuple[Any, AdamState]:
        mu, nu = _moment(updates, state.mu, first), _moment(updates, state.nu, second, square=True)
        steps = _increased(state.steps, updates)

        def direction(g: Tensor, m: Tensor, v: Tensor, k: Tensor) -> Tensor:
            # The powers are in torch's default dtype, as in TorchOpt.
            width = _root(v.div(1 - second**k).add(eps_root)).add(eps)
            return m.div(1 - first**k).div(width)

        return map_present(direction, updates, mu, nu, steps), AdamState(mu, nu, steps)

    return GradientTransformation(init, update)


class RmsState(NamedTuple):
    """Moments of the gradients; the first one is `None` if it is not used."""

    mu: Any
    nu: Any


def scale_by_rms(
    alpha: float, eps: float, initial_scale: float, centered: bool
) -> GradientTransformation:
    """The gradients divided by the root of their mean square, or by their standard deviation."""

    def init(params: Any) -> RmsState:
        nu = tree_map(lambda p: torch.full_like(p, initial_scale).detach(), params)
        return RmsState(_zeros(params, False) if centered else None, nu)

    def update(
        updates: Any, state: RmsState, *, params: Any = None, inplace: bool = True
    ) -> tuple[Any, RmsState]:
        mu = _moment(updates, state.mu, alpha) if centered else None
        nu = _moment(updates, state.nu, alpha, square=True)
        squares = nu if mu is None else tree_map(lambda n, m: n.addcmul(m, m, value=-1), nu, mu)
        scaled = map_present(lambda g, n: g.div(_root(n).add(eps)), updates, squares)
        return scaled, RmsState(mu, nu)

    return GradientTransformation(init, update)


def scale_by_neg_lr(lr: ScalarOrSchedule) -> GradientTransformation:
    """Updates times minus the learning rate, whose schedule gets the number of steps taken."""
    if not callable(lr):
        return stateless(lambda updates, *_: map_present(lambda g: g.mul(-lr), updates))

    def update(
        updates: Any, state: Any, *, params: Any = None, inplace: bool = True
    ) -> tuple[Any, Any]:
        scaled = map_present(lambda g, c: g.mul(-lr(c)), updates, state)
        return scaled, _increased(state, updates)

    return GradientTransformation(_counts, update)


def _zeros(params: Any, requires_grad: bool) -> Any:
    return tree_map(lambda p: torch.zeros_like(p, requires_grad=requires_grad), params)


def _counts(params: Any) -> Any:
    return tree_map(lambda p: torch.zeros((), dtype=torch.int64, device=p.device), params)


def _increased(count: Any, updates: Any) -> Any:
    return tree_map(lambda c, g: c if g is None else c + 1, count, updates)


def _moment(updates: Any, moment: Any, decay: float, square: bool = False) -> Any:
    def new(t: Tensor, g: Tensor | None) -> Tensor:
        if g is None:
            return t
        kept = t.mul(decay)
        return kept.addcmul(g, g, value=1 - decay) if square else kept.add(g, alpha=1 - decay)

    return tree_map(new, moment, updates)


def _root(square: Tensor) -> Tensor:
    return torch.where(square == 0, square.detach(), square).sqrt()
