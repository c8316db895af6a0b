"""Convolutions, and BatchNorm2d with what follows it, in an ``nn.Sequential`` as compiled ops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta import ops
from fastmeta.backend import kernel_devices
from fastmeta.functional._inspection import globally_hooked, is_compiled, is_plain
from fastmeta.functional.module import FunctionalModule
from fastmeta.models import PerStepBatchNorm2d

# Beyond some 180 channels the op's weights outgrow the caches, and torch's convolution is as fast.
_WIDEST = 1 << 15


class FusedModule(FunctionalModule):
    """A :class:`~fastmeta.functional.FunctionalModule` whose blocks run as compiled ops.

    In every ``nn.Sequential`` of the module, two things run as ops wherever these compute the same,
    but for rounding: on float32 or float64 tensors, without autocast and hooks.

    - ``Conv2d`` with 3x3 kernels, ``padding=1`` and stride 1 or 2, without dilation and groups and
      not too wide, as :func:`fastmeta.ops.conv3x3`; on the CPU.
    - A block of ``BatchNorm2d`` directly followed by ``ReLU``, and by ``MaxPool2d(2)`` if there is
      one, as :func:`fastmeta.ops.batch_norm_relu`: with batch statistics (running statistics are
      updated as torch does) and an affine transform; on the CPU or (if the CUDA kernels are built)
      on a GPU. ``models.PerStepBatchNorm2d`` is the BatchNorm2d of the inner step.

    All else runs as it is, but inside a ``Sequential`` of torch's own modules without hooks images
    are in channels-last order, in which these ops work and the CPU's other convolutions are faster;
    a user's module or hook, and what comes after, gets them in the order that torch would leave
    them in. The module changes during a call only; a call of one module from several threads at
    once is therefore not possible.
    """

    def forward_context(self, part: nn.Module) -> AbstractContextManager[None]:
        """See :meth:`FunctionalModule.running`."""
        return fused(part)


@contextmanager
def fused(module: nn.Module) -> Iterator[None]:
    """Runs blocks and convolutions of ``module`` as compiled ops (see :class:`FusedModule`)."""
    modules = list(module.modules())
    chains = {} if any(map(is_compiled, modules)) else _chains(modules)
    for chain, any_order in chains.items():
        chain.forward = partial(_run, chain, any_order)
    try:
        yield
    finally:
        for chain in chains:
            del chain.forward


def _chains(modules: Sequence[nn.Module]) -> dict[Any, bool]:
    """The plain ``nn.Sequential`` with blocks or convolutions in them, perhaps further down.

    And whether all of it is torch's: a user's module, or hook, may ``view`` images in their usual
    order.
    """
    chains: dict[Any, bool] = {}
    torchs: set[Any] = set()
    for module in reversed(modules):  # parts come before their whole
        parts = list(module._modules.values())
        known = type(module).__module__.startswith("torch.nn.") or _per_step(module)
        if known and is_plain(module) and torchs.issuperset(parts):
            torchs.add(module)
        parts = _of_step(parts)
        has_block = any(
            part in chains or _convolves(part) or _block_length(parts, i)
            for i, part in enumerate(parts)
        )
        own = type(module).forward is nn.Sequential.forward and "forward" not in vars(module)
        if has_block and own:
            chains[module] = module in torchs
    return chains


def _run(chain: Any, any_order: bool, x: Any) -> Any:
    """``nn.Sequential.forward`` with compiled ops, if possible in channels-last order."""
    owed = any_order and _images(x) and _usual(x)  # the usual order, in which torch would leave x
    if owed:
        x = _channels_last(x)
    modules = _of_step(chain)
    i = 0
    while i < len(modules):
        length = _block_length(modules, i)
        if length and _same_result(modules[i], x, pool=length == 3):
            owed = owed or _usual(x)
            x = _block(modules[i], x, pool=length == 3)
            i += length
            continue
        if _convolves(modules[i]) and _fits(modules[i], x):
            owed = owed or _usual(x)
            x = _convolution(modules[i], x)
        else:
            if owed and not any_order:
                x, owed = x.contiguous(), False
            x = modules[i](x)
        i += 1
    return x.contiguous() if owed and isinstance(x, Tensor) else x


def _per_step(module: Any) -> bool:
    return type(module) is PerStepBatchNorm2d and is_plain(module) and not globally_hooked()


def _of_step(modules: Iterable[Any]) -> list[Any]:
    """The modules, each per-step BatchNorm being that of the current inner step."""
    return [m.current if _per_step(m) else m for m in modules]


def _images(x: Any) -> bool:
    return (
        type(x) is Tensor
        and x.dim() == 4
        and x.device.type in kernel_devices()
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
    )


def _usual(x: Tensor) -> bool:
    return x.stride(1) != 1


def _channels_last(x: Tensor) -> Tensor:
    if x.shape[1] > 1:
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # also under ``vmap``
    # One channel is in both orders; only the strides tell torch's convolutions which is meant.
    n, _, height, width = x.shape
    return x.reshape(n, height, width, 1).permute(0, 3, 1, 2)


def _convolves(module: Any) -> bool:
    """Whether this is a plain 3x3 convolution that the op knows."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride in ((1, 1), (2, 2))
        and module.padding in ((1, 1), "same")
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.in_channels * module.out_channels <= _WIDEST
        and module.padding_mode == "zeros"
        and is_plain(module)
        and not globally_hooked()
    )


def _fits(convolution: Any, x: Any) -> bool:
    """Whether the op takes ``x``; GPUs have cuDNN."""
    weight, bias = convolution.weight, convolution.bias
    return (
        _images(x)
        and x.is_cpu
        and x.numel() > 0
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and _alike(x, weight)
        and (bias is None or (bias.shape == weight.shape[:1] and _alike(x, bias)))
    )


def _alike(x: Tensor, parameter: Tensor) -> bool:
    return parameter.dtype == x.dtype and parameter.device == x.device


def _convolution(module: Any, x: Tensor) -> Tensor:
    return ops.conv3x3(x, module.weight, module.bias, stride=module.stride[0])


def _block_length(modules: Sequence[Any], start: int) -> int:
    """How many modules from ``start`` make a block: 0, 2 or 3 with pooling."""
    norm = modules[start]
    if not _normalises_by_batch(norm) or len(modules) < start + 2 or globally_hooked():
        return 0
    activation = modules[start + 1]
    if type(activation) is not nn.ReLU or not is_plain(norm) or not is_plain(activation):
        return 0
    pooled = len(modules) > start + 2 and _halves(modules[start + 2])
    return 3 if pooled else 2


def _normalises_by_batch(module: nn.Module) -> bool:
    """Whether this is BatchNorm2d with batch statistics and an affine transform."""
    if type(module) is not nn.BatchNorm2d or module.weight is None or module.bias is None:
        return False
    return module.training or (module.running_mean is None and module.running_var is None)


def _halves(module: nn.Module) -> bool:
    """Whether this is plain 2x2 max-pooling with stride 2."""
    return type(module) is nn.MaxPool2d and (
        module.kernel_size in (2, (2, 2))
        and module.stride in (2, (2, 2))
        and module.padding in (0, (0, 0))
        and module.dilation in (1, (1, 1))
        and not module.return_indices
        and not module.ceil_mode
        and is_plain(module)
    )


def _same_result(norm: Any, x: Any, pool: bool) -> bool:
    """Whether the op computes for ``x`` what the modules of a block would."""
    if not _images(x) or not _alike(x, norm.weight) or not _alike(x, norm.bias):
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
            share = norm.num_batches_tracked.to(mean.dtype).reciprocal()  # no wait for a GPU
    share = 0.0 if share is None else share
    unbiased = var * (count / (count - 1))
    for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.copy_(share * value + (1 - share) * running)
