"""3x3 convolutions against torch's conv2d, in both memory formats of torch.

Run with ``pytest benchmarks/ops/test_conv.py -s``. Times are of the four convolutions of a Conv-4
together, with 64 filters on 28x28 images and with 32 filters on 84x84 images, without the layers
between them. The input of the first one needs no gradient, as in a network. ``-k kernels`` times
each kernel of each layer alone: the least CPU time of interleaved rounds, one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._common.timing import interleaved, report
from fastmeta import build_info, ops
from fastmeta.backend import kernels

# Channels, filters, stride, and the sizes of the images of each layer.
NETWORKS = {
    "Omniglot, 64 filters, stride": (1, 64, 2, (28, 14, 7, 4)),
    "Omniglot, 64 filters, pool": (1, 64, 1, (28, 14, 7, 3)),
    "mini-ImageNet, 32 filters, pool": (3, 32, 1, (84, 42, 21, 10)),
}
Convolution = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def by_torch(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, bias, stride, 1)


def by_fastmeta(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    return ops.conv3x3(x, weight, bias, stride=stride)


class Layers:
    """Inputs of the four convolutions, and the derivatives that a meta-step needs."""

    def __init__(self, network: str, images: int, memory_format: torch.memory_format) -> None:
        torch.manual_seed(0)
        channels, filters, self.stride, sizes = NETWORKS[network]
        self.tensors, self.leaves, self.upstream, self.tangents = [], [], [], []
        for size in sizes:
            x = torch.randn(images, channels, size, size).contiguous(memory_format=memory_format)
            weight, bias = torch.randn(filters, channels, 3, 3), torch.randn(filters)
            up = torch.randn(by_torch(x, weight, bias, self.stride).shape)
            leaves = [x, weight, bias] if self.leaves else [weight, bias]
            self.tensors.append((x, weight, bias))
            self.leaves.append([t.requires_grad_() for t in leaves])
            self.upstream.append(up.contiguous(memory_format=memory_format).requires_grad_())
            self.tangents.append([torch.randn(t.shape) for t in leaves])
            channels = filters

    @torch.no_grad()
    def forward(self, convolve: Convolution) -> list[Tensor]:
        """Forward pass only."""
        return [convolve(*tensors, self.stride) for tensors in self.tensors]

    def first_order(self, convolve: Convolution) -> list[Tensor]:
        """Forward and backward pass."""
        found = []
        for tensors, leaves, up in zip(self.tensors, self.leaves, self.upstream, strict=True):
            found += torch.autograd.grad(convolve(*tensors, self.stride), leaves, up.detach())
        return found

    def second_order(self, convolve: Convolution) -> list[Tensor]:
        """Forward, backward and double backward pass."""
        found = []
        layers = zip(self.tensors, self.leaves, self.upstream, self.tangents, strict=True)
        for tensors, leaves, up, tangents in layers:
            y = convolve(*tensors, self.stride)
            grads = torch.autograd.grad(y, leaves, up, create_graph=True)
            # The gradients of the first layer do not depend on its weights.
            inputs = [up, *leaves[:2]] if tensors[0].requires_grad else [up]
            found += torch.autograd.grad(grads, inputs, tangents)
        return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("images", [5, 75])
@pytest.mark.parametrize("network", NETWORKS)
def test_layers(network: str, images: int, threads: int) -> None:
    torch.set_num_threads(threads)
    contiguous = Layers(network, images, torch.contiguous_format)
    channels_last = Layers(network, images, torch.channels_last)
    for derivatives in ("forward", "first_order", "second_order"):
        contenders = {
            "torch": lambda d=derivatives: getattr(contiguous, d)(by_torch),
            "torch, channels last": lambda d=derivatives: getattr(channels_last, d)(by_torch),
            "fastmeta": lambda d=derivatives: getattr(channels_last, d)(by_fastmeta),
        }
        results = [run() for run in contenders.values()]
        for expected, *others in zip(*results, strict=True):
            for found in others:
                assert (found - expected).norm() <= 1e-4 * expected.norm()
        title = f"four convolutions, {network}, {images} images, {derivatives}, threads {threads}"
        report(title, interleaved(contenders), "fastmeta")


# Pixels along an axis, channels, filters and stride; the last ones are of a ResNet-12.
LAYERS = [
    *((28, 1, 64, 2), (14, 64, 64, 2), (7, 64, 64, 2), (4, 64, 64, 2)),
    *((28, 1, 64, 1), (14, 64, 64, 1), (7, 64, 64, 1), (3, 64, 64, 1)),
    *((84, 3, 32, 1), (42, 32, 32, 1), (21, 32, 32, 1), (10, 32, 32, 1)),
    *((21, 160, 320, 1), (10, 320, 320, 1), (5, 320, 320, 1), (10, 640, 640, 1), (5, 640, 640, 1)),
]


def least(runs: dict[str, Callable[[], object]], seconds: float = 0.5) -> dict[str, float]:
    """The least CPU time of each, in microseconds."""
    found = dict.fromkeys(runs, float("inf"))
    stop, rounds = time.thread_time() + seconds, 0
    while time.thread_time() < stop or rounds < 5:
        for name, run in runs.items():
            begin = time.thread_time()
            run()
            found[name] = min(found[name], 1e6 * (time.thread_time() - begin))
        rounds += 1
    return found


@pytest.mark.parametrize("images", [5, 25, 75])
@pytest.mark.parametrize(("size", "channels", "filters", "stride"), LAYERS)
def test_kernels(size: int, channels: int, filters: int, stride: int, images: int) -> None:
    torch.set_num_threads(1)
    last = torch.channels_last
    x = torch.randn(images, channels, size, size).contiguous(memory_format=last)
    weight, bias = torch.randn(filters, channels, 3, 3), torch.randn(filters)
    up = torch.randn_like(by_torch(x, weight, bias, stride)).contiguous(memory_format=last)

    def gradients(*needed: bool) -> object:
        how = ([stride] * 2, [1, 1], [1, 1], False, [0, 0], 1)
        return torch.ops.aten.convolution_backward(up, x, weight, [filters], *how, needed)

    times = least(
        {
            "forward, torch": lambda: by_torch(x, weight, bias, stride),
            "forward": lambda: kernels.conv_forward.default(x, weight, bias, stride),
            "input, torch": lambda: gradients(True, False, False),
            "input": lambda: kernels.conv_input.default(up, weight, size, size, stride),
            "weight, torch": lambda: gradients(False, True, True),
            "weight": lambda: kernels.conv_weight.default(x, up, stride, None),
        }
    )
    line = f"{build_info().cpu_isa} {images} images {size}x{size} {channels}-{filters} /{stride}"
    for name in ("forward", "input", "weight"):
        torch_time, own = times[f"{name}, torch"], times[name]
        line += f" | {name} {torch_time:.0f} / {own:.0f} us = {torch_time / own:.2f}x"
    print(f"\n{line}")
