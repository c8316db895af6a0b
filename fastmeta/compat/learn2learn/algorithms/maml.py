"""MAML: an inner step of gradient descent, with or without second derivatives."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastmeta.compat._clone import Module, clone_module, update_module
from fastmeta.compat.learn2learn._gradients import gradients
from fastmeta.compat.learn2learn.algorithms.base_learner import BaseLearner


def maml_update(
    model: Module, lr: float | Tensor, grads: Sequence[Tensor | None] | None = None
) -> Module:
    """Replaces the parameters ``p`` of the model by ``p - lr * g``, differentiably.

    Args:
        model: the model, which is changed and returned.
        lr: the inner learning rate.
        grads: one for each parameter; ``None`` leaves it as it is. Without them, what lies in the
            parameters' attribute ``update`` is added.
    """
    if grads is None:
        return update_module(model)
    return update_module(model, [None if g is None else -lr * g for g in grads])


class MAML(BaseLearner):
    """Finn, Abbeel, Levine 2017, as ``learn2learn.algorithms.MAML``.

    Args:
        model: the module, whose parameters are the initialisation.
        lr: the inner learning rate.
        first_order: whether inner gradients count as constants (FOMAML).
        allow_unused: whether a loss need not depend on all parameters; as ``allow_nograd`` by
            default.
        allow_nograd: whether some parameters may have ``requires_grad=False``.
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
        """One inner step on the loss; the parameters of this clone are replaced.

        Args:
            loss: of this clone, a scalar.
            first_order: as the wrapper's by default, like the others.
            allow_unused: see above.
            allow_nograd: see above.

        Raises:
            RuntimeError: if a parameter is unused or requires no gradient where it must.
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
        """A copy to adapt, whose losses have gradients in the parameters of this one.

        See :func:`fastmeta.compat._clone.clone_module`.

        Args:
            first_order: as the wrapper's by default, like the others.
            allow_unused: see above.
            allow_nograd: see above.
        """
        return MAML(
            clone_module(self.module),
            lr=self.lr,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )
