"""Look-ahead in ordinary training: gradients at parameters that have been moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from fastmeta._checks import check_positive


@contextmanager
def look_ahead(
    params: Iterable[Tensor],
    grads: Iterable[Tensor | None] | None = None,
    *,
    lr: float | None = None,
    norm: float | None = None,
) -> Iterator[None]:
    """Moves parameters against their gradients, in place, for the time of a `with` block.

    Ordinary training with a first-order meta-gradient in each step: one half of the batch, the
    support set, takes a step; the gradient of the other half, the query set, is that at the moved
    parameters. With any optimizer:

    ```python
    optimizer.zero_grad()
    (loss(model, first_half) / 2).backward()
    with look_ahead(model.parameters(), norm=0.5):
        (loss(model, second_half) / 2).backward()
    optimizer.step()  # with the mean of both; of the second alone after zero_grad() in the block
    ```

    Any number of `backward()`, such as of micro-batches, may precede the block and be in it. With a
    correction or an aggregation, pairs of parts of the batch are the tasks of a
    [`TaskOptimizer`][fastmeta.TaskOptimizer]:

    ```python
    for support, query in parts:
        with optimizer.task(scale=1 / len(parts)) as task:
            grads = task.inner_gradients(loss(model, support))
            with look_ahead(model.parameters(), grads, norm=0.5):
                (loss(model, query) / len(parts)).backward()
    ```

    After the block the parameters have the same bits as before, of which there is a copy meanwhile.
    With `optimizer.task(inner_lr=...)`, which some similarity losses need, pass the same `lr`.

    Args:
        params: the parameters to be moved, possibly a few of a model's.
        grads: one per parameter; those whose gradient is `None` stay. By default `.grad`.
        lr: the step is `lr` times the gradients.
        norm: instead, the norm of the step over all parameters, whatever the scale of the loss.

    Raises:
        ValueError: if not exactly one of `lr` and `norm` is given, it is not positive, or number or
            shapes of the gradients differ from the parameters'.
        RuntimeError: if there is no gradient.
    """
    if (lr is None) == (norm is None):
        raise ValueError(f"expected either lr or norm; got lr={lr} and norm={norm}.")
    chosen = list(params)
    pairs = _pairs(chosen, [p.grad for p in chosen] if grads is None else list(grads))
    with torch.no_grad():
        before = [p.clone() for p, _ in pairs]
        rate = _rate([g for _, g in pairs], lr, norm)
        for p, g in pairs:
            p.sub_(g.to(p) * (rate.to(p) if isinstance(rate, Tensor) else rate))
    try:
        yield
    finally:
        with torch.no_grad():
            for (p, _), value in zip(pairs, before, strict=True):
                p.copy_(value)


def _pairs(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    """The parameters that have a gradient, and these."""
    shapes = [None if g is None else tuple(g.shape) for g in grads]
    if len(shapes) != len(params) or any(
        s is not None and s != p.shape for s, p in zip(shapes, params, strict=True)
    ):
        raise ValueError(
            f"expected one gradient for each of the {len(params)} parameters, in their order and "
            f"shapes (None for one that stays); got {len(shapes)} with shapes {shapes}."
        )
    pairs = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
    if not pairs:
        raise RuntimeError(
            "no parameter has a gradient to move along; expected backward() before look_ahead, or "
            "gradients as its argument."
        )
    return pairs


def _rate(grads: list[Tensor], lr: float | None, norm: float | None) -> float | Tensor:
    """The factor of the gradients; 0 if they are zero and `norm` is given."""
    if lr is not None:
        check_positive("lr", lr)
        return lr
    assert norm is not None
    check_positive("norm", norm)
    total = get_total_norm(grads)
    return torch.where(total > 0, norm / total, 0)
