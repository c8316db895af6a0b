"""Functional optimizers: `init(params)` and `update(grads, state, params=params)`."""

from __future__ import annotations

from typing import Any

from fastmeta._checks import check_in_range, check_nonnegative
from fastmeta.compat.torchopt.transform import (
    GradientTransformation,
    ScalarOrSchedule,
    chain,
    decayed,
    flattened,
    map_present,
    scale_by_adam,
    scale_by_neg_lr,
    scale_by_rms,
    stateless,
    trace,
)

__all__ = ["adam", "adamw", "rmsprop", "sgd"]


def sgd(
    lr: ScalarOrSchedule,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    """`torch.optim.SGD`.

    Args:
        lr: learning rate: a number, a tensor (which is differentiated), or a schedule: a function
            of the number of steps taken.
        momentum: decay rate of the buffer.
        dampening: the gradient enters the buffer times one minus it, but for the first step.
        weight_decay: `weight_decay * params` is added to the gradients.
        nesterov: Nesterov momentum.
        moment_requires_grad: whether the first buffers require a gradient.
        maximize: ascend.

    Raises:
        ValueError: if an argument is negative, or `nesterov` is given without momentum or with
            dampening.
    """
    check_nonnegative("momentum", momentum)
    if nesterov and (not momentum or dampening):
        raise ValueError(
            "nesterov=True needs momentum and no dampening; got "
            f"momentum={momentum}, dampening={dampening}."
        )
    return _chained(
        _decayed(weight_decay, maximize),
        trace(momentum, dampening, nesterov, moment_requires_grad),
        _scaled(lr),
    )


def adam(
    lr: ScalarOrSchedule = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    eps_root: float = 0.0,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    """`torch.optim.Adam`.

    Args:
        lr: see `sgd`.
        betas: decay rates of the moments.
        eps: added to the square root of the second moment.
        weight_decay: see `sgd`.
        eps_root: added below the root, for derivatives where gradients are tiny.
        moment_requires_grad: see `sgd`.
        maximize: see `sgd`.
        use_accelerated_op: ignored.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_adam(betas, eps, eps_root)
    return _chained(
        _decayed(weight_decay, maximize),
        scale_by_adam(betas, eps, eps_root, moment_requires_grad),
        _scaled(lr),
    )


def adamw(
    lr: ScalarOrSchedule = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    *,
    eps_root: float = 0.0,
    mask: Any = None,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    """`torch.optim.AdamW`.

    Args:
        lr: see `sgd`.
        betas: see `adam`.
        eps: see `adam`.
        weight_decay: `lr * weight_decay * params` is subtracted from the parameters.
        eps_root: see `adam`.
        mask: which parameters decay: a list of booleans, one for each of the leaves of `params`, or
            a function from the list of their gradients to one; all by default.
        moment_requires_grad: see `sgd`.
        maximize: see `sgd`.
        use_accelerated_op: see `adam`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_adam(betas, eps, eps_root)
    decay = _decayed(weight_decay)
    return _chained(
        _decayed(0.0, maximize),
        scale_by_adam(betas, eps, eps_root, moment_requires_grad),
        decay if mask is None else masked(decay, mask),
        _scaled(lr),
    )


def rmsprop(
    lr: ScalarOrSchedule = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    *,
    initial_scale: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    """`torch.optim.RMSprop`.

    Args:
        lr: see `sgd`.
        alpha: decay rate of the mean square.
        eps: added to the square root.
        weight_decay: see `sgd`.
        momentum: decay rate of a buffer of the steps.
        centered: divide by the standard deviation instead.
        initial_scale: the first mean square.
        nesterov: see `sgd`.
        maximize: see `sgd`.

    Raises:
        ValueError: if an argument is negative, or `nesterov` is given without momentum.
    """
    for name, value in (("alpha", alpha), ("eps", eps), ("momentum", momentum)):
        check_nonnegative(name, value)
    if nesterov and not momentum:
        raise ValueError(f"nesterov=True needs momentum; got momentum={momentum}.")
    return _chained(
        _decayed(weight_decay, maximize),
        scale_by_rms(alpha, eps, initial_scale, centered),
        trace(momentum, nesterov=nesterov),
        _scaled(lr),
    )


def masked(decay: GradientTransformation, mask: Any) -> GradientTransformation:
    """A stateless transformation for some parameters only, see `adamw`."""

    def function(updates: Any, params: Any, inplace: bool) -> Any:
        chosen = mask(updates) if callable(mask) else mask
        moved = decay.update(updates, (), params=params, inplace=inplace)[0]
        return map_present(lambda g, new, used: new if used else g, updates, moved, chosen)

    return stateless(function)


def _chained(*transformations: GradientTransformation) -> GradientTransformation:
    return flattened(chain(*transformations))


def _decayed(weight_decay: float, maximize: bool = False) -> GradientTransformation:
    check_nonnegative("weight_decay", weight_decay)
    return decayed(weight_decay, maximize)


def _scaled(lr: ScalarOrSchedule) -> GradientTransformation:
    if not callable(lr) and not lr >= 0:
        raise ValueError(f"lr must be at least 0 or a schedule; got {lr}.")
    return scale_by_neg_lr(lr)


def _check_adam(betas: tuple[float, float], eps: float, eps_root: float) -> None:
    for beta in betas:
        check_in_range("each of betas", beta, 0, 1)
    check_nonnegative("eps", eps)
    check_nonnegative("eps_root", eps_root)
