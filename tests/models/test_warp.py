"""Warp layers of networks begin as the identity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastmeta.models import MLP, Conv4, warp_conv, warp_linear
from fastmeta.models.registry import BACKBONES

NETWORKS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "mlp": (lambda **o: MLP(64, 3, (6, 5), **o), 2),
    "pooled": (lambda **o: Conv4(1, 8, 3, 4, **o), 4),
    "strided": (lambda **o: Conv4(1, 8, 3, 4, "stride", **o), 4),
    "pooling in the head": (lambda **o: Conv4(1, 17, 3, 4, pool_last=False, **o), 4),
}


def example(name: str) -> torch.Tensor:
    size = 17 if name == "pooling in the head" else 8
    return torch.randn(6, 1, size, size)


@pytest.mark.parametrize("name", NETWORKS)
def test_warp_layers_change_neither_initial_weights_nor_outputs(name: str) -> None:
    make, count = NETWORKS[name]
    x, models = example(name), []
    for options in ({}, {"warp": True}):
        torch.manual_seed(1)
        models.append(make(**options))
        after = torch.rand(1)  # the same numbers were drawn
        models[-1].register_buffer("after", after)
    plain, warped = models
    weights = [p for n, p in plain.named_parameters()]
    kept = [p for n, p in warped.named_parameters() if "warp" not in n]
    assert all(map(torch.equal, weights, kept))
    assert torch.equal(plain.after, warped.after)
    assert torch.equal(plain(x), warped(x))
    warps = [n for n, _ in warped.named_modules() if "warp" in n]
    assert len(warps) == count
    for warp in warps:  # each of them matters
        with torch.no_grad():
            warped.get_submodule(warp).bias += 1
        assert not torch.equal(plain(x), warped(x))
        with torch.no_grad():
            warped.get_submodule(warp).bias -= 1


@pytest.mark.parametrize("name", ["mlp", "pooled", "strided"])
def test_other_parameters_have_the_names_of_a_network_without_warp_layers(name: str) -> None:
    make, _ = NETWORKS[name]
    keys = list(make().state_dict())
    assert [k for k in make(warp=True).state_dict() if "warp" not in k] == keys


def test_identities() -> None:
    x = torch.randn(3, 5, 4, 4)
    assert torch.equal(warp_conv(5)(x), x)
    assert torch.equal(warp_linear(4)(x), x)
    assert all(p.requires_grad for p in (*warp_conv(5).parameters(), *warp_linear(4).parameters()))


@pytest.mark.parametrize("name", ["mlp", "conv4"])
def test_a_co_learner_takes_the_warped_features(name: str) -> None:
    of = "mlp" if name == "mlp" else "pooling in the head"
    network = NETWORKS[of][0](warp=True)
    make = BACKBONES[name].co_learner
    assert make is not None
    site, head = make(network, 3, False)
    features: list[torch.Tensor] = []
    network.get_submodule(site).register_forward_hook(lambda m, i, o: features.append(o))
    network(example(of))
    assert head(features[0]).shape == (6, 3)
    assert site == ("layers.warp2" if name == "mlp" else "features")
