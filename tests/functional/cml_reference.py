"""Reference implementation of CML on plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import CoLearner, TaskBatch
from fastmeta.models import MLP, Conv4, ResNet12, conv_co_learner

LR = 0.3
WAYS = 3
Loss = Callable[[Tensor, Tensor], Tensor]


class Parts(nn.Module):
    """Features, main head and co-learner of a network, with both outputs."""

    def __init__(self, features: nn.Module, main: nn.Module, co: nn.Module) -> None:
        super().__init__()
        self.features, self.main, self.co = features, main, co

    def forward(self, x: Tensor, which: str) -> tuple[Tensor, ...]:
        z = self.features(x)
        return tuple({"main": self.main, "co": self.co}[name](z) for name in which.split())


def conv4(stats: bool = False) -> tuple[nn.Module, nn.Module, str]:
    net = Conv4(1, 16, WAYS, hidden=5, pool_last=False, batch_norm_stats=stats)
    return net, conv_co_learner(*net.map_size, WAYS, hidden=4, batch_norm_stats=stats), "features"


def resnet12() -> tuple[nn.Module, nn.Module, str]:
    net = ResNet12(1, 16, WAYS, hidden=(3, 4, 4, 5), pool_last=False)
    return net, conv_co_learner(*net.map_size, WAYS, hidden=4), "features"


def sine() -> tuple[nn.Module, nn.Module, str]:
    net = MLP(1, 1, (12, 10))
    return net, MLP(10, 1, (10,)), "layers.4"


NETWORKS = {
    "conv4": conv4,
    "conv4, running statistics": lambda: conv4(stats=True),
    "mlp": sine,
    "resnet12": resnet12,
}


def make(name: str, gamma: float = 0.7) -> tuple[nn.Module, CoLearner]:
    net, head, at = NETWORKS[name]()
    return net.double(), CoLearner(head.double(), at, gamma)


def parts(net: nn.Module, co_learner: CoLearner) -> Parts:
    """A copy of both; the network's parameters come before the co-learner's."""
    net, head = copy.deepcopy((net, co_learner.head))
    if isinstance(net, MLP):
        return Parts(net.layers[:-1], net.layers[-1], head)
    return Parts(net.features, net.head, head)


def batch_for(name: str, count: int = 2) -> TaskBatch:
    def draw(each: int) -> tuple[Tensor, Tensor]:
        if name == "mlp":
            x = 4 * torch.rand(count, each, 1, dtype=torch.float64) - 2  # a wider range diverges
            return x, torch.sin(x)
        y = torch.arange(WAYS).repeat(each).expand(count, -1).contiguous()
        return torch.rand(count, WAYS * each, 1, 16, 16, dtype=torch.float64), y

    return TaskBatch(*draw(3), *draw(4))


def adapted(
    whole: Parts,
    buffers: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    steps: int,
    second_order: bool,
    by: str = "main",
) -> dict[str, Tensor]:
    """Fast weights after gradient descent on the loss of the head ``by``, without ``phi``."""
    params = dict(whole.named_parameters())
    adapted_names = [
        n for n in params if n.startswith(("features", "main") if by == "main" else "feat")
    ]
    if not second_order:
        params = {n: p.detach().requires_grad_() for n, p in params.items()}
    for _ in range(steps):
        (output,) = functional_call(whole, {**params, **buffers}, (x, by))
        grads = torch.autograd.grad(
            loss(output, y), [params[n] for n in adapted_names], create_graph=second_order
        )
        for name, grad in zip(adapted_names, grads, strict=True):
            params[name] = params[name] - LR * grad
            if not second_order:
                params[name] = params[name].detach().requires_grad_()
    return params


def meta_gradients(
    net: nn.Module,
    co_learner: CoLearner,
    batch: TaskBatch,
    steps: int,
    second_order: bool,
    loss: Loss,
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Meta-gradients ``(T, P)`` with respect to psi, theta, phi, and the buffers of each task."""
    whole = parts(net, co_learner)
    found, states = [], []
    for task in batch:
        buffers = {n: b.clone() for n, b in whole.named_buffers()}
        fast = adapted(whole, buffers, task.support_x, task.support_y, loss, steps, second_order)
        main, co = functional_call(whole, {**fast, **buffers}, (task.query_x, "main co"))
        value = loss(main, task.query_y) + co_learner.gamma * loss(co, task.query_y)
        sources = list(whole.parameters()) if second_order else list(fast.values())
        grads = torch.autograd.grad(value, sources)
        found.append(torch.cat([g.flatten() for g in grads]))
        states.append(buffers)
    return torch.stack(found), states
