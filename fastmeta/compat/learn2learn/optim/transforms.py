"""Learned gradient transforms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

__all__ = ["MetaCurvatureTransform", "ModuleTransform", "ReshapedTransform"]


class ReshapedTransform(nn.Module):
    """Applies a module to a reshaped gradient.

    Args:
        transform: the module, which preserves the shape of its input.
        shape: the shape of its input.
    """

    def __init__(self, transform: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.transform = transform
        self.in_shape = shape

    def forward(self, grad: Tensor) -> Tensor:
        """The update, with the shape of the gradient."""
        update: Tensor = self.transform(grad.view(self.in_shape))
        return update.view(grad.shape)


class ModuleTransform:
    """Creates a module for each parameter, applied to the gradient reshaped to `(1, numel)`.

    Args:
        module_cls: creates a module from its input and output size, such as `nn.Linear`.
    """

    def __init__(self, module_cls: Callable[[int, int], nn.Module]) -> None:
        self.module_cls = module_cls

    def __call__(self, parameter: Tensor) -> ReshapedTransform:
        """The transform for the gradients of a parameter."""
        size = parameter.numel()
        return ReshapedTransform(self.module_cls(size, size), (1, size))


class MetaCurvatureTransform(nn.Module):
    """Meta-Curvature: a learned matrix for each dimension of a gradient (Park, Oliva 2019).

    The matrices are initialized to the identity.

    Args:
        param: a vector, a matrix, or the weight of a 2d convolution, whose last two dimensions
            are treated as one.
        lr: a factor of the update.

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
                "expected a parameter of 1, 2 or 4 dimensions; got shape "
                f"{tuple(param.shape)}. Return None as the transform of others."
            )
        eye = partial(torch.eye, dtype=param.dtype, device=param.device)
        self.mc_in = nn.Parameter(eye(param.shape[0]))
        self.mc_out = nn.Parameter(eye(param.shape[1]))
        if self.dim == 4:
            self.mc_f = nn.Parameter(eye(prod(param.shape[2:])))

    def forward(self, grad: Tensor) -> Tensor:
        """The update, with the shape of the gradient."""
        if self.dim == 1:
            return self.lr * (self.mc * grad)
        if self.dim == 2:
            return self.lr * (self.mc_in @ grad @ self.mc_out)
        # This order and these shapes reproduce the rounding of learn2learn.
        n_in, n_out, n_f = grad.flatten(2).shape
        update = grad.flatten(2).permute(2, 0, 1).reshape(-1, n_out) @ self.mc_out
        update = (self.mc_f @ update.view(n_f, -1)).view(n_f, n_in, n_out)
        update = self.mc_in @ update.transpose(0, 1).reshape(n_in, -1)
        update = update.view(n_in, n_f, n_out).transpose(1, 2)
        return self.lr * update.reshape(grad.shape)
