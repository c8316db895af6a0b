"""Recording of one task in a user's own meta-training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor

Grads = list["Tensor | None"]


class TaskRecorder:
    """One task, in the block of `with opt.task() as task:`.

    In the block, `backward()` on the query loss leaves the task's query gradient in `.grad`.
    The support gradients are passed in one of three ways: `support`, `record` or
    `adapted`. After the block `.grad` holds what a plain loop would have accumulated.

    Args:
        params: the meta-parameters.
        finish: called at the end of the block with query gradients, mean support gradients and
            their scale, before `.grad` is restored.
        scale: factor by which the query loss was multiplied, such as `1 / T`.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        finish: Callable[[Grads, Grads | None, float], None],
        scale: float,
    ) -> None:
        self._params = params
        self._finish = finish
        self._scale = scale
        self._total: Grads | None = None
        self._count = 0
        self._saved: Grads = []

    def __enter__(self) -> TaskRecorder:
        self._saved = self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        query = self._take()
        self._restore(self._saved)  # also after an exception
        if kind is None:
            self._finish(query, self._mean(), self._scale)
            self._restore([_add(s, q) for s, q in zip(self._saved, query, strict=True)])

    def support(self, grads: Sequence[Tensor | None]) -> None:
        """Passes the support gradients of one inner step, in the order of the parameters.

        Raises:
            ValueError: if their number or a shape differs from the parameters'.
        """
        shapes = [None if g is None else g.shape for g in grads]
        if len(shapes) != len(self._params) or any(
            s is not None and s != p.shape for s, p in zip(shapes, self._params, strict=True)
        ):
            raise ValueError(
                f"expected one support gradient for each of the {len(self._params)} parameters, in "
                f"their order and shapes (None for an unused one); got {len(shapes)} with shapes "
                f"{[s if s is None else tuple(s) for s in shapes]}."
            )
        detached: Grads = [None if g is None else g.detach() for g in grads]
        if self._total is None:
            self._total = detached
        else:
            self._total = [_add(t, g) for t, g in zip(self._total, detached, strict=True)]
        self._count += 1

    @contextmanager
    def record(self) -> Iterator[None]:
        """Records the support gradients of a `backward()` on the meta-parameters themselves."""
        before = self._take()
        try:
            yield
            self.support(self._take())
        finally:
            self._restore(before)

    def adapted(self, fast: Sequence[Tensor], inner_lr: float, steps: int = 1) -> None:
        """Computes the mean support gradient as the displacement `(theta - fast) / (lr steps)`.

        Exact for inner SGD; for other inner optimizers it is a rescaled displacement.

        Raises:
            ValueError: if shapes differ, or `inner_lr * steps` is not positive.
        """
        if not inner_lr * steps > 0:
            raise ValueError(f"inner_lr * steps must be positive, got {inner_lr} * {steps}.")
        with torch.no_grad():
            self.support(
                [
                    (p - f) / (inner_lr * steps) if p.shape == f.shape else f
                    for p, f in zip(self._params, fast, strict=True)
                ]
            )

    def _take(self) -> Grads:
        grads = [p.grad for p in self._params]
        self._restore([None] * len(grads))
        return grads

    def _restore(self, grads: Grads) -> None:
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad

    def _mean(self) -> Grads | None:
        if self._total is None:
            return None
        return [None if g is None else g / self._count for g in self._total]


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
