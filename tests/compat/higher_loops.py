"""MAML as written by users of higher, for whichever library is passed in."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 20

OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "sgd-settings": lambda params: torch.optim.SGD(
        params, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True
    ),
    "dampened": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.8, dampening=0.3),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, weight_decay=0.1),
}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=0.3), nn.ReLU(), nn.Linear(8, 3)
    )


def task(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, query_x = torch.from_numpy(np.random.normal(size=(2, 10, 6))).to(dtype)
    labels = torch.from_numpy(np.random.normal(size=(6, 3))).to(dtype)
    return x, (x @ labels).argmax(1), query_x, (query_x @ labels).argmax(1)


def maml(
    higher: ModuleType,
    dtype: torch.dtype,
    name: str,
    copy_initial_weights: bool = False,
    track_higher_grads: bool = True,
) -> list[float]:
    """Losses of the outer steps, followed by a sum over the trained weights and buffers."""
    model = network().to(dtype)
    inner = OPTIMIZERS[name](list(model.parameters()))
    F.cross_entropy(model(task(dtype)[0]), task(dtype)[1]).backward()
    inner.step()  # so that there is a state to begin with
    rate = torch.full((), 0.1, dtype=dtype, requires_grad=True)
    outer = torch.optim.Adam([*model.parameters(), rate], lr=0.01)
    losses = []
    for _ in range(STEPS):
        x, y, query_x, query_y = task(dtype)
        outer.zero_grad()
        with higher.innerloop_ctx(
            model,
            inner,
            copy_initial_weights=copy_initial_weights,
            override={"lr": [rate]},
            track_higher_grads=track_higher_grads,
        ) as (fmodel, diffopt):
            for _ in range(3):
                diffopt.step(F.cross_entropy(fmodel(x), y))
            loss = F.cross_entropy(fmodel(query_x), query_y)
            if track_higher_grads:
                again = F.cross_entropy(
                    fmodel(query_x, params=list(fmodel.parameters(time=1))), query_y
                )
                loss = loss + 0.1 * again
        loss.backward()
        outer.step()
        losses.append(loss.item())
    state = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point()), rate]
    return [*losses, float(sum(p.detach().abs().sum() for p in state))]


CASES: dict[str, Callable[[ModuleType, torch.dtype], list[float]]] = {
    **{name: lambda lib, dtype, n=name: maml(lib, dtype, n) for name in OPTIMIZERS},
    "copied": lambda lib, dtype: maml(lib, dtype, "sgd-settings", copy_initial_weights=True),
    "untracked": lambda lib, dtype: maml(lib, dtype, "adam", track_higher_grads=False),
}
