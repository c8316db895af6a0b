"""Samples of learn2learn's task sets and initial networks, for whichever library is passed in."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.compat.training_loops import seed


def draws(l2l: ModuleType, number: int) -> dict[str, list[list[int]]]:
    """Indices and labels that different chains of transforms draw."""
    t = l2l.data.transforms
    labels = torch.arange(60) * 7 % 12
    whole = l2l.data.MetaDataset(TensorDataset(torch.arange(60), labels))
    few = l2l.data.FilteredMetaDataset(whole, [11, 3, 5, 8])
    union = l2l.data.UnionMetaDataset([few, whole])
    chains = {
        "plain": (whole, [t.NWays(whole, 3), t.KShots(whole, 2), t.LoadData(whole)]),
        "described": (whole, [t.FilterLabels(whole, [1, 2, 4, 7]), t.KShots(whole, 3)]),
        "fused": (few, [t.FusedNWaysKShots(few, n=3, k=2), t.LoadData(few), t.RemapLabels(few)]),
        "replaced": (whole, [t.FusedNWaysKShots(whole, n=2, k=7, replacement=True)]),
        "shots": (few, [t.KShots(few, 4, replacement=True)]),
        "union": (
            union,
            [
                t.NWays(union, 5),
                t.KShots(union, 1),
                t.LoadData(union),
                t.RemapLabels(union, shuffle=False),
                t.ConsecutiveLabels(union),
            ],
        ),
        "all": (few, [t.RemapLabels(few), t.ConsecutiveLabels(few)]),
    }
    found = {}
    for name, (data, chain) in chains.items():
        loads = [i for i, step in enumerate(chain) if isinstance(step, t.LoadData)]
        remaps = [i for i, step in enumerate(chain) if isinstance(step, t.RemapLabels)]
        if not loads:
            chain.insert(remaps[0] if remaps else len(chain), t.LoadData(data))
        for num_tasks in (-1, 3):
            seed(number)
            tasks = l2l.data.Taskset(data, chain, num_tasks=num_tasks)
            drawn = [tasks.sample() for _ in range(6)]
            found[f"{name}{num_tasks}"] = [torch.stack(task).flatten().tolist() for task in drawn]
    return found


def models(l2l: ModuleType, number: int) -> dict[str, nn.Module]:
    """Newly initialized networks and wrappers."""
    vision = l2l.vision.models
    makers: dict[str, Callable[[], nn.Module]] = {
        "OmniglotFC": lambda: vision.OmniglotFC(20, 3, sizes=[5, 4]),
        "OmniglotFC-default": lambda: vision.OmniglotFC(20, 3),
        "OmniglotCNN": lambda: vision.OmniglotCNN(3, hidden_size=4, layers=3),
        "CNN4": lambda: vision.CNN4(3, hidden_size=4, layers=2, channels=1),
        "CNN4-default": lambda: vision.MiniImagenetCNN(3, hidden_size=2),
        "CNN4-strided": lambda: vision.CNN4(2, hidden_size=3, max_pool=False, embedding_size=9),
        "CNN4Backbone": lambda: vision.CNN4Backbone(hidden_size=3, layers=3),
        "ConvBase": lambda: vision.ConvBase(hidden=3, channels=2, max_pool=True),
        "MAML": lambda: l2l.algorithms.MAML(nn.Linear(2, 3), lr=0.1),
        "MetaSGD": lambda: l2l.algorithms.MetaSGD(nn.Linear(2, 3), lr=0.1),
        "GBML": lambda: l2l.algorithms.GBML(
            nn.Conv2d(2, 3, 2), l2l.optim.MetaCurvatureTransform, lr=0.1
        ),
    }
    made = {}
    for name, make in makers.items():
        seed(number)
        made[name] = make()
    return made


def fingerprint(module: nn.Module) -> dict[str, list[float]]:
    """Names, order and values of a state, and the order of the parameters."""
    state = {
        name: [*tensor.shape, tensor.double().sum().item(), tensor.double().norm().item()]
        for name, tensor in module.state_dict().items()
    }
    return {**state, "parameters": [p.numel() for p in module.parameters()]}
