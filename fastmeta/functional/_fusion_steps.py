"""The layers that run as compiled ops, and the conditions under which they do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastmeta import ops
from fastmeta.backend import kernel_devices
from fastmeta.functional._inspection import is_plain
from fastmeta.models import PerStepBatchNorm2d

# Beyond some 360 channels the op's weights outgrow the caches, and torch's convolution is as fast.
_MAX_CHANNEL_PAIRS = 1 << 17
# Chains that end in BatchNorm are residual branches, whose outputs are converted to the memory
# order of the other branch: from this width on, that costs more than the ops save.
_CHANNEL_PAIRS_OF_WIDE_BRANCHES = 1 << 12
# What steps that run as an op consist of.
FUSIBLE = frozenset({nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d})


class Step:
    """Consecutive modules of a chain: one that always runs as it is, or several that an op fuses.

    Args:
        modules: the modules, in order. They are called one by one where the op does not fit.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules = modules

    def fits(self, x: Any) -> bool:
        """Whether an op computes for `x` what the modules would."""
        return False

    def run(self, x: Tensor) -> Tensor:
        """The output of the op for an `x` that fits."""
        raise NotImplementedError(f"{type(self).__name__} has no op")


class Convolution(Step):
    """A 3x3 convolution."""

    @override
    def fits(self, x: Any) -> bool:
        (module,) = self.modules
        weight, bias = module.weight, module.bias
        return (
            is_image(x)
            and x.is_cpu  # GPUs have cuDNN
            and x.numel() > 0
            and weight.shape[1:] == (x.shape[1], 3, 3)
            and _same_kind(x, weight)
            and (bias is None or (bias.shape == weight.shape[:1] and _same_kind(x, bias)))
        )

    @override
    def run(self, x: Tensor) -> Tensor:
        (module,) = self.modules
        return ops.conv3x3(x, module.weight, module.bias, stride=module.stride[0])


class Block(Step):
    """BatchNorm2d with batch statistics, ReLU, and 2x2 max-pooling if there are three modules."""

    @override
    def fits(self, x: Any) -> bool:
        norm = self.modules[0]
        if not is_image(x) or not _same_kind(x, norm.weight) or not _same_kind(x, norm.bias):
            return False
        # A transform would have to see the running statistics change in place.
        if updates_statistics(norm) and (
            norm.running_mean.dtype != x.dtype or torch._C._are_functorch_transforms_active()
        ):
            return False
        n, channels, height, width = x.shape
        # One value per channel is an error that torch explains.
        fits = channels == norm.num_features and n * height * width > 1 and x.numel() > 0
        return fits and (len(self.modules) == 2 or min(height, width) >= 2)

    @override
    def run(self, x: Tensor) -> Tensor:
        norm, pool = self.modules[0], len(self.modules) == 3
        z, mean, var = ops.batch_norm_relu(x, norm.weight, norm.bias, norm.eps, pool=pool)
        if updates_statistics(norm):
            running = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
            update_statistics(norm.momentum, *running, mean, var, x.numel() // x.shape[1])
        return z


def find_steps(modules: Sequence[Any]) -> list[Step]:
    """The steps of a chain of modules; those of wide residual branches are all torch's."""
    if _is_wide_branch(modules):
        return [Step([module]) for module in modules]
    steps: list[Step] = []
    i = 0
    while i < len(modules):
        length = block_length(modules, i)
        if length:
            steps.append(Block(modules[i : i + length]))
        elif is_fusible_convolution(modules[i]):
            steps.append(Convolution(modules[i : i + 1]))
        else:
            steps.append(Step(modules[i : i + 1]))
        i += length or 1
    return steps


def _is_wide_branch(modules: Sequence[Any]) -> bool:
    if not modules or not uses_batch_statistics(modules[-1]):
        return False
    return any(
        type(module) is nn.Conv2d
        and module.in_channels * module.out_channels >= _CHANNEL_PAIRS_OF_WIDE_BRANCHES
        for module in modules
    )


def at_inner_step(modules: Iterable[Any]) -> list[Any]:
    """The modules, each per-step BatchNorm replaced by that of the current inner step."""
    return [
        module.current if type(module) is PerStepBatchNorm2d and is_plain(module) else module
        for module in modules
    ]


def is_image(x: Any) -> bool:
    """Whether `x` is a batch of images of a kind that the ops take."""
    return (
        type(x) is Tensor
        and x.dim() == 4
        and x.device.type in kernel_devices()
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
    )


def _same_kind(x: Tensor, parameter: Tensor) -> bool:
    return parameter.dtype == x.dtype and parameter.device == x.device


def is_fusible_convolution(module: Any) -> bool:
    """Whether this is a 3x3 convolution that the op computes, without hooks."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride in ((1, 1), (2, 2))
        and module.padding in ((1, 1), "same")
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.in_channels * module.out_channels <= _MAX_CHANNEL_PAIRS
        and module.padding_mode == "zeros"
        and is_plain(module)
    )


def block_length(modules: Sequence[Any], start: int) -> int:
    """How many modules from `start` make a block: 0, 2, or 3 with pooling."""
    norm = modules[start]
    if not uses_batch_statistics(norm) or len(modules) < start + 2:
        return 0
    activation = modules[start + 1]
    if type(activation) is not nn.ReLU or not is_plain(norm) or not is_plain(activation):
        return 0
    pooled = len(modules) > start + 2 and is_halving_pool(modules[start + 2])
    return 3 if pooled else 2


def uses_batch_statistics(module: Any) -> bool:
    """Whether this is BatchNorm2d with batch statistics and an affine transform."""
    if type(module) is not nn.BatchNorm2d or module.weight is None or module.bias is None:
        return False
    return module.training or (module.running_mean is None and module.running_var is None)


def is_halving_pool(module: Any) -> bool:
    """Whether this is 2x2 max-pooling with stride 2, without hooks."""
    return type(module) is nn.MaxPool2d and (
        module.kernel_size in (2, (2, 2))
        and module.stride in (2, (2, 2))
        and module.padding in (0, (0, 0))
        and module.dilation in (1, (1, 1))
        and not module.return_indices
        and not module.ceil_mode
        and is_plain(module)
    )


def updates_statistics(norm: Any) -> bool:
    """Whether a forward pass of a BatchNorm updates its running statistics."""
    return bool(norm.training and norm.track_running_stats and norm.running_mean is not None)


@torch.no_grad()
def update_statistics(
    momentum: float | None,
    running_mean: Tensor,
    running_var: Tensor,
    tracked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: int,
) -> None:
    """Updates running statistics as `nn.BatchNorm2d` does.

    Args:
        momentum: of the module.
        running_mean: `(..., channels)`.
        running_var: `(..., channels)`.
        tracked: the number of batches.
        mean: of the batch.
        var: of the batch, biased.
        count: values per channel.
    """
    rate: float | Tensor = 0.0 if momentum is None else momentum
    if tracked is not None:
        tracked.add_(1)
        if momentum is None:  # cumulative; not read, so that nothing waits for a GPU
            rate = tracked.to(mean.dtype).reciprocal()
    unbiased = var * (count / (count - 1))
    for running, value in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(rate * value + (1 - rate) * running)
