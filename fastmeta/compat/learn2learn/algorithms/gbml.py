"""GBML: an inner step along a learned transform of the gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastmeta.compat._clone import clone_module
from fastmeta.compat.learn2learn._gradients import gradients
from fastmeta.compat.learn2learn.optim import DifferentiableSGD, ParameterUpdate, Transform


class GBML(nn.Module):
    """Any transform of inner gradients, as ``learn2learn.algorithms.GBML``.

    Args:
        module: the module, whose parameters are the initialisation.
        transform: from a parameter to the module that transforms its gradients, or to ``None``; its
            parameters are learned.
        lr: the inner learning rate.
        adapt_transform: whether the transforms' parameters adapt to a task, too: from the second
            inner step on, before the module's.
        first_order: whether inner gradients count as constants.
        allow_unused: whether a loss need not depend on all parameters.
        allow_nograd: whether some parameters may have ``requires_grad=False``.
        compute_update: the transforms of all parameters, in place of new ones.
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
        """What the module returns."""
        return self.module(*args, **kwargs)

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
        adapt_transform: bool | None = None,
    ) -> GBML:
        """A copy to adapt, whose losses have gradients in module and transforms of this one.

        Args:
            first_order: as the wrapper's by default, like the others.
            allow_unused: see above.
            allow_nograd: see above.
            adapt_transform: see above.
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
        """One inner step on the loss; the parameters of this clone are replaced.

        Args:
            loss: of this clone, a scalar.
            first_order: as the wrapper's by default, like the others.
            allow_nograd: see above.
            allow_unused: see above.

        Raises:
            RuntimeError: if a parameter is unused or requires no gradient where it must.
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
