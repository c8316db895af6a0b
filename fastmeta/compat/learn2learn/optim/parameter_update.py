"""Parameter updates from transformed gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from fastmeta.compat._clone import update_module
from fastmeta.compat.learn2learn._gradients import gradients

__all__ = ["DifferentiableSGD", "ParameterUpdate", "Transform"]

Transform = Callable[[Tensor], nn.Module | None]


class ParameterUpdate(nn.Module):
    """The gradients of a loss, each transformed by its own module.

    Args:
        parameters: the parameters of the model to update.
        transform: maps a parameter to the module that transforms its gradient, or to `None` to
            use the gradient as it is.

    Raises:
        TypeError: if `transform` returns neither.
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
        """The update of each parameter; `None` where it has no gradient.

        Args:
            loss: a scalar.
            parameters: the parameters, as many as passed to the constructor.
            create_graph: whether the updates can be differentiated; implies `retain_graph`.
            retain_graph: whether to keep the graph of the loss.
            allow_unused: whether the loss may be independent of some parameters.
            allow_nograd: whether some parameters may have `requires_grad=False`.

        Raises:
            RuntimeError: if a parameter is unused or frozen and that is not allowed.
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
    """Differentiable SGD, which updates parameters to `p - lr * g`.

    Args:
        lr: the learning rate.
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def forward(self, module: nn.Module, gradients: Sequence[Tensor | None] | None = None) -> None:
        """Updates the parameters of the module in place.

        Args:
            module: the module.
            gradients: a gradient, or `None`, for each parameter; their `.grad` by default.
        """
        if gradients is None:
            gradients = [p.grad for p in module.parameters()]
        update_module(module, [None if g is None else g.mul(-self.lr) for g in gradients])
