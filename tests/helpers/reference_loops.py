"""Reference implementation of the MAML loop on plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import Reptile, TaskBatch
from tests.helpers.problems import loss

LR = 0.3


def reference_meta_gradients(
    module: nn.Module,
    batch: TaskBatch,
    steps: int,
    second_order: bool,
    loss: Callable[[Tensor, Tensor], Tensor] = loss,
) -> Tensor:
    """Meta-gradients of the tasks ``(T, P)``, with a copy of the module."""
    module = copy.deepcopy(module)
    params = {n: p for n, p in module.named_parameters() if p.requires_grad}
    gradients = []
    for task in batch:
        fast = dict(params)
        buffers = {n: b.clone() for n, b in module.named_buffers()}
        for _ in range(steps):
            value = loss(
                functional_call(module, {**fast, **buffers}, (task.support_x,)), task.support_y
            )
            grads = torch.autograd.grad(
                value, list(fast.values()), create_graph=second_order, allow_unused=True
            )
            fast = {
                n: p if g is None else p - LR * g
                for (n, p), g in zip(fast.items(), grads, strict=True)
            }
            if not second_order:
                fast = {n: p.detach().requires_grad_() for n, p in fast.items()}
        output = functional_call(module, {**fast, **buffers}, (task.query_x,))
        value = loss(output, task.query_y)
        sources = params if second_order else fast
        grads = torch.autograd.grad(value, list(sources.values()), allow_unused=True)
        gradients.append(
            [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(params.values(), grads, strict=True)
            ]
        )
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in gradients])


def support_gradients(module: nn.Module, batch: TaskBatch, steps: int) -> Tensor:
    """Mean inner gradients ``(T, P)``: the displacement in units of the inner learning rate."""
    learner = Reptile(module, loss, inner_lr=LR, inner_steps=steps, use_query=False)
    gradients = [
        learner.meta_gradient(TaskBatch(*(part[None] for part in task)))[0] for task in batch
    ]
    return torch.stack(gradients) / (LR * steps)
