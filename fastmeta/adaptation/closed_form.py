"""Base class of adaptations in closed form: fitted to outputs, without an inner loop."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastmeta._checks import check_positive
from fastmeta._options import forwards_options
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Grads
from fastmeta.functional import Buffers, FunctionalModule, Loss, Network
from fastmeta.tasks import Examples

Own = TypeVar("Own", bound="ClosedForm")


class Fit(NamedTuple):
    """What adaptation in closed form finds.

    Attributes:
        fast: the fast weights, in the order of the parameters; or, in function space, a
            [`Predictor`][fastmeta.functional.Predictor].
        outputs: of the network on the support set before adaptation.
    """

    fast: Sequence[Tensor]
    outputs: Tensor


class ClosedForm(Adaptation):
    """Adaptation in closed form, from outputs of the network and targets of the support set.

    It runs in the loop engine, with a meta-gradient that needs no inner gradients
    ([`Exact`][fastmeta.metagrad.Exact]), and fits the squared error whatever the loss of the
    learner, which is that of the query sets: class indices become one-hot vectors.

    For classes, the adapted outputs are multiplied by a learned `scale`, because those that fit
    one-hot vectors are too small for a cross-entropy. There are no inner steps, so their number
    changes nothing.

    Args:
        scale: of the outputs, initially; 1 for regression, where it is not used.

    Attributes:
        rates: logarithms of positive numbers that are learned with the initialisation, the last one
            that of `scale`; created when a learner is built.

    Raises:
        ValueError: if `scale` is not a positive number.
    """

    centred = False  # whether the mean of a one-hot vector is subtracted

    def __init__(self, scale: float) -> None:
        check_positive("scale", scale)
        self.scale = scale
        self.steps = 1

    def positive(self) -> Mapping[str, Sequence[float] | float]:
        """Initial values of the positive numbers that are learned beside `scale`, by name."""
        return {}

    @override
    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        if not self.rates:
            starts = [*self.positive().values(), self.scale]
            self.rates = [nn.Parameter(params[0].new_tensor(start).log()) for start in starts]

    @override
    def restricted(
        self: Own, kept: Sequence[int], params: Sequence[Tensor], names: Sequence[str]
    ) -> Own:
        return copy.copy(self)

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        raise TypeError(
            f"adaptation.{type(self).__name__} adapts in closed form, without an inner loop of "
            "gradient steps. Use it alone as the adaptation of a MetaLearner with metagrad.Exact; "
            "patterns, schedules and trajectories need another adaptation, such as SGD."
        )

    @abstractmethod
    def fit(
        self, network: Network, params: Sequence[Tensor], y: Examples, create_graph: bool
    ) -> Fit:
        """Adapts to a support set, differentiably in `params` and `rates`.

        Args:
            network: on the support inputs.
            params: the initialisation; not modified.
            y: support targets: class indices `(n,)` for outputs `(n, c)`, or of the outputs' shape.
            create_graph: whether the result will be differentiated.
        """

    def targets(self, outputs: Tensor, y: Examples) -> tuple[Tensor, Tensor]:
        """Targets of the outputs' shape, and the factor of the adapted outputs.

        Raises:
            ValueError: if the targets do not fit.
        """
        if isinstance(y, Tensor) and y.is_floating_point() and y.shape == outputs.shape:
            return y, outputs.new_ones(())
        of_classes = outputs.dim() == 2 and isinstance(y, Tensor) and y.dtype == torch.int64
        if not of_classes or y.shape != outputs.shape[:1]:
            given = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"adaptation.{type(self).__name__} fits outputs {tuple(outputs.shape)} to targets: "
                f"expected floating-point ones of this shape, or int64 class indices (n,) for "
                f"outputs (n, classes); got {given}."
            )
        classes = outputs.shape[1]
        one_hot = F.one_hot(y, classes).to(outputs.dtype)
        return one_hot - 1 / classes if self.centred else one_hot, self.rates[-1].exp()


def fit_task(
    adaptation: ClosedForm,
    model: FunctionalModule,
    loss: Loss,
    params: Sequence[Tensor],
    buffers: Buffers,
    x: Examples,
    y: Examples,
    create_graph: bool,
) -> tuple[Sequence[Tensor], Tensor]:
    """Fast weights or predictor of a task, and the support loss before, detached.

    Args:
        adaptation: in closed form.
        model: the network.
        loss: of the support set; only for the second result.
        params: the initialisation.
        buffers: of the task; updated.
        x: support inputs.
        y: support targets.
        create_graph: whether the first result will be differentiated.
    """
    found = adaptation.fit(Network(model, buffers, x), params, y, create_graph)
    with torch.no_grad():
        return found.fast, loss(found.outputs.detach(), y).detach()


def solve(kernel: Tensor, targets: Tensor, ridge: Tensor | float) -> Tensor:
    """`(K + r m I)^{-1} Y` with `m` the mean of the diagonal of `K`; in float64.

    Args:
        kernel: `K`, `(n, n)`, symmetric and positive semidefinite.
        targets: `Y`, `(n, c)`.
        ridge: `r`.
    """
    m = kernel.diagonal().mean()
    damped = kernel + ridge * m * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    found: Tensor = torch.linalg.solve(damped, targets)
    return found


def without_loop(kind: Callable[..., ClosedForm]) -> Callable[..., ClosedForm]:
    """A maker for the registry of adaptations, which gives all of them `lr` and `steps`.

    Args:
        kind: the adaptation in closed form, which has neither.
    """

    @forwards_options(lambda given: kind)
    def make(lr: float, steps: int, **options: Any) -> ClosedForm:
        return kind(**options)

    make.__doc__ = kind.__doc__
    return make


def check_time(time: float) -> None:
    """Refuses a time that is not positive; infinity is allowed.

    Raises:
        ValueError: in that case.
    """
    if time != math.inf:
        check_positive("time", time)
