"""Recording of one task in a user's own meta-training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fastmeta.adaptation.inner_loop import inner_gradients

if TYPE_CHECKING:
    from fastmeta.optim._support_graphs import SupportGraphs

Grads = list["Tensor | None"]


class TaskRecorder:
    """One task, in the block of `with opt.task() as task:`.

    In the block, `backward()` on the query loss leaves the task's query gradient in `.grad`.
    `inner_gradients` takes the gradients of the inner steps; those that the loop computes itself
    are passed by `support`, `record` or `adapted`. After the block `.grad` holds the meta-gradient
    of the tasks so far.

    Args:
        params: the meta-parameters.
        finish: from this task, `.grad` before it and the query gradient to the new `.grad`.
        scale: factor by which the query loss was multiplied, such as `1 / T`.
        inner_lr: rate of the inner loop, if it is gradient descent.
        graphs: the graphs of support gradients, if they are needed.
        marks: whether the optimizer combines the tasks' gradients, for which it needs the block.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        finish: Callable[[TaskRecorder, Grads, Grads], Grads],
        scale: float,
        inner_lr: float | None = None,
        graphs: SupportGraphs | None = None,
        marks: bool = True,
    ) -> None:
        self.scale = scale
        self.graphs = graphs
        self._params = params
        self._finish = finish
        self._inner_lr = inner_lr
        self._marks = marks
        self._needs_block = marks or (graphs is not None and inner_lr is not None)
        self._block: ExitStack | None = None
        self._saved: Grads = []
        self._total: Grads | None = None
        self._count = 0
        self._rates: list[float | None] = []  # learning rates, times steps, of support gradients

    def __enter__(self) -> TaskRecorder:
        self._block = ExitStack()
        if self.graphs is not None and self._inner_lr is not None:
            # The inner optimizer changes parameters in place that the graphs refer to.
            mutation: Any = torch.autograd.graph.allow_mutation_on_saved_tensors
            self._block.enter_context(mutation())
        self._saved = self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        query = self._take()
        self._restore(self._saved)  # also after an exception
        assert self._block is not None
        with self._block:
            if kind is None:
                self._restore(self._finish(self, self._saved, query))

    def inner_gradients(
        self,
        loss: Tensor,
        params: Iterable[Tensor | None] | None = None,
        *,
        allow_unused: bool = False,
    ) -> tuple[Tensor, ...]:
        """The gradients of an inner step, in place of `torch.autograd.grad(loss, params)`.

        They are recorded as support gradients. With [`metagrad.GSL`][fastmeta.metagrad.GSL] and
        without `opt.task(inner_lr=...)` those of the chosen layers keep their graph, so update
        differentiably, such as `p - lr * g`; all others are constants.

        Args:
            loss: the support loss.
            params: the fast weights, in the order of the meta-parameters, by default the
                meta-parameters themselves; `None` for one that is not adapted.
            allow_unused: whether the loss may be independent of some, whose gradients are `None`.

        Raises:
            ValueError: if the number of parameters or a shape differs from the meta-parameters'.
            RuntimeError: if a parameter is unused, or outside the block if that is needed.
        """
        if self._needs_block and self._block is None:
            raise RuntimeError(
                "inner_gradients outside of the task's block; expected 'with opt.task() as task: "
                "...' around the inner loop and the backward() of the query loss."
            )
        inputs: list[Any] = list(self._params if params is None else params)
        self._check(inputs, "parameter")
        if self.graphs is not None:
            grads = self.graphs.gradients(loss, inputs)
        else:
            given = [p is not None for p in inputs]
            grads = inner_gradients(loss, inputs, given, [False] * len(inputs))
        pairs = enumerate(zip(inputs, grads, strict=True))
        unused = [k for k, (p, g) in pairs if p is not None and g is None]
        if unused and not allow_unused:
            raise RuntimeError(
                f"the loss does not depend on parameter {unused[0]} of {len(inputs)}; pass "
                "allow_unused=True if that is intended."
            )
        if self._marks:
            self.support(grads)
        return cast("tuple[Tensor, ...]", tuple(grads))

    def support(self, grads: Sequence[Tensor | None]) -> None:
        """Passes the support gradients of one inner step, in the order of the parameters.

        Raises:
            ValueError: if their number or a shape differs from the parameters'.
        """
        self._check(grads, "support gradient")
        detached: Grads = [None if g is None else g.detach() for g in grads]
        if self._total is None:
            self._total = detached
        else:
            self._total = [add(t, g) for t, g in zip(self._total, detached, strict=True)]
        self._count += 1
        self._rates.append(self._inner_lr)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Records the support gradients of a `backward()` on the meta-parameters themselves."""
        before = self._take()
        try:
            yield
            self.support(self._take())
        finally:
            self._restore(before)

    def adapted(self, fast: Iterable[Tensor], inner_lr: float, steps: int = 1) -> None:
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
        self._rates[-1] = inner_lr * steps

    @property
    def mean_support(self) -> Grads | None:
        """The mean support gradient, if there is one."""
        if self._total is None:
            return None
        return [None if g is None else g / self._count for g in self._total]

    @property
    def displacement(self) -> Grads | None:
        """`theta - theta_K` of the inner loop, if support gradients and their rates are known."""
        rates = [rate for rate in self._rates if rate is not None]
        mean = self.mean_support
        if mean is None or len(rates) < len(self._rates):
            return None
        return [None if g is None else g * sum(rates) for g in mean]

    def _check(self, tensors: Sequence[Tensor | None], what: str) -> None:
        shapes = [None if t is None else t.shape for t in tensors]
        if len(shapes) != len(self._params) or any(
            s is not None and s != p.shape for s, p in zip(shapes, self._params, strict=True)
        ):
            raise ValueError(
                f"expected one {what} for each of the {len(self._params)} parameters, in "
                f"their order and shapes (None for an unused one); got {len(shapes)} with shapes "
                f"{[s if s is None else tuple(s) for s in shapes]}."
            )

    def _take(self) -> Grads:
        grads = [p.grad for p in self._params]
        self._restore([None] * len(grads))
        return grads

    def _restore(self, grads: Grads) -> None:
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients; `None` means zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
