"""Named layer patterns and patterns of bits: the layers they select, and invalid ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastmeta.adaptation import ADAPTATIONS, SGD, LayerPattern
from fastmeta.adaptation.layer_pattern import read_pattern
from fastmeta.adaptation.layers import find_layers
from fastmeta.metagrad import Exact, FirstOrder, Recursion
from fastmeta.models import MLP, Conv4
from tests.adaptation.layer_pattern_reference import learner
from tests.helpers.problems import WAYS, Tied, Unused, mlp, tasks


def layer_names(module: nn.Module) -> list[str]:
    named = list(module.named_parameters())
    layers = find_layers([p for _, p in named], [n for n, _ in named])
    assert [i for layer in layers for i in layer.members] == list(range(len(named)))
    return [layer.name for layer in layers]


def test_layers() -> None:
    blocks = [f"features.{k}.0" for k in range(4)]
    assert layer_names(Conv4(1, 12, WAYS, hidden=3)) == [*blocks, "head"]
    assert layer_names(MLP(4, 2, (3, 3))) == ["layers.1", "layers.3", "layers.5"]
    assert layer_names(nn.Linear(3, 2)) == ["weight"]
    assert layer_names(nn.BatchNorm1d(3)) == ["weight"]
    assert layer_names(Unused()) == ["net"]  # a vector comes before the matrix
    assert layer_names(Tied()) == ["encode", "head"]
    first = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    assert layer_names(first) == ["1", "3"]


def test_a_co_learner_is_in_no_layer() -> None:
    params = [torch.randn(s) for s in ((3, 2), (3,), (2, 3), (4, 3), (4,))]
    names = ["body.weight", "body.bias", "head.weight", "co_learner.0.weight", "co_learner.0.bias"]
    assert [layer.members for layer in find_layers(params, names)] == [[0, 1], [2]]
    rule = LayerPattern(SGD(0.1), "full")
    rule.bind(params, names)
    assert rule.adapts(0, params) == [True] * 3 + [False] * 2


LAYERS = ["features.0.0", "features.1.0", "features.10.0", "head"]


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        ("full", [[0, 1, 2, 3]]),
        ("head", [[3]]),
        ("body", [[0, 1, 2]]),
        ("0110", [[1, 2]]),
        ("features.1", [[1]]),
        ("features.1.0,head", [[1, 3]]),
        ("features", [[0, 1, 2]]),
        ("head,features.0,head", [[0, 3]]),
        ("1000/body/head", [[0], [0, 1, 2], [3]]),
    ],
)
def test_parsing(pattern: str, steps: list[list[int]]) -> None:
    assert read_pattern(pattern, LAYERS) == steps


KNOWN = r"the network has 4 layers: features\.0\.0, features\.1\.0, features\.10\.0, head\."


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("011", f"'011' has 3 bits, but {KNOWN}"),
        ("0110/01101", f"'01101' has 5 bits, but {KNOWN}"),
        ("0000", "'0000' adapts nothing; expected at least one layer"),
        ("", f"bits, full, head, body or names of layers, got ''; {KNOWN}"),
        ("full/", f"got ''; {KNOWN}"),
        ("head,features.2", f"got 'features.2'; {KNOWN}"),
        ("feat", f"got 'feat'; {KNOWN}"),
        ("0112", f"got '0112'; {KNOWN}"),
    ],
)
def test_invalid_patterns(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_pattern(pattern, LAYERS)


@pytest.mark.parametrize(
    ("pattern", "adapted"),
    [
        ("*.bias", [[1, 3, 5]]),
        ("layers.1.*", [[0, 1]]),
        ("*.bias,head", [[1, 3, 4, 5]]),
        ("*.5.weight/full/*3*", [[4], [0, 1, 2, 3, 4, 5], [2, 3]]),
    ],
)
def test_parameters_by_name(pattern: str, adapted: list[list[int]]) -> None:
    module = MLP(4, 2, (3, 3))
    params, names = list(module.parameters()), [n for n, _ in module.named_parameters()]
    rule = LayerPattern(SGD(0.1), pattern)
    rule.bind([*params, torch.zeros(3, 2)], [*names, "co_learner.0.bias"])
    for k, chosen in enumerate(adapted):
        assert [i for i, used in enumerate(rule.adapts(k, params)) if used] == chosen


def test_a_name_that_matches_no_parameter() -> None:
    message = r"matches '\*lora\*'; the network has layers\.1\.weight, layers\.1\.bias, .*, \.\.\."
    with pytest.raises(ValueError, match=message):
        learner(MLP(4, 2, (3, 3)), "*lora*", Exact())


def test_a_single_layer_has_no_body() -> None:
    with pytest.raises(ValueError, match="'body' adapts nothing"):
        learner(nn.Linear(4, 2), "body", Exact())


def test_an_integer_of_bits_is_a_pattern() -> None:
    task = tasks(1, torch.float32)[0]
    number, text = (learner(mlp(), pattern, Exact()) for pattern in (10, "10"))
    number.module.load_state_dict(text.module.state_dict())
    found, expected = (m.adapt(task.support_x, task.support_y) for m in (number, text))
    assert all(torch.equal(found[n], e) for n, e in expected.items())
    with pytest.raises(ValueError, match=r"must be a string, got 9\. Put it in quotes"):
        LayerPattern(SGD(0.1), 9)


def test_a_pattern_is_bound_to_one_network() -> None:
    rule = LayerPattern(SGD(0.1), "head")
    with pytest.raises(RuntimeError, match=r"not bound to a network: call bind\(params, names\)"):
        rule.adapts(0, [torch.zeros(2)])
    for module in (mlp(), mlp()):
        rule.bind(list(module.parameters()), [n for n, _ in module.named_parameters()])
    other = MLP(2, 2)
    with pytest.raises(ValueError, match="already bound to another network"):
        rule.bind(list(other.parameters()), [n for n, _ in other.named_parameters()])


def test_named_patterns() -> None:
    anil, boil = ADAPTATIONS["anil"](0.1, 4), ADAPTATIONS["boil"](lr=0.1, steps=2, momentum=0.5)
    assert (anil.pattern, anil.steps, boil.pattern, boil.inner.momentum) == ("head", 4, "body", 0.5)
    rule = ADAPTATIONS["lambda"](0.1, 2, pattern="01", of="meta-sgd", per="tensor")
    model = learner(mlp(), "head", Exact(), rule.inner)
    assert len(model.adaptation.rates) == 4
    assert len(model.state_dict()["rates"]) == 4
    with pytest.raises(ValueError, match=r"one of adam, .*, sgd; got 'anil'"):
        ADAPTATIONS["lambda"](0.1, of="anil")
    with pytest.raises(TypeError, match="pattern"):
        ADAPTATIONS["anil"](0.1, pattern="body")


def test_an_unused_layer() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.idle = nn.Linear(16, WAYS), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.flatten(1))

    module, task = Idle(), tasks(1, torch.float32)[0]
    fast = learner(module, "idle", Exact()).adapt(task.support_x, task.support_y)
    assert all(torch.equal(fast[n], p) for n, p in module.named_parameters())
    for metagrad in (Exact(), FirstOrder(), Recursion(), Recursion(graphs=0)):
        learner(module, "idle", metagrad).step(tasks(2, torch.float32))
