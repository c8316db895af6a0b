"""3x3 convolutions against torch's conv2d, in both memory formats of torch.

Run with ``pytest benchmarks/ops/test_conv.py -s``. Times are of the four convolutions of a Conv-4
together, with 64 filters on 28x28 images and with 32 filters on 84x84 images, without the layers
between them. The input of the first one needs no gradient, as in a network.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._common.timing import interleaved, report
from fastmeta import ops

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
