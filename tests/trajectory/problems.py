"""A small training run with dropout, and its derivatives by autograd of the unrolled run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.adaptation import (
    SGD,
    Adam,
    AdamW,
    Adaptation,
    Clipped,
    Groups,
    Muon,
    RMSprop,
    Scheduled,
)
from fastmeta.inner_step import at_step

EXAMPLES = 6


class Problem:
    """A kind of meta-parameter each: data weights, a network that weighs losses, a regularizer's
    coefficient, soft data and settings of the inner optimizer.

    Args:
        steps: inner steps.
        dropout: probability.
        parts: micro-batches.
    """

    def __init__(self, steps: int, dropout: float = 0.3, parts: int = 1) -> None:
        self.parts = parts
        self.module = nn.Sequential(
            nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)
        ).double()
        self.params = dict(self.module.named_parameters())
        self.batches = [
            (torch.randn(EXAMPLES, 4).double(), torch.randint(3, (EXAMPLES,)), own, k)
            for k, own in enumerate(torch.arange(steps * EXAMPLES).view(steps, EXAMPLES))
        ]
        self.held_out = torch.randn(9, 4).double(), torch.randint(3, (9,))
        self.meta = {
            "weights": torch.randn(steps * EXAMPLES).double(),
            "network": (torch.randn(1, 3).double(), torch.randn(3, 1).double()),
            "decay": [torch.tensor(0.02).double().requires_grad_(), torch.tensor(-2.0).double()],
            "inputs": torch.randn(2, 4).double(),
            "log_lr": torch.tensor(-3.0).double().requires_grad_(),
        }

    def inner(self, params: Any, meta: Any, batch: Any) -> Tensor:
        x, y, own, _ = batch
        each = F.cross_entropy(functional_call(self.module, params, (x,)), y, reduction="none")
        first, last = meta["network"]
        learned = ((each[:, None] @ first).tanh() @ last).sigmoid()[:, 0]
        weights = meta["weights"][own].sigmoid() * learned
        soft = functional_call(self.module, params, (meta["inputs"],)).square().mean()
        size = sum(p.square().sum() for p in params.values())
        return (weights * each).mean() + meta["decay"][0] * size + 0.1 * soft

    def accumulated(self, params: Any, meta: Any, batch: Any) -> Tensor:
        """The mean over the micro-batches."""
        *tensors, k = batch
        parts = zip(*(t.chunk(self.parts) for t in tensors), strict=True)
        losses = [self.inner(params, meta, (*part, k)) for part in parts]
        return sum(losses) / self.parts

    def outer(self, params: Any, meta: Any, scale: float = 1.0) -> Tensor:
        x, y = self.held_out
        loss = F.cross_entropy(functional_call(self.module, params, (x,)), y)
        return scale * loss + 0.1 * meta["decay"][1].exp()

    def unrolled(
        self, optimizer: Callable[[Any], Adaptation], outer: Mapping[int, float] | None = None
    ) -> list[Tensor]:
        """Derivatives with respect to all parameters and meta-parameters, by autograd.

        Outer losses before the end draw the random numbers of the inner step after them.
        """
        start = {n: p.detach().clone().requires_grad_() for n, p in self.params.items()}
        meta = torch.utils._pytree.tree_map(
            lambda t: t.detach().clone().requires_grad_(), self.meta
        )
        adaptation = optimizer(meta)
        fast = list(start.values())
        adaptation.bind(fast, list(start))
        state = adaptation.start(fast)
        total = torch.zeros(()).double()
        last = len(self.batches)
        for k, batch in enumerate(self.batches):
            if outer is not None and k in outer:
                before = torch.get_rng_state()
                total = total + self.outer(dict(zip(start, fast, strict=True)), meta, outer[k])
                torch.set_rng_state(before)
            with at_step(k):
                loss = self.accumulated(dict(zip(start, fast, strict=True)), meta, batch)
            grads = torch.autograd.grad(loss, fast, create_graph=True)
            fast, state = adaptation.update(k, fast, grads, state)
        if outer is None or last in outer:
            scale = () if outer is None else (outer[last],)
            total = total + self.outer(dict(zip(start, fast, strict=True)), meta, *scale)
        leaves = [*start.values(), *torch.utils._pytree.tree_leaves(meta)]
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


OPTIMIZERS: dict[str, Callable[[Any], Adaptation]] = {
    "sgd": lambda meta: SGD(0.1),
    "momentum": lambda meta: SGD(0.1, momentum=0.9),
    "nesterov": lambda meta: SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "learned sgd": lambda meta: SGD(
        meta["log_lr"].exp(), momentum=meta["log_lr"].sigmoid(), weight_decay=meta["decay"][0]
    ),
    "adam": lambda meta: Adam(0.01, eps=1e-3),
    "adamw": lambda meta: AdamW(0.01, eps=1e-3, weight_decay=0.1),
    "learned adamw": lambda meta: AdamW(
        meta["log_lr"].exp(),
        betas=(0.9, meta["log_lr"].sigmoid()),
        eps=1e-3,
        weight_decay=meta["decay"][0],
    ),
    "rmsprop": lambda meta: RMSprop(0.01, eps=1e-3, momentum=0.5, weight_decay=0.1),
    "learned rmsprop": lambda meta: RMSprop(
        meta["log_lr"].exp(), alpha=meta["log_lr"].sigmoid(), eps=1e-3
    ),
    "learned muon": lambda meta: Groups(
        {
            "*.weight": Muon(meta["log_lr"].exp(), weight_decay=meta["decay"][0], momentum=0.9),
            "*": Adam(meta["log_lr"].exp(), eps=1e-3),
        }
    ),
    "muon": lambda meta: Groups(
        {"*.weight": Muon(0.02), "0.bias": SGD(meta["log_lr"].exp()), "*": AdamW(0.01, eps=1e-3)}
    ),
    "clipped": lambda meta: Clipped(SGD(0.3, momentum=0.5), 0.2),
    "scheduled": lambda meta: Scheduled(AdamW(meta["log_lr"].exp(), eps=1e-3), "warmup:4"),
    "clipped schedule": lambda meta: Scheduled(Clipped(Adam(0.05, eps=1e-3), 0.3), "cosine:9"),
}
