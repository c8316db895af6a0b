"""Reference implementation of the inner loop with a layer pattern, on plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adaptation, LayerPattern
from fastmeta.aggregation import Mean
from fastmeta.metagrad import MetaGradient
from tests.helpers.reference_loops import LR


def layers_of(module: nn.Module) -> list[set[str]]:
    """Names of the parameters of each layer; every layer has its weight before its bias."""
    layers: list[set[str]] = []
    for name, param in module.named_parameters():
        if param.dim() > 1:
            layers.append(set())
        layers[-1].add(name)
    return layers


def names_of(module: nn.Module, bits: Sequence[str]) -> list[set[str]]:
    """Names of the parameters that each inner step adapts."""
    layers = layers_of(module)
    return [
        set().union(*(layer for layer, bit in zip(layers, step, strict=True) if bit == "1"))
        for step in bits
    ]


def reference_meta_gradients(
    module: nn.Module,
    batch: TaskBatch,
    bits: Sequence[str],
    second_order: bool,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """Meta-gradients ``(T, P)``; ``bits`` has the pattern of every inner step."""
    module = copy.deepcopy(module)
    params = dict(module.named_parameters())
    gradients = []
    for task in batch:
        fast = dict(params)
        for names in names_of(module, bits):
            value = loss(functional_call(module, fast, (task.support_x,)), task.support_y)
            grads = torch.autograd.grad(value, list(fast.values()), create_graph=second_order)
            # A frozen parameter is a new node, too: adapted ones depend on the old one.
            fast = {
                name: p - (LR if name in names else 0) * g
                for (name, p), g in zip(fast.items(), grads, strict=True)
            }
            if not second_order:
                fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
        value = loss(functional_call(module, fast, (task.query_x,)), task.query_y)
        sources = params if second_order else fast
        grads = torch.autograd.grad(value, list(sources.values()))
        gradients.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(gradients)


def learner(
    module: nn.Module,
    pattern: str,
    metagrad: MetaGradient,
    inner: Adaptation | None = None,
    **options: Any,
) -> MetaLearner:
    """A learner with this layer pattern; three inner steps of SGD by default."""
    return MetaLearner(
        module,
        F.cross_entropy,
        adaptation=LayerPattern(inner or SGD(LR, 3), pattern),
        metagrad=metagrad,
        aggregation=Mean(),
        **{"engine": "loop", **options},
    )
