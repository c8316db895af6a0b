"""MAML and first-order MAML."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastmeta.compat._clone import Module, clone_module, update_module
from fastmeta.compat.learn2learn._gradients import gradients
from fastmeta.compat.learn2learn.algorithms.base_learner import BaseLearner


def maml_update(
    model: Module, lr: float | Tensor, grads: Sequence[Tensor | None] | None = None
) -> Module:
    """Updates the parameters of a model to `p - lr * g`, in place and differentiably.

    Args:
        model: the model.
        lr: the inner learning rate.
        grads: a gradient for each parameter; `None` leaves it unchanged. By default, the
            `update` attributes of the parameters are added.

    Returns:
        The model.
    """
    if grads is None:
        return update_module(model)
    return update_module(model, [None if g is None else -lr * g for g in grads])


class MAML(BaseLearner):
    """MAML (Finn, Abbeel, Levine 2017), as `learn2learn.algorithms.MAML`.

    Args:
        model: the module; its parameters are the initialization.
        lr: the inner learning rate.
        first_order: whether to ignore second derivatives (FOMAML).
        allow_unused: whether a loss may be independent of some parameters; defaults to
            `allow_nograd`.
        allow_nograd: whether some parameters may have `requires_grad=False`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
    ) -> None:
        super().__init__()
        self.module = model
        self.lr = lr
        self.first_order = first_order
        self.allow_nograd = allow_nograd
        self.allow_unused = allow_nograd if allow_unused is None else allow_unused

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """Takes an inner step, which replaces the parameters of this clone.

        Args:
            loss: the loss of this clone, a scalar.
            first_order: defaults to that of the wrapper, like the other arguments.
            allow_unused: whether the loss may be independent of some parameters.
            allow_nograd: whether some parameters may have `requires_grad=False`.

        Raises:
            RuntimeError: if a parameter is unused or frozen and that is not allowed.
        """
        grads = gradients(
            loss,
            self.module.parameters(),
            create_graph=not (self.first_order if first_order is None else first_order),
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )
        self.module = maml_update(self.module, self.lr, grads)

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> MAML:
        """A copy to adapt; gradients of its losses reach the parameters of this wrapper.

        Args:
            first_order: defaults to that of the wrapper, like the other arguments.
            allow_unused: whether the loss may be independent of some parameters.
            allow_nograd: whether some parameters may have `requires_grad=False`.
        """
        return MAML(
            clone_module(self.module),
            lr=self.lr,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )
