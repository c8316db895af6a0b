"""Meta-SGD: MAML with learned elementwise inner learning rates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmeta.compat._clone import Module, clone_module, clone_parameters, update_module
from fastmeta.compat.learn2learn.algorithms.base_learner import BaseLearner


def meta_sgd_update(model: Module, lrs: Sequence[Tensor], grads: Sequence[Tensor]) -> Module:
    """Updates the parameters of a model to `p - lr * g`, in place and differentiably.

    Args:
        model: the model.
        lrs: the learning rates of each parameter, in its shape.
        grads: a gradient for each parameter.

    Returns:
        The model.
    """
    return update_module(model, [-lr * g for lr, g in zip(lrs, grads, strict=True)])


class MetaSGD(BaseLearner):
    """Meta-SGD (Li, Zhou, Chen, Li 2017), as `learn2learn.algorithms.MetaSGD`.

    Args:
        model: the module; its parameters are the initialization.
        lr: the initial value of the learned rates.
        first_order: whether to ignore second derivatives.
        lrs: the learned rates, one tensor for each parameter; overrides `lr`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1.0,
        first_order: bool = False,
        lrs: Sequence[Tensor] | nn.ParameterList | None = None,
    ) -> None:
        super().__init__()
        self.module = model
        if lrs is None:
            lrs = nn.ParameterList(
                nn.Parameter(torch.ones_like(p) * lr) for p in model.parameters()
            )
        self.lrs = lrs
        self.first_order = first_order

    def clone(self) -> MetaSGD:
        """A copy to adapt; gradients of its losses reach the parameters and rates of this one."""
        return MetaSGD(
            clone_module(self.module),
            lrs=clone_parameters(self.lrs),
            first_order=self.first_order,
        )

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        """Takes an inner step, which replaces the parameters of this clone.

        Args:
            loss: the loss of this clone, a scalar.
            first_order: defaults to that of the wrapper.
        """
        first_order = self.first_order if first_order is None else first_order
        params = list(self.module.parameters())
        grads = torch.autograd.grad(loss, params, create_graph=not first_order)
        self.module = meta_sgd_update(self.module, list(self.lrs), grads)
