"""Updates of parameters: gradients, transformed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from fastmeta.compat._clone import update_module
from fastmeta.compat.learn2learn._gradients import gradients

__all__ = ["DifferentiableSGD", "ParameterUpdate", "Transform"]

Transform = Callable[[Tensor], nn.Module | None]


class ParameterUpdate(nn.Module):
    """The gradients of a loss, each through a module of its own.

    Args:
        parameters: of the model that will be updated.
        transform: from a parameter to its module, or to ``None``: then its gradient is the update.

    Raises:
        TypeError: if a transform is something else.
    """

    def __init__(self, parameters: Iterable[Tensor], transform: Transform) -> None:
        super().__init__()
        made = [transform(param) for param in parameters]
        for module in made:
            if not (module is None or isinstance(module, nn.Module)):
                raise TypeError(
                    f"transform must return an nn.Module or None; got {type(module).__name__}."
                )
        modules = [module for module in made if module is not None]
        numbers = iter(range(len(modules)))
        self.transforms_modules = nn.ModuleList(modules)
        self.transforms_indices = [None if module is None else next(numbers) for module in made]

    def forward(
        self,
        loss: Tensor,
        parameters: Iterable[Tensor],
        create_graph: bool = False,
        retain_graph: bool = False,
        allow_unused: bool = False,
        allow_nograd: bool = False,
    ) -> list[Tensor | None]:
        """The update of each parameter; ``None`` where it has no gradient.

        Args:
            loss: a scalar.
            parameters: as many as those of the constructor.
            create_graph: whether the updates can be differentiated.
            retain_graph: whether the loss can be differentiated again; ``create_graph`` does so.
            allow_unused: whether the loss need not depend on all.
            allow_nograd: whether some may have ``requires_grad=False``.

        Raises:
            RuntimeError: if a parameter is unused or requires no gradient where it must.
        """
        grads = gradients(
            loss,
            parameters,
            create_graph=create_graph,
            retain_graph=retain_graph or create_graph,
            allow_unused=allow_unused,
            allow_nograd=allow_nograd,
        )
        return [
            grad if grad is None or index is None else self.transforms_modules[index](grad)
            for grad, index in zip(grads, self.transforms_indices, strict=True)
        ]


class DifferentiableSGD(nn.Module):
    """Replaces the parameters ``p`` of a module by ``p - lr * g``, differentiably.

    Args:
        lr: the learning rate.
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def forward(self, module: nn.Module, gradients: Sequence[Tensor | None] | None = None) -> None:
        """Changes the module.

        Args:
            module: the module.
            gradients: one for each parameter, or ``None``; by default what lies in ``.grad``.
        """
        if gradients is None:
            gradients = [p.grad for p in module.parameters()]
        update_module(module, [None if g is None else g.mul(-self.lr) for g in gradients])
