"""Small MLPs, their tasks, and comparison of MLP steps with the reference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.ops import MlpStep

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
NETWORKS = {
    "no hidden layer": [3, 5],
    "sine": [1, 40, 40, 1],
    "one wide": [1, 1, 1],
    "three hidden": [33, 3, 65, 1, 3],
}


def only(*chosen: int) -> Callable[[int], list[bool]]:
    """A mask over layers; negative indices count from the last one."""
    return lambda layers: [k in chosen or k - layers in chosen for k in range(layers)]


def full(layers: int) -> list[bool]:
    return [True] * layers


HEAD, FIRST, NONE = only(-1), only(0), only()
GSL = {"lam_d": 0.7, "lam_c": 0.4, "lam_2": 0.3}
# Masks of the inner steps, and weights of the similarity loss.
ORDERS: dict[str, tuple[list[Callable[[int], list[bool]]], dict[str, float]]] = {
    "first order": ([NONE], {}),
    "second order": ([full], {}),
    "head": ([HEAD], {}),
    "first layer": ([FIRST], {}),
    "another one in each step": ([only(-2), NONE, only(0, -1), HEAD], {}),
    "inner product": ([HEAD], {"lam_d": -0.6}),
    "cosine": ([HEAD], {"lam_d": 0.0, "lam_c": 1.5}),
    "L2 of all layers": ([full], {"lam_d": 0.0, "lam_2": 0.8}),
    "all similarities": ([HEAD, only(0, -1)], GSL),
    "all similarities of all layers": ([full], GSL),
}
# All numbers of steps with the two plain orders, the largest one with all.
STEPS_AND_ORDERS = [
    (steps, order) for order in ORDERS for steps in (0, 1, 5) if steps == 5 or "order" in order
]


def network(
    widths: list[int], dtype: torch.dtype = torch.float64, bias: bool = True
) -> list[Tensor]:
    params = []
    for wide, narrow in pairwise(widths):
        params.append(torch.randn(narrow, wide, dtype=dtype) / wide**0.5)
        if bias:
            params.append(0.3 * torch.randn(narrow, dtype=dtype))
    return params


def examples(
    widths: list[int],
    loss: str,
    tasks: int,
    dtype: torch.dtype = torch.float64,
    shots: tuple[int, int] = (7, 10),
) -> list[Tensor]:
    parts = []
    for n in shots:
        parts.append(torch.randn(tasks, n, widths[0], dtype=dtype))
        if loss == "mse":
            parts.append(torch.randn(tasks, n, widths[-1], dtype=dtype))
        else:
            parts.append(torch.randint(widths[-1], (tasks, n)))
    return parts


def problem(name: str = "sine", loss: str = "mse", tasks: int = 3, **options: Any) -> list[Any]:
    widths = NETWORKS[name]
    data = examples(widths, loss, tasks, options.get("dtype", torch.float64))
    return [network(widths, **options), *data]


def options(
    name: str = "sine",
    loss: str = "mse",
    activation: str = "tanh",
    order: str = "second order",
    steps: int = 3,
) -> dict[str, Any]:
    layers = len(NETWORKS[name]) - 1
    how = {"activations": [activation] * (layers - 1), "loss": loss, "lr": 0.02, "steps": steps}
    return how | of_order(order, layers)


def of_order(order: str, layers: int) -> dict[str, Any]:
    masks, weights = ORDERS[order]
    return {"differentiated": [mask(layers) for mask in masks], **weights}


def check(found: MlpStep, args: list[Any], how: dict[str, Any]) -> None:
    """Compares all results by norm with the reference in float64."""
    dtype = args[1].dtype
    wide = [t.double() if t.is_floating_point() else t for t in args[1:]]
    expected = reference.mlp_step([p.double() for p in args[0]], *wide, **how)
    for field, x, y in zip(found._fields, found, expected, strict=True):
        if y is None:
            assert x is None
            continue
        assert x is not None
        assert x.dtype == dtype
        assert x.shape == y.shape
        assert (x.double() - y).norm() <= TOLERANCE[dtype] * y.norm(), field
