"""BatchNorm + ReLU (+ max-pooling) as one op, and fused modules, against torch's composition.

Run with ``pytest benchmarks/test_norm.py -s``. Times are of the four blocks of a Conv-4 with 64
filters on 28x28 images, without its convolutions, and of whole steps of MAML and FOMAML.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from batches import images
from measure import interleaved, report
from torch import Tensor

from fastmeta import FOMAML, MAML, ops
from fastmeta.models import Conv4

PLANES = {"stride": (14, 7, 4, 2), "pool": (28, 14, 7, 3)}
Block = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def composed(x: Tensor, weight: Tensor, bias: Tensor, pool: bool) -> Tensor:
    z = torch.relu(F.batch_norm(x, None, None, weight, bias, training=True))
    return F.max_pool2d(z, 2) if pool else z


def fused(x: Tensor, weight: Tensor, bias: Tensor, pool: bool) -> Tensor:
    return ops.batch_norm_relu(x, weight, bias, pool=pool)[0]


class Blocks:
    """Inputs of the four blocks, and what a meta-step asks of them."""

    def __init__(self, images: int, pool: bool) -> None:
        self.pool = pool
        self.leaves, self.up, self.moves = [], [], []
        for size in PLANES["pool" if pool else "stride"]:
            x, weight, bias = torch.randn(images, 64, size, size), torch.rand(64), torch.randn(64)
            self.leaves.append([t.requires_grad_() for t in (x, weight, bias)])
            self.up.append(torch.randn_like(composed(x, weight, bias, pool)).requires_grad_())
            self.moves.append([torch.randn_like(t) for t in (x, weight, bias)])

    def first_order(self, block: Block) -> list[Tensor]:
        """Forward and backward."""
        found = []
        for leaves, up in zip(self.leaves, self.up, strict=True):
            found += torch.autograd.grad(block(*leaves, self.pool), leaves, up.detach())
        return found

    def second_order(self, block: Block) -> list[Tensor]:
        """Forward, backward and double backward."""
        found = []
        for leaves, up, moves in zip(self.leaves, self.up, self.moves, strict=True):
            grads = torch.autograd.grad(block(*leaves, self.pool), leaves, up, create_graph=True)
            found += torch.autograd.grad(grads, [*leaves[:2], up], moves)
        return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("images", [5, 25, 75])
@pytest.mark.parametrize("downsample", PLANES)
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
    batch = images(4, 15, channels, size)
    learners = {
        name: method(
            copy.deepcopy(module), F.cross_entropy, inner_lr=0.1, inner_steps=steps, fuse=fuse
        )
        for name, fuse in (("fuse=False", False), ("fuse=True", True))
    }
    timings = interleaved(
        {name: lambda learner=learner: learner.step(batch) for name, learner in learners.items()},
        least_rounds=5,
    )
    title = f"{network}, {method.__name__}, {steps} inner steps, threads {threads}"
    report(title, timings, "fuse=True")
