"""Fused BatchNorm + ReLU (+ max-pooling), as an op and in modules, against separate torch ops.

Run with ``pytest benchmarks/ops/test_norm.py -s``. Times are of the four blocks of a Conv-4 with 64
filters on 28x28 images, without its convolutions, and of whole steps of MAML and FOMAML.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._common.batches import image_batch
from benchmarks._common.timing import interleaved, report
from fastmeta import FOMAML, MAML, ops
from fastmeta.models import Conv4

SIZES = {"stride": (14, 7, 4, 2), "pool": (28, 14, 7, 3)}
Block = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def composed(x: Tensor, weight: Tensor, bias: Tensor, pool: bool) -> Tensor:
    z = torch.relu(F.batch_norm(x, None, None, weight, bias, training=True))
    return F.max_pool2d(z, 2) if pool else z


def fused(x: Tensor, weight: Tensor, bias: Tensor, pool: bool) -> Tensor:
    return ops.batch_norm_relu(x, weight, bias, pool=pool)[0]


class Blocks:
    """Inputs of the four blocks, and the derivatives that a meta-step needs."""

    def __init__(self, images: int, pool: bool) -> None:
        self.pool = pool
        self.leaves, self.upstream, self.tangents = [], [], []
        for size in SIZES["pool" if pool else "stride"]:
            x, weight, bias = torch.randn(images, 64, size, size), torch.rand(64), torch.randn(64)
            self.leaves.append([t.requires_grad_() for t in (x, weight, bias)])
            self.upstream.append(torch.randn_like(composed(x, weight, bias, pool)).requires_grad_())
            self.tangents.append([torch.randn_like(t) for t in (x, weight, bias)])

    def first_order(self, block: Block) -> list[Tensor]:
        """Forward and backward pass."""
        found = []
        for leaves, up in zip(self.leaves, self.upstream, strict=True):
            found += torch.autograd.grad(block(*leaves, self.pool), leaves, up.detach())
        return found

    def second_order(self, block: Block) -> list[Tensor]:
        """Forward, backward and double backward pass."""
        found = []
        for leaves, up, tangents in zip(self.leaves, self.upstream, self.tangents, strict=True):
            grads = torch.autograd.grad(block(*leaves, self.pool), leaves, up, create_graph=True)
            found += torch.autograd.grad(grads, [*leaves[:2], up], tangents)
        return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("images", [5, 25, 75])
@pytest.mark.parametrize("downsample", SIZES)
def test_blocks(downsample: str, images: int, threads: int) -> None:
    torch.set_num_threads(threads)
    blocks = Blocks(images, downsample == "pool")
    for order in ("first_order", "second_order"):
        run = getattr(blocks, order)
        for found, expected in zip(run(fused), run(composed), strict=True):
            assert (found - expected).norm() <= 1e-3 * expected.norm() + 1e-3
        timings = interleaved(
            {"torch": lambda run=run: run(composed), "fastmeta": lambda run=run: run(fused)}
        )
        title = f"four blocks, {downsample}, {images} images, {order}, threads {threads}"
        report(title, timings, "fastmeta")


NETWORKS = {
    "Omniglot, 64 filters, stride": (1, 28, 64, "stride"),
    "Omniglot, 64 filters, pool": (1, 28, 64, "pool"),
    "mini-ImageNet, 32 filters, pool": (3, 84, 32, "pool"),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("method", [MAML, FOMAML])
@pytest.mark.parametrize("network", NETWORKS)
def test_whole_steps(network: str, method: type, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    channels, size, hidden, downsample = NETWORKS[network]
    module = Conv4(channels, size, 5, hidden=hidden, downsample=downsample)
    batch = image_batch(4, 15, channels, size)
    learners = {
        name: method(
            copy.deepcopy(module), F.cross_entropy, inner_lr=0.1, inner_steps=steps, fuse=fuse
        )
        for name, fuse in (("fuse=False", False), ("fuse=True", True))
    }
    timings = interleaved(
        {name: lambda learner=learner: learner.step(batch) for name, learner in learners.items()},
        min_rounds=5,
    )
    title = f"{network}, {method.__name__}, {steps} inner steps, threads {threads}"
    report(title, timings, "fuse=True")
