"""BatchNorm2d, ReLU and max-pooling that follow each other in an ``nn.Sequential``, as one op."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta import ops
from fastmeta.functional import Buffers, FunctionalModule
from fastmeta.hooks import globally_hooked, is_plain


class FusedModule(FunctionalModule):
    """A :class:`~fastmeta.functional.FunctionalModule` whose blocks run as compiled ops.

    In every ``nn.Sequential`` of the module, ``BatchNorm2d`` directly followed by ``ReLU``, and by
    ``MaxPool2d(2)`` if there is one, runs as :func:`fastmeta.ops.batch_norm_relu` wherever that op
    computes the same: batch statistics (with running statistics updated as torch does), an affine
    transform, contiguous float32 or float64 tensors on the CPU, no autocast, no hooks. All else
    runs as it is. The module changes during a call only; a call of one module from several threads
    at once is therefore not possible.
    """

    def __call__(self, params: Sequence[Tensor], buffers: Buffers, x: Tensor) -> Tensor:
        """See :meth:`FunctionalModule.__call__`."""
        with fused(self.module):
            return super().__call__(params, buffers, x)


@contextmanager
def fused(module: nn.Module) -> Iterator[None]:
    """Runs the blocks of ``module`` (see :class:`FusedModule`) as compiled ops in this context."""
    modules = list(module.modules())
    chains = [] if any(map(_compiled, modules)) else [m for m in modules if _replaceable(m)]
    for chain in chains:
        chain.forward = partial(_run, chain)
    try:
        yield
    finally:
        for chain in chains:
            del chain.forward


def _replaceable(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and "forward" not in vars(module)
    )


def _compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` holds a graph of the module, which a new forward would undo."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def _run(chain: Any, x: Any) -> Any:
    """``nn.Sequential.forward`` with fused blocks."""
    modules = list(chain)
    i = 0
    while i < len(modules):
        length = _block_length(modules, i)
        if length and _same_result(modules[i], x, pool=length == 3):
            x = _block(modules[i], x, pool=length == 3)
            i += length
        else:
            x = modules[i](x)
            i += 1
    return x


def _block_length(modules: Sequence[nn.Module], start: int) -> int:
    """How many modules from ``start`` make a block: 0, 2 or 3 with pooling."""
    if type(modules[start]) is not nn.BatchNorm2d or len(modules) < start + 2:
        return 0
    if type(modules[start + 1]) is not nn.ReLU:
        return 0
    if globally_hooked():
        return 0
    length = 3 if len(modules) > start + 2 and _halves(modules[start + 2]) else 2
    if length == 3 and not is_plain(modules[start + 2]):
        length = 2
    return length if all(is_plain(m) for m in modules[start : start + 2]) else 0


def _halves(module: nn.Module) -> bool:
    """Whether this is 2x2 max-pooling with stride 2."""
    return type(module) is nn.MaxPool2d and (
        module.kernel_size in (2, (2, 2))
        and module.stride in (2, (2, 2))
        and module.padding in (0, (0, 0))
        and module.dilation in (1, (1, 1))
        and not module.return_indices
        and not module.ceil_mode
    )


def _same_result(norm: Any, x: Any, pool: bool) -> bool:
    """Whether the op computes what the modules would for ``x``."""
    if type(x) is not Tensor or x.dim() != 4 or x.device.type != "cpu":
        return False
    if x.dtype not in (torch.float32, torch.float64) or not x.is_contiguous():
        return False
    if not all(isinstance(t, Tensor) and t.dtype == x.dtype for t in (norm.weight, norm.bias)):
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    running = norm.running_mean is not None or norm.running_var is not None
    if running and not norm.training:
        return False
    # A transform would have to see the running statistics change in place.
    if _updates(norm) and (
        norm.running_mean.dtype != x.dtype or torch._C._are_functorch_transforms_active()
    ):
        return False
    n, channels, height, width = x.shape
    # One value a channel is an error that torch explains.
    fits = channels == norm.num_features and n * height * width > 1 and x.numel() > 0
    return fits and (not pool or min(height, width) >= 2)


def _updates(norm: Any) -> bool:
    return bool(norm.training and norm.track_running_stats and norm.running_mean is not None)


def _block(norm: Any, x: Tensor, pool: bool) -> Tensor:
    z, mean, var = ops.batch_norm_relu(x, norm.weight, norm.bias, norm.eps, pool=pool)
    if _updates(norm):
        _update(norm, mean, var, x.numel() // x.shape[1])
    return z


@torch.no_grad()
def _update(norm: Any, mean: Tensor, var: Tensor, count: int) -> None:
    """Moves the running statistics as ``nn.BatchNorm2d`` does."""
    share = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if share is None:
            share = 1 / float(norm.num_batches_tracked)
    share = 0.0 if share is None else share
    unbiased = var * (count / (count - 1))
    for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.copy_(share * value + (1 - share) * running)
