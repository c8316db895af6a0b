"""Small sequences of layers, their tasks, and comparison of sequence steps with the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.ops import SequenceLayer as Layer
from fastmeta.ops import SequenceStep

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
WAYS = 3


class Network:
    """Layers and parameters, built layer by layer.

    Args:
        shape: of one example.
    """

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.channels = shape[0]
        self.layers: list[Layer] = []
        self.params: list[Tensor] = []

    def _add(self, layer: Layer, *params: Tensor) -> Network:
        self.layers.append(layer._replace(weight=len(self.params) if params else 0))
        self.params += params
        return self

    def conv(self, out: int, stride: int = 1, bias: bool = True) -> Network:
        weight = torch.randn(out, self.channels, 3, 3) / (3 * self.channels**0.5)
        self.channels = out
        params = [weight, 0.3 * torch.randn(out)] if bias else [weight]
        return self._add(Layer("conv", bias=bias, stride=stride), *params)

    def norm(self, pool: bool = False, sets: int = 1, relu: bool = True) -> Network:
        params = []
        for _ in range(sets):
            weight = (0.5 + torch.rand(self.channels)) * torch.randn(self.channels).sign()
            weight[0] = 0  # pooling then chooses from equal values
            params += [weight, 0.3 * torch.randn(self.channels)]
        return self._add(Layer("norm", relu=relu, pool=pool, sets=sets, eps=1e-3), *params)

    def act(self, activation: str) -> Network:
        return self._add(Layer("activation", activation=activation, slope=0.1))

    def pool(self, kind: str, window: int | None) -> Network:
        return self._add(Layer(kind, window=window))

    def linear(self, inputs: int, out: int = WAYS, bias: bool = True) -> Network:
        weight = torch.randn(out, inputs) / inputs**0.5
        params = [weight, 0.3 * torch.randn(out)] if bias else [weight]
        return self._add(Layer("linear", bias=bias), *params)


def network(name: str) -> Network:
    """A network by name, with random parameters in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return _NETWORKS[name]()
    finally:
        torch.set_default_dtype(before)


_NETWORKS = {
    "strided": lambda: (
        Network(1, 9, 7).conv(5, 2).norm().conv(17, 2).norm().conv(6, 2).norm().linear(12)
    ),
    "pooled": lambda: (
        Network(3, 9, 8).conv(5).norm(True).conv(16).norm(True).conv(4).norm(True).linear(4)
    ),
    "wide": lambda: Network(1, 8, 8).conv(32).norm(True).conv(32).norm(True).linear(128),
    "per step": lambda: (
        Network(1, 6, 6).conv(4, bias=False).norm(True, 6).conv(4).norm(False, 2).linear(36)
    ),
    "activations": lambda: (
        Network(2, 8, 8).conv(4).act("gelu").pool("max_pool", 2).conv(5).act("leaky_relu")
        .pool("mean_pool", 2).conv(5).act("relu").pool("mean_pool", None).linear(5, 7)
        .act("tanh").linear(7)
    ),
    "odd pools": lambda: (
        Network(1, 11, 7).conv(3).act("silu").pool("max_pool", 3).act("elu")
        .pool("mean_pool", 2).linear(3, bias=False)
    ),
    "normalisations without ReLU": lambda: (
        Network(2, 7, 8).conv(4).norm(relu=False).act("leaky_relu").conv(17)
        .norm(sets=2, relu=False).act("gelu").pool("max_pool", 2).conv(3).norm(relu=False)
        .linear(36)
    ),
    "features": lambda: Network(9).linear(9, 18).act("sigmoid").linear(18),
}  # fmt: skip
NETWORKS = list(_NETWORKS)


def only(network: Network, kinds: str) -> list[bool]:
    """A mask over the parameters: of some of the layers that have parameters."""
    mask = [False] * len(network.params)
    with_params = [k for k in network.layers if k.kind in ("conv", "norm", "linear")]
    chosen = {
        "none": [],
        "all": with_params,
        "head": with_params[-1:],
        "first": with_params[:1],
        "second": with_params[1:2],
        "third": with_params[2:3],
        "fourth": with_params[3:4],
        "ends": [with_params[0], with_params[-1]],
        "body": with_params[:-1],
    }[kinds]
    for layer in chosen:
        for i in range(2 * layer.sets if layer.kind == "norm" else 1 + layer.bias):
            mask[layer.weight + i] = True
    return mask


GSL = {"lam_d": 0.7, "lam_c": 0.4, "lam_2": 0.3}
# Masks of the inner steps, and weights of the similarity loss.
ORDERS: dict[str, tuple[list[str], dict[str, float]]] = {
    "first order": (["none"], {}),
    "second order": (["all"], {}),
    "head": (["head"], {}),
    "first layer": (["first"], {}),
    "third layer": (["third"], {}),
    "fourth layer and head": (["fourth", "head"], {}),
    "another one in each step": (["second", "none", "ends", "body"], {}),
    "inner product": (["head"], {"lam_d": -0.6}),
    "all similarities": (["head", "ends"], GSL),
    "all similarities of all layers": (["all"], GSL),
}


def examples(
    network: Network,
    loss: str,
    tasks: int = 3,
    shots: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Support and query sets."""
    parts = []
    for n in shots:
        parts.append(torch.randn(tasks, n, *network.shape, dtype=dtype))
        if loss == "mse":
            parts.append(torch.randn(tasks, n, WAYS, dtype=dtype))
        else:
            parts.append(torch.randint(WAYS, (tasks, n)))
    return parts


def options(
    network: Network, loss: str = "cross_entropy", order: str = "second order", steps: int = 2
) -> dict[str, Any]:
    """Options of the step."""
    masks, weights = ORDERS[order]
    how = {"layers": network.layers, "loss": loss, "lr": 0.05, "steps": steps}
    return how | {"differentiated": [only(network, mask) for mask in masks]} | weights


def check(found: SequenceStep, args: list[Any], how: dict[str, Any]) -> None:
    """Compares all results by norm with the reference in float64."""
    dtype = args[1].dtype
    wide = [t.double() if t.is_floating_point() else t for t in args[1:]]
    expected = reference.sequence_step([p.double() for p in args[0]], *wide, **how)
    for field, x, y in zip(found._fields, found, expected, strict=False):
        if x is None or y is None:  # inner gradients that were not asked for, or of no step
            assert field == "inner_gradients"
            continue
        assert x.dtype == dtype
        assert x.shape == y.shape
        assert (x.double() - y).norm() <= TOLERANCE[dtype] * y.norm(), field
