"""Meta-SGD: MAML with a learned rate for each number of each parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmeta.compat._clone import Module, clone_module, clone_parameters, update_module
from fastmeta.compat.learn2learn.algorithms.base_learner import BaseLearner


def meta_sgd_update(model: Module, lrs: Sequence[Tensor], grads: Sequence[Tensor]) -> Module:
    """Replaces the parameters ``p`` of the model by ``p - lr * g``, differentiably.

    Args:
        model: the model, which is changed and returned.
        lrs: a rate for each parameter, of its shape.
        grads: a gradient for each parameter.
    """
    return update_module(model, [-lr * g for lr, g in zip(lrs, grads, strict=True)])


class MetaSGD(BaseLearner):
    """Li, Zhou, Chen, Li 2017, as ``learn2learn.algorithms.MetaSGD``.

    Args:
        model: the module, whose parameters are the initialisation.
        lr: what the learned rates begin with.
        first_order: whether inner gradients count as constants.
        lrs: the rates themselves, one tensor for each parameter, in place of ``lr``.
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
        """A copy to adapt, whose losses have gradients in parameters and rates of this one."""
        return MetaSGD(
            clone_module(self.module),
            lrs=clone_parameters(self.lrs),
            first_order=self.first_order,
        )

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        """One inner step on the loss; the parameters of this clone are replaced.

        Args:
            loss: of this clone, a scalar.
            first_order: as the wrapper's by default.
        """
        first_order = self.first_order if first_order is None else first_order
        params = list(self.module.parameters())
        grads = torch.autograd.grad(loss, params, create_graph=not first_order)
        self.module = meta_sgd_update(self.module, list(self.lrs), grads)
