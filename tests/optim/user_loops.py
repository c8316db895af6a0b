"""FOMAML loops as users write them, with and without GSLOptimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import GSLOptimizer, TaskBatch
from tests.helpers.problems import loss

LR = 0.3


def inner(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    seen: Callable | None = None,
    grad: Callable = torch.autograd.grad,
) -> dict:
    """First-order fast weights that are still connected to the meta-parameters."""
    fast = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for _ in range(steps):
        value = loss(functional_call(model, fast, (x,)), y)
        grads = grad(value, list(fast.values()), allow_unused=True)
        if seen is not None:
            seen(grads)
        fast = {
            n: p if g is None else p - LR * g for (n, p), g in zip(fast.items(), grads, strict=True)
        }
    return fast


def plain(model: nn.Module, batch: TaskBatch, steps: int = 2) -> None:
    """Accumulates FOMAML's gradient in ``.grad``."""
    for task in batch:
        fast = inner(model, task.support_x, task.support_y, steps)
        output = functional_call(model, fast, (task.query_x,))
        (loss(output, task.query_y) / len(batch)).backward()


def marked(
    model: nn.Module,
    batch: TaskBatch,
    opt: GSLOptimizer,
    steps: int = 2,
    way: str = "support",
    scale: Callable[[Tensor], Tensor] = lambda value: value,
) -> None:
    """The same loop with recorded tasks; ``way`` is how support gradients are passed."""
    share = 1 / len(batch)
    for task in batch:
        with opt.task(scale=share) as record:
            seen = record.support if way == "support" else None
            grad = record.inner_gradients if way == "inner gradients" else torch.autograd.grad
            fast = inner(model, task.support_x, task.support_y, steps, seen, grad)
            if way == "record":
                with record.record():
                    loss(model(task.support_x), task.support_y).backward()
            if way == "adapted":
                record.adapted(list(fast.values()), LR, steps)
            output = functional_call(model, fast, (task.query_x,))
            scale(loss(output, task.query_y) * share).backward()


def gradients(params: Sequence[Tensor]) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in params]


def step(module: nn.Module, opt: GSLOptimizer, batch: TaskBatch) -> None:
    opt.zero_grad()
    marked(module, batch, opt, way="inner gradients")
    opt.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
