"""Derivatives of attention alone, as calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.transformers.cases import Case

Attention = Callable[..., Tensor]


def training_step(case: Case, batch: Sequence[Tensor]) -> Callable[[], None]:
    """Forward and backward pass of torch's attention."""
    leaves = [t.requires_grad_() for t in batch[:3]]

    def step() -> None:
        out = F.scaled_dot_product_attention(*leaves, is_causal=case.causal)
        torch.autograd.grad(out, leaves, batch[3])

    return step


def double_backward(case: Case, batch: Sequence[Tensor], attention: Attention) -> Callable[[], Any]:
    """The gradients of the gradients along three directions; with both passes if ``case.whole``."""
    leaves = [t.requires_grad_() for t in batch[:4]]
    *inputs, dout = leaves
    directions = batch[4:]

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(*inputs), inputs, dout, create_graph=True)

    if case.whole:
        return lambda: torch.autograd.grad(backward(), leaves, directions)
    grads = backward()
    return lambda: torch.autograd.grad(grads, leaves, directions, retain_graph=True)
