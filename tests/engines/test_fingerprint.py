"""A fingerprint is kept until something in the objects changes, and then taken anew."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmeta.engines._fingerprint import Fingerprints


class Part:
    """What a component may hold."""

    def __init__(self) -> None:
        self.rate = 1000.5
        self.rates = [0.1, 0.2]
        self.names = OrderedDict(a="x", b="y")
        self.fixed = (torch.zeros(2, 3), 1)
        self.kinds = {"one"}
        self.inner = nn.Linear(2, 2)
        power = 2

        def loss(x: Tensor, scale: float = 1.0) -> Tensor:
            return scale * x**power

        def set_power(value: int) -> None:
            nonlocal power
            power = value

        self.loss, self.set_power = loss, set_power


def rename(names: OrderedDict[str, str]) -> None:
    names["c"] = names.pop("b")


CHANGES: dict[str, Callable[[Any, nn.Module], object]] = {
    "an attribute": lambda part, _: setattr(part, "rate", 2),
    "a new attribute": lambda part, _: setattr(part, "other", None),
    "an item": lambda part, _: part.rates.__setitem__(1, 0.3),
    "one item more": lambda part, _: part.rates.append(0.1),
    "a key": lambda part, _: rename(part.names),
    "a set": lambda part, _: part.kinds.add("two"),
    "a default": lambda part, _: setattr(part.loss, "__defaults__", (2.0,)),
    "a captured variable": lambda part, _: part.set_power(3),
    "a nested module's flag": lambda part, _: part.inner.eval(),
    "another class": lambda part, _: setattr(part, "__class__", type("Other", (Part,), {})),
    "other attributes": lambda part, _: setattr(part, "__dict__", {**vars(part), "rate": 2}),
    "the shape of a tensor in a tuple": lambda part, _: part.fixed[0].resize_(3, 2),
    "the layout of a parameter": lambda _, module: setattr(
        module[0].weight, "data", module[0].weight.data.t().contiguous().t()
    ),
    "another parameter": lambda _, module: setattr(
        module[0], "weight", nn.Parameter(module[0].weight.data)
    ),
    "the dtype of a buffer": lambda _, module: module[1].double(),
    "no bias": lambda _, module: module[0].register_parameter("bias", None),
    "another layer": lambda _, module: module.append(nn.ReLU()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes(change: str) -> None:
    part, module = Part(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    kept = Fingerprints()
    before = kept.of(part=part, module=module)
    assert kept.of(part=part, module=module) is before
    CHANGES[change](part, module)
    after = kept.of(part=part, module=module)
    assert after != before
    assert after == Fingerprints().of(part=part, module=module)
    assert kept.of(part=part, module=module) is after


def test_what_does_not_change_the_fingerprint() -> None:
    part, module = Part(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    kept = Fingerprints()
    before = kept.of(part=part, module=module)
    with torch.no_grad():
        module[0].weight.add_(1)
        module(torch.randn(5, 3))  # running statistics
    part.rates[0] = float("0.1")
    part.names.update(a="x")
    assert kept.of(part=part, module=module) == before


def test_other_objects() -> None:
    kept = Fingerprints()
    first, second = Part(), Part()
    second.rate = 3
    assert kept.of(part=first) != kept.of(part=second)
    assert kept.of(part=first) == Fingerprints().of(part=first)
