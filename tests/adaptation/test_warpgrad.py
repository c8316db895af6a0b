"""Online WarpGrad: an inner loop that leaves warp layers alone, an outer loop that trains them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MAML, TaskBatch, learners
from fastmeta.adaptation import SGD, LayerPattern
from fastmeta.models import MLP, Conv4, warp_linear
from fastmeta.train import ConfigError, configure
from tests.adaptation.layer_pattern_reference import reference_meta_gradients
from tests.helpers.problems import WAYS, loss, mlp, tasks
from tests.helpers.reference_loops import LR


class Own(nn.Module):
    """A user's module with warp layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.warp1 = nn.Linear(16, 6), warp_linear(6)
        self.second, self.warp2 = nn.Linear(6, 5), nn.Sequential(warp_linear(5), nn.Tanh())
        self.head = nn.Linear(5, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.warp1(torch.tanh(self.first(x.flatten(1))))
        return self.head(self.warp2(torch.relu(self.second(hidden))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(16, WAYS, (6, 5), nn.Tanh, warp=True),
    "conv4": lambda: Conv4(1, 4, WAYS, hidden=3, warp=True),
    "own": Own,
}


def stirred(module: nn.Module) -> nn.Module:
    """With warp layers away from the identity."""
    with torch.no_grad():
        for name, param in module.named_parameters():
            if "warp" in name:
                param += 0.2 * torch.randn_like(param)
    return module.double()


def warpgrad(module: nn.Module, steps: int = 3, **options: object) -> learners.MetaLearner:
    return learners.build("warpgrad", module, loss, inner_lr=LR, inner_steps=steps, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_inner_loop_adapts_all_but_warp_layers(name: str) -> None:
    module, batch = stirred(NETWORKS[name]()), tasks(2)
    model, task = warpgrad(module), batch[0]
    fast = model.adapt(task.support_x, task.support_y)
    for key, param in module.named_parameters():
        # A bias before BatchNorm has no effect.
        if "warp" in key or not key.endswith("0.bias"):
            assert torch.equal(fast[key], param) == ("warp" in key)
    model.backward(batch)
    assert all(p.grad.norm() > 0 for n, p in module.named_parameters() if "warp" in n)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_meta_gradient_is_that_of_plain_autograd(name: str) -> None:
    module, batch = stirred(NETWORKS[name]()), tasks(2)
    layers = [n for n, p in module.named_parameters() if p.dim() > 1]
    bits = "".join("01"["warp" not in layer] for layer in layers)
    expected = reference_meta_gradients(module, batch, [bits] * 3, True).mean(0)
    for metagrad in ("exact", "recursion"):
        for engine in ("loop", "batched"):
            found, _ = warpgrad(module, metagrad=metagrad, engine=engine).meta_gradient(batch)
            assert (found - expected).norm() <= 1e-9 * expected.norm(), (metagrad, engine)


@pytest.mark.parametrize("name", ["mlp", "conv4"])
def test_identity_warps_are_maml(name: str) -> None:
    batch, found = tasks(), []
    for method in ("maml", "warpgrad"):
        torch.manual_seed(4)
        warp = method == "warpgrad"
        module = MLP(16, WAYS, (6, 5), warp=warp) if name == "mlp" else Conv4(1, 4, 3, 3, warp=warp)
        model = learners.build(method, module.double(), loss, inner_lr=LR, inner_steps=2)
        model.backward(batch)
        grads = [p.grad for n, p in module.named_parameters() if "warp" not in n]
        found.append((model.predict(batch), *grads))
    for plain, warped in zip(*found, strict=True):
        torch.testing.assert_close(warped, plain, rtol=1e-9, atol=1e-12)


def test_a_linear_warp_preconditions_the_step_in_function_space() -> None:
    """`f(x) = P W x`: a step of `W` moves `f` by `-lr P P^T (dL/df) X^T x`."""
    module = nn.Sequential(nn.Linear(4, 3, bias=False))
    module.add_module("warp", nn.Linear(3, 3, bias=False))
    module.double()
    p, w = module.warp.weight.detach(), module[0].weight.detach()
    x, y, query = (torch.randn(n, k, dtype=torch.float64) for n, k in ((5, 4), (5, 3), (7, 4)))
    model = learners.build("warpgrad", module, F.mse_loss, inner_lr=LR, inner_steps=1)
    batch = TaskBatch(x[None], y[None], query[None], torch.zeros(1, 7, 3, dtype=torch.float64))
    before = query @ w.T @ p.T
    d_output = 2 * (x @ w.T @ p.T - y) / y.numel()
    expected = before - LR * query @ (x.T @ d_output) @ p @ p.T
    torch.testing.assert_close(model.predict(batch)[0], expected, rtol=1e-12, atol=1e-12)


def test_engines() -> None:
    """The compiled steps adapt every layer; the control, with all layers adapted, may run there."""
    batch = tasks(2, torch.float32)
    for name, engine in (("mlp", "mlp"), ("conv4", "sequence")):
        refused = warpgrad(NETWORKS[name](), engine=engine)
        with pytest.raises(ValueError, match="the adaptation is LayerPattern, not SGD"):
            refused.step(batch)
    MAML(NETWORKS["conv4"](), loss, inner_lr=LR, engine="sequence").step(batch)
    with pytest.raises(ValueError, match="one activation in between"):
        MAML(NETWORKS["mlp"](), loss, inner_lr=LR, engine="mlp").step(batch)


def test_networks_without_warp_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no trainable parameter has a name that matches '\*warp"):
        warpgrad(mlp())
    # As for other patterns, what the preset of a text needs is known when the learner is built.
    assert not configure({"dataset": "clinc150", "method": "warpgrad"}).warp
    for dataset in ("sine", "omniglot"):
        assert configure({"dataset": dataset, "method": "warpgrad"}).warp
        assert not configure({"dataset": dataset, "method": "maml"}).warp
    with pytest.raises(ConfigError, match="for the backbones conv4 and mlp; got resnet12"):
        configure({"dataset": "omniglot", "method": "warpgrad", "backbone": "resnet12"})


@pytest.mark.parametrize(
    ("pattern", "adapted"),
    [
        ("!*warp*", "110011"),
        ("full,!*warp*", "110011"),
        ("body,!*warp*", "110000"),
        ("*weight,!layers.1", "001010"),
        ("!head", "111100"),
        ("!head/!*bias", "111100/101010"),
    ],
)
def test_an_exclamation_mark_leaves_out_what_follows(pattern: str, adapted: str) -> None:
    module = MLP(4, 2, (3,), warp=True)
    names, params = zip(*module.named_parameters(), strict=True)
    rule = LayerPattern(SGD(LR), pattern)
    rule.bind(params, names)
    for step, bits in enumerate(adapted.split("/")):
        assert list(rule.adapts(step, params)) == [bit == "1" for bit in bits]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("head,!*layers.3*", "adapts nothing; expected at least one parameter"),
        ("!*warp*", r"no trainable parameter has a name that matches '\*warp\*'"),
        ("!tail", "got 'tail'; the network has 2 layers"),
    ],
)
def test_invalid_exclusions(pattern: str, message: str) -> None:
    names, params = zip(*MLP(4, 2, (3,)).named_parameters(), strict=True)
    with pytest.raises(ValueError, match=message):
        LayerPattern(SGD(LR), pattern).bind(params, names)
