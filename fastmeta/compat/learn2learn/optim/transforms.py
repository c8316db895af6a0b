"""Modules that make an update of a gradient, one for each parameter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

__all__ = ["MetaCurvatureTransform", "ModuleTransform", "ReshapedTransform"]


class ReshapedTransform(nn.Module):
    """A module that sees a gradient in another shape.

    Args:
        transform: the module; it keeps the shape.
        shape: what it sees.
    """

    def __init__(self, transform: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.transform = transform
        self.in_shape = shape

    def forward(self, grad: Tensor) -> Tensor:
        """The update, in the shape of the gradient."""
        update: Tensor = self.transform(grad.view(self.in_shape))
        return update.view(grad.shape)


class ModuleTransform:
    """Makes a module for each parameter, which sees the gradient as ``(1, numel)``.

    Args:
        module_cls: makes a module from its input and output size, such as ``nn.Linear``.
    """

    def __init__(self, module_cls: Callable[[int, int], nn.Module]) -> None:
        self.module_cls = module_cls

    def __call__(self, parameter: Tensor) -> ReshapedTransform:
        """The transform of the parameter's gradients."""
        size = parameter.numel()
        return ReshapedTransform(self.module_cls(size, size), (1, size))


class MetaCurvatureTransform(nn.Module):
    """A learned matrix for each dimension of a gradient (Park, Oliva 2019), at first the identity.

    Args:
        param: a vector, a matrix, or the weight of a 2d convolution, whose two last dimensions
            count as one.
        lr: a factor.

    Raises:
        ValueError: if the parameter has another number of dimensions.
    """

    def __init__(self, param: Tensor, lr: float = 1.0) -> None:
        super().__init__()
        self.lr = lr
        self.dim = param.dim()
        if self.dim == 1:
            self.mc = nn.Parameter(torch.ones_like(param))
            return
        if self.dim not in (2, 4):
            raise ValueError(
                "MetaCurvature takes parameters of 1, 2 or 4 dimensions; got "
                f"{tuple(param.shape)}. Let the transform be None for others."
            )
        eye = partial(torch.eye, dtype=param.dtype, device=param.device)
        self.mc_in = nn.Parameter(eye(param.shape[0]))
        self.mc_out = nn.Parameter(eye(param.shape[1]))
        if self.dim == 4:
            self.mc_f = nn.Parameter(eye(prod(param.shape[2:])))

    def forward(self, grad: Tensor) -> Tensor:
        """The update, in the shape of the gradient."""
        if self.dim == 1:
            return self.lr * (self.mc * grad)
        if self.dim == 2:
            return self.lr * (self.mc_in @ grad @ self.mc_out)
        # In this order and with these shapes rounding is learn2learn's, too.
        n_in, n_out, n_f = grad.flatten(2).shape
        update = grad.flatten(2).permute(2, 0, 1).reshape(-1, n_out) @ self.mc_out
        update = (self.mc_f @ update.view(n_f, -1)).view(n_f, n_in, n_out)
        update = self.mc_in @ update.transpose(0, 1).reshape(n_in, -1)
        update = update.view(n_in, n_f, n_out).transpose(1, 2)
        return self.lr * update.reshape(grad.shape)
