"""The support and query loss of a task, as a meta-gradient gets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fastmeta.adaptation import ClosedForm
from fastmeta.functional import Buffers

# Loss and outputs of one split ("support" or "query") as a function of the parameters.
Evaluate = Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]
# The same of the query split with weights of its examples: the mean of the weighted losses of
# single examples, the outputs, and these losses without weights, detached.
WeightedEvaluate = Callable[[Sequence[Tensor], Tensor], tuple[Tensor, Tensor, Tensor]]
Part = tuple[int, int]  # index and number of equal parts
# From an evaluation, whose first argument are the parameters, to another one.
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class SupportHead:
    """The network's last layer in the support loss, whose gradient has a closed form.

    Attributes:
        weight: index of its weight among the parameters.
        bias: index of its bias, or `None`.
        loss: `"mse"` or `"cross_entropy"`, with mean reduction.
        targets: of the support set; `(T, n, ...)` for `T` stacked tasks.
        evaluate: loss, outputs and the inputs of the layer, its features, for given parameters.
            No features if the outputs are not those of one call of the layer.
    """

    weight: int
    bias: int | None
    loss: str
    targets: Tensor
    evaluate: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor, Tensor | None]]


@dataclass(frozen=True)
class TaskLosses:
    """The support and query loss of one task.

    Attributes:
        support: loss and outputs on the support set for given parameters.
        query: loss and outputs on the query set for given parameters.
        buffers: the task's copy of the module's buffers, which both read and update; replacing an
            entry takes effect.
        head: finds the last layer in the support loss, if the module and the loss are such that it
            has a closed form.
        weighted_query: the query loss with weights `(n_query,)` of the examples; `None` if the
            engine cannot compute it.
        query_labels: `(n_query,)`, the query targets if they are class indices.
        ids: `(m,)`, what the task is made of (`TaskBatch.ids`), if it is known.
        part: the losses on part `i` of `n` of the support and of the query examples, from both
            pairs `(i, n)`; `None` if the engine cannot compute them.
        fit: runs an adaptation in closed form: its differentiable fast weights or predictor, which
            `query` takes, and the support loss before; `None` if the engine cannot.
        resized: from a height and width to the losses of the same task with images resized to it;
            `None` if the engine has none.
    """

    support: Evaluate
    query: Evaluate
    buffers: Buffers = field(default_factory=dict)
    head: Callable[[], SupportHead | None] = lambda: None
    weighted_query: WeightedEvaluate | None = None
    query_labels: Tensor | None = None
    ids: Tensor | None = None
    part: Callable[[Part, Part], TaskLosses] | None = None
    fit: Callable[[ClosedForm, Sequence[Tensor]], tuple[Sequence[Tensor], Tensor]] | None = None
    resized: Callable[[int], TaskLosses] | None = None

    def wrapped(self, wrap: Wrap) -> TaskLosses:
        """These losses, with each evaluation of the network replaced by another one.

        Args:
            wrap: makes the other one of an evaluation, whose first argument are the parameters.
        """
        weighted, resized, part = self.weighted_query, self.resized, self.part

        def head() -> SupportHead | None:
            found = self.head()
            return None if found is None else replace(found, evaluate=wrap(found.evaluate))

        return replace(
            self,
            support=wrap(self.support),
            query=wrap(self.query),
            head=head,
            weighted_query=None if weighted is None else wrap(weighted),
            part=None if part is None else lambda *own: part(*own).wrapped(wrap),
            resized=None if resized is None else lambda size: resized(size).wrapped(wrap),
        )
