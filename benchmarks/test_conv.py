"""3x3 convolutions against torch's conv2d, in both orders of images that torch knows.

Run with ``pytest benchmarks/test_conv.py -s``. Times are of the four convolutions of a Conv-4
together, with 64 filters on 28x28 images and with 32 filters on 84x84 images, without what lies
between them. The first one's images need no gradient, as in a network.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from measure import interleaved, report
from torch import Tensor

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
    """Inputs of the four convolutions, and what a meta-step asks of them."""

    def __init__(self, network: str, images: int, order: torch.memory_format) -> None:
        torch.manual_seed(0)
        channels, filters, self.stride, sizes = NETWORKS[network]
        self.tensors, self.needed, self.up, self.moves = [], [], [], []
        for size in sizes:
            x = torch.randn(images, channels, size, size).contiguous(memory_format=order)
            weight, bias = torch.randn(filters, channels, 3, 3), torch.randn(filters)
            up = torch.randn(by_torch(x, weight, bias, self.stride).shape)
            needed = [x, weight, bias] if self.needed else [weight, bias]
            self.tensors.append((x, weight, bias))
            self.needed.append([t.requires_grad_() for t in needed])
            self.up.append(up.contiguous(memory_format=order).requires_grad_())
            self.moves.append([torch.randn(t.shape) for t in needed])
            channels = filters

    @torch.no_grad()
    def forward(self, convolve: Convolution) -> list[Tensor]:
        """Forward alone."""
        return [convolve(*tensors, self.stride) for tensors in self.tensors]

    def first_order(self, convolve: Convolution) -> list[Tensor]:
        """Forward and backward."""
        found = []
        for tensors, needed, up in zip(self.tensors, self.needed, self.up, strict=True):
            found += torch.autograd.grad(convolve(*tensors, self.stride), needed, up.detach())
        return found

    def second_order(self, convolve: Convolution) -> list[Tensor]:
        """Forward, backward and double backward."""
        found = []
        layers = zip(self.tensors, self.needed, self.up, self.moves, strict=True)
        for tensors, needed, up, moves in layers:
            y = convolve(*tensors, self.stride)
            grads = torch.autograd.grad(y, needed, up, create_graph=True)
            # The first layer's gradients do not depend on its weights.
            inputs = [up, *needed[:2]] if tensors[0].requires_grad else [up]
            found += torch.autograd.grad(grads, inputs, moves)
        return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("images", [5, 75])
@pytest.mark.parametrize("network", NETWORKS)
def test_layers(network: str, images: int, threads: int) -> None:
    torch.set_num_threads(threads)
    usual = Layers(network, images, torch.contiguous_format)
    last = Layers(network, images, torch.channels_last)
    for what in ("forward", "first_order", "second_order"):
        contenders = {
            "torch": lambda what=what: getattr(usual, what)(by_torch),
            "torch, channels last": lambda what=what: getattr(last, what)(by_torch),
            "fastmeta": lambda what=what: getattr(last, what)(by_fastmeta),
        }
        results = [run() for run in contenders.values()]
        for expected, *others in zip(*results, strict=True):
            for found in others:
                assert (found - expected).norm() <= 1e-4 * expected.norm()
        title = f"four convolutions, {network}, {images} images, {what}, threads {threads}"
        report(title, interleaved(contenders), "fastmeta")
