"""GBML: inner steps with learned gradient transforms."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastmeta.compat._clone import clone_module
from fastmeta.compat.learn2learn._gradients import gradients
from fastmeta.compat.learn2learn.optim import DifferentiableSGD, ParameterUpdate, Transform


class GBML(nn.Module):
    """Gradient-based meta-learning with any gradient transform, as `learn2learn.algorithms.GBML`.

    Args:
        module: the module; its parameters are the initialization.
        transform: maps a parameter to the `nn.Module` that transforms its gradients, or to
            `None`; the parameters of these modules are learned.
        lr: the inner learning rate.
        adapt_transform: whether to adapt the parameters of the transforms to a task as well, from
            the second inner step on and before those of the module.
        first_order: whether to ignore second derivatives.
        allow_unused: whether a loss may be independent of some parameters.
        allow_nograd: whether some parameters may have `requires_grad=False`.
        compute_update: existing transforms of all parameters, to use instead of new ones.
    """

    def __init__(
        self,
        module: nn.Module,
        transform: Transform,
        lr: float = 1.0,
        adapt_transform: bool = False,
        first_order: bool = False,
        allow_unused: bool = False,
        allow_nograd: bool = False,
        *,
        compute_update: ParameterUpdate | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.transform = transform
        self.adapt_transform = adapt_transform
        self.lr = lr
        self.first_order = first_order
        self.allow_unused = allow_unused
        self.allow_nograd = allow_nograd
        if compute_update is None:
            compute_update = ParameterUpdate(module.parameters(), transform)
        self.compute_update = compute_update
        self.diff_sgd = DifferentiableSGD(lr)
        self._params_updated = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        return self.module(*args, **kwargs)

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
        adapt_transform: bool | None = None,
    ) -> GBML:
        """A copy to adapt; gradients of its losses reach module and transforms of this one.

        Args:
            first_order: defaults to that of the wrapper, like the other arguments.
            allow_unused: whether the loss may be independent of some parameters.
            allow_nograd: whether some parameters may have `requires_grad=False`.
            adapt_transform: whether to adapt the parameters of the transforms as well.
        """
        return GBML(
            clone_module(self.module),
            self.transform,
            lr=self.lr,
            adapt_transform=self.adapt_transform if adapt_transform is None else adapt_transform,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
            compute_update=clone_module(self.compute_update),
        )

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_nograd: bool | None = None,
        allow_unused: bool | None = None,
    ) -> None:
        """Takes an inner step, which replaces the parameters of this clone.

        Args:
            loss: the loss of this clone, a scalar.
            first_order: defaults to that of the wrapper, like the other arguments.
            allow_nograd: whether some parameters may have `requires_grad=False`.
            allow_unused: whether the loss may be independent of some parameters.

        Raises:
            RuntimeError: if a parameter is unused or frozen and that is not allowed.
        """
        second_order = not (self.first_order if first_order is None else first_order)
        allow_unused = self.allow_unused if allow_unused is None else allow_unused
        if self.adapt_transform and self._params_updated:
            learned = list(self.compute_update.parameters())
            grads = gradients(
                loss,
                learned,
                create_graph=second_order,
                retain_graph=True,
                allow_unused=allow_unused,
                allow_nograd=False,
            )
            self.diff_sgd(self.compute_update, grads)
        updates = self.compute_update(
            loss,
            self.module.parameters(),
            create_graph=second_order or self.adapt_transform,
            allow_unused=allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )
        self.diff_sgd(self.module, updates)
        self._params_updated = True
