"""learn2learn's public examples, scaled down, for whichever library is passed in.

Each runs the usual loop (task set, adaptation, outer step) on random images and returns the losses
of its steps.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

STEPS = 20
WAYS, SHOTS, TASKS = 4, 2, 2


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def images(dtype: torch.dtype, channels: int, side: int, classes: int = 9) -> TensorDataset:
    """Noise around one image per class, six examples each, shuffled."""
    labels = np.random.permutation(np.repeat(np.arange(classes), 6))
    means = np.random.normal(size=(classes, channels, side, side))
    x = means[labels] + np.random.normal(size=(len(labels), channels, side, side))
    return TensorDataset(torch.from_numpy(x).to(dtype), torch.from_numpy(labels))


def fused_tasks(l2l: ModuleType, data: TensorDataset, num_tasks: int = 50) -> object:
    data = l2l.data.MetaDataset(data)
    chain = [
        l2l.data.transforms.FusedNWaysKShots(data, n=WAYS, k=2 * SHOTS),
        l2l.data.transforms.LoadData(data),
        l2l.data.transforms.RemapLabels(data),
        l2l.data.transforms.ConsecutiveLabels(data),
    ]
    return l2l.data.Taskset(data, task_transforms=chain, num_tasks=num_tasks)


def plain_tasks(l2l: ModuleType, data: TensorDataset) -> object:
    data = l2l.data.MetaDataset(data)
    chain = [
        l2l.data.transforms.NWays(data, WAYS),
        l2l.data.transforms.KShots(data, 2 * SHOTS),
        l2l.data.transforms.LoadData(data),
        l2l.data.transforms.ConsecutiveLabels(data),
        l2l.data.transforms.RemapLabels(data),
    ]
    return l2l.data.Taskset(data, task_transforms=chain)


def halves(task: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Splits a task into support and query set, which alternate."""
    data, labels = task
    support = torch.zeros(len(data), dtype=torch.bool)
    support[torch.arange(SHOTS * WAYS) * 2] = True
    return data[support], labels[support], data[~support], labels[~support]


def outer_loop(
    wrapper: nn.Module,
    tasks: object,
    inner_steps: int,
    features: nn.Module | None = None,
    meta_lr: float = 0.003,
) -> list[float]:
    """Adapt a clone to each task, backpropagate its query loss, step on the mean gradient."""
    body = nn.Identity() if features is None else features
    params = [*body.parameters(), *wrapper.parameters()]
    opt = torch.optim.Adam(params, meta_lr)
    losses = []
    for _ in range(STEPS):
        opt.zero_grad()
        total = 0.0
        for _ in range(TASKS):
            learner = wrapper.clone()
            x, y, query_x, query_y = halves(tasks.sample())
            x, query_x = body(x), body(query_x)
            for _ in range(inner_steps):
                learner.adapt(F.cross_entropy(learner(x), y))
            error = F.cross_entropy(learner(query_x), query_y)
            error.backward()
            total += error.item()
        losses.append(total / TASKS)
        for p in params:
            p.grad.mul_(1.0 / TASKS)
        opt.step()
    return losses


def maml_omniglot(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    tasks = fused_tasks(l2l, images(dtype, 1, 28))
    model = l2l.vision.models.OmniglotFC(28**2, WAYS, sizes=[32, 16]).to(dtype)
    return outer_loop(l2l.algorithms.MAML(model, lr=0.5, first_order=False), tasks, 1)


def fomaml_omniglot(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    tasks = fused_tasks(l2l, images(dtype, 1, 28))
    model = l2l.vision.models.OmniglotCNN(WAYS, hidden_size=8, layers=3).to(dtype)
    return outer_loop(l2l.algorithms.MAML(model, lr=0.1, first_order=True), tasks, 3)


def maml_miniimagenet(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    tasks = plain_tasks(l2l, images(dtype, 3, 16))
    model = l2l.vision.models.MiniImagenetCNN(WAYS, hidden_size=8, embedding_size=8).to(dtype)
    return outer_loop(l2l.algorithms.MAML(model, lr=0.1), tasks, 2)


def anil_fc100(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    tasks = fused_tasks(l2l, images(dtype, 3, 16))
    model = l2l.vision.models.CNN4(WAYS, hidden_size=8, embedding_size=8).to(dtype)
    head = l2l.algorithms.MAML(model.classifier, lr=0.1)
    return outer_loop(head, tasks, 5, features=model.features, meta_lr=0.001)


def meta_sgd_omniglot(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    tasks = plain_tasks(l2l, images(dtype, 1, 28))
    model = l2l.vision.models.OmniglotFC(28**2, WAYS, sizes=[32, 16]).to(dtype)
    return outer_loop(l2l.algorithms.MetaSGD(model, lr=0.1), tasks, 2)


def meta_curvature_fc100(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    tasks = fused_tasks(l2l, images(dtype, 3, 8))
    model = nn.Sequential(
        l2l.vision.models.ConvBase(hidden=6, channels=3, max_pool=False, layers=2),
        l2l.nn.Lambda(lambda x: x.mean(dim=[2, 3])),
        l2l.nn.Flatten(),
        l2l.vision.models.maml_init_(nn.Linear(6, WAYS)),
    )
    gbml = l2l.algorithms.GBML(model, l2l.optim.MetaCurvatureTransform, lr=0.1)
    return outer_loop(gbml.to(dtype), tasks, 3)


def adapted_transform(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    tasks = fused_tasks(l2l, images(dtype, 1, 4))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, WAYS))
    transform = l2l.optim.ModuleTransform(lambda n, m: l2l.nn.Scale(m, alpha=0.5))
    gbml = l2l.algorithms.GBML(model, transform, lr=0.3, adapt_transform=True)
    return outer_loop(gbml.to(dtype), tasks, 3)


def reptile_miniimagenet(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    tasks = plain_tasks(l2l, images(dtype, 3, 16))
    model = l2l.vision.models.MiniImagenetCNN(WAYS, hidden_size=8, embedding_size=8).to(dtype)
    opt = torch.optim.SGD(model.parameters(), 1.0)
    inner_state = torch.optim.Adam(model.parameters(), lr=0.001, betas=(0.0, 0.999)).state_dict()
    losses = []
    for step in range(STEPS):
        opt.param_groups[0]["lr"] = 1 - step / STEPS
        total = 0.0
        moved = [torch.zeros_like(p) for p in model.parameters()]
        for _ in range(TASKS):
            learner = copy.deepcopy(model)
            inner = torch.optim.Adam(learner.parameters(), lr=0.001, betas=(0.0, 0.999))
            inner.load_state_dict(inner_state)
            x, y, query_x, query_y = halves(tasks.sample())
            for _ in range(3):
                rows = torch.randint(len(x), (6,))
                inner.zero_grad()
                F.cross_entropy(learner(x[rows]), y[rows]).backward()
                inner.step()
            inner_state = inner.state_dict()
            total += F.cross_entropy(learner(query_x), query_y).item()
            for m, p in zip(moved, learner.parameters(), strict=True):
                m.sub_(p.data)
        for p, m in zip(model.parameters(), moved, strict=True):
            p.grad = m / TASKS + p.data
        opt.step()
        losses.append(total / TASKS)
    return losses


class Gaussian(nn.Module):
    """A model without an input, with one parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.randn(5))
        self.sigma = nn.Parameter(torch.randn(5).abs())
        self.unused = nn.Parameter(torch.randn(2))
        self.fixed = nn.Parameter(torch.ones(5), requires_grad=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.mu * self.fixed, self.sigma**2


def maml_toy(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    maml = l2l.algorithms.MAML(Gaussian().to(dtype), lr=0.01, allow_nograd=True)
    opt = torch.optim.Adam(maml.parameters())
    losses = []
    for _ in range(STEPS):
        total = torch.zeros((), dtype=dtype)
        for _ in range(5):
            learner = maml.clone()
            mu, sigma = torch.from_numpy(np.random.normal(size=(2, 5))).to(dtype)

            def error(
                learner: nn.Module = learner, mu: Tensor = mu, sigma: Tensor = sigma
            ) -> Tensor:
                mean, variance = learner()
                return (mu - mean).square().sum() + (sigma - variance).square().sum()

            learner.adapt(error())
            total = total + error() / 5
        opt.zero_grad()
        total.backward()
        opt.step()
        losses.append(total.item())
    return losses


def functional_updates(l2l: ModuleType, dtype: torch.dtype) -> list[float]:
    """``clone_module`` and ``update_module`` on a recurrent network with tied weights."""
    data = images(dtype, 3, 4)
    encoder, decoder = (nn.GRU(16, 16, batch_first=True).to(dtype) for _ in range(2))
    decoder.weight_hh_l0 = encoder.weight_hh_l0
    model = nn.ModuleList([encoder, decoder])
    opt = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(STEPS):
        x = data.tensors[0][torch.randint(len(data), (6,))].flatten(2)
        clone = l2l.clone_module(model)
        for _ in range(2):
            loss = (clone[1](clone[0](x)[0])[0] - x).square().mean()
            grads = torch.autograd.grad(loss, clone.parameters(), create_graph=True)
            l2l.update_module(clone, updates=[-0.1 * g for g in grads])
        loss = (clone[1](clone[0](x)[0])[0] - x).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


LOOPS: dict[str, Callable[[ModuleType, torch.dtype], list[float]]] = {
    loop.__name__: loop
    for loop in (
        maml_omniglot,
        fomaml_omniglot,
        maml_miniimagenet,
        anil_fc100,
        meta_sgd_omniglot,
        meta_curvature_fc100,
        adapted_transform,
        reptile_miniimagenet,
        maml_toy,
        functional_updates,
    )
}
