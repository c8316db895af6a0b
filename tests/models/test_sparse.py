"""Sparse variational layers, and B-SMALL against plain autograd."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner
from fastmeta.adaptation import SGD, LayerPattern
from fastmeta.aggregation import Mean
from fastmeta.learners import build
from fastmeta.metagrad import Exact, MetaGradient, Recursion
from fastmeta.models import (
    KLPenalty,
    SparseConv2d,
    SparseLinear,
    kl_divergence,
    log_alpha,
    sparsify,
    sparsity,
)
from tests.helpers.problems import MODULES, convolution, mlp, tasks

LR, STEPS, WEIGHT = 0.1, 2, 0.01


def learner(module: nn.Module, metagrad: MetaGradient, weight: float = WEIGHT) -> MetaLearner:
    return MetaLearner(
        module,
        F.cross_entropy,
        adaptation=SGD(LR, STEPS),
        metagrad=metagrad,
        aggregation=Mean(),
        penalty=KLPenalty(weight),
    )


def noisy(module: nn.Module) -> nn.Module:
    """A sparse network with log alpha between -6 and 10."""
    module = sparsify(module, log_sigma=-3.0).double()
    for name, param in module.named_parameters():
        if name.endswith("log_sigma"):
            nn.init.uniform_(param, -4, -1)
    return module


def test_the_divergence_is_that_of_the_paper_and_its_authors() -> None:
    weight, log_sigma = torch.randn(500).double(), torch.rand(500).double() * 8 - 6
    la = (2 * log_sigma - 2 * (weight.abs() + 1e-8).log()).clamp(-10, 10)
    terms = 0.63576 * torch.sigmoid(1.8732 + 1.48695 * la) - 0.5 * torch.log1p(torch.exp(-la))
    expected = 0.63576 * 500 - terms.sum()  # 0.63576 per weight makes it end at 0
    torch.testing.assert_close(kl_divergence(weight, log_sigma), expected)
    torch.testing.assert_close(log_alpha(weight, log_sigma), la)
    one = torch.ones(())
    values = [kl_divergence(one, one * k / 2).item() for k in range(-10, 11)]
    assert values == sorted(values, reverse=True)
    assert 0 <= values[-1] < 1e-4


@pytest.mark.parametrize("kind", [SparseLinear, SparseConv2d])
def test_outputs_have_mean_and_variance_of_random_weights(kind: type[nn.Module]) -> None:
    count, shape = 20_000, (5,) if kind is SparseLinear else (2, 3, 3)
    layer = SparseLinear(5, 3) if kind is SparseLinear else SparseConv2d(2, 3, 3)
    nn.init.uniform_(layer.log_sigma, -2, -1)
    x = torch.randn(shape)
    with torch.no_grad():
        found = layer(x.expand(count, *shape)).flatten(1)
        sigma = layer.log_sigma.exp()
        drawn = []
        for _ in range(10):
            noise = torch.randn(count // 10, *layer.weight.shape)
            weights = (layer.weight + sigma * noise).flatten(2)
            drawn.append((weights @ x.flatten()) + layer.bias)
        expected = torch.cat(drawn)
    error = (2 / count) ** 0.5 * expected.std(0)
    assert ((found.mean(0) - expected.mean(0)).abs() < 5 * error).all()
    assert ((found.std(0) / expected.std(0) - 1).abs() < 5 / count**0.5).all()


def test_in_evaluation_weights_of_low_signal_to_noise_ratio_are_zero() -> None:
    layer = SparseLinear(50, 20).eval()
    with torch.no_grad():
        layer.log_sigma.copy_(layer.weight.abs().log() + torch.randn(20, 50) + 1.5)
    x = torch.randn(4, 50)
    pruned = (layer.log_sigma.exp() / layer.weight).square().log() > 3
    assert 0 < pruned.sum() < 1000
    expected = F.linear(x, torch.where(pruned, 0, layer.weight), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    share = sparsity(layer)
    assert share[""] == share["total"] == pruned.double().mean().item()
    layer.threshold = math.inf
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("name", ["mlp", "batch norm", "tied"])
def test_without_noise_and_divergence_it_is_maml(name: str) -> None:
    module, batch = MODULES[name]().double(), tasks(2)
    plain = build("maml", copy.deepcopy(module), F.cross_entropy, inner_lr=LR, inner_steps=STEPS)
    model = learner(sparsify(module, log_sigma=-60.0), Exact(), 0.0)
    plain.backward(batch)
    model.backward(batch)
    grads = {n: p.grad for n, p in module.named_parameters()}
    for name, param in plain.module.named_parameters():
        torch.testing.assert_close(grads[name], param.grad, rtol=1e-5, atol=1e-6)
    assert all(g.abs().max() < 1e-30 for n, g in grads.items() if n.endswith("log_sigma"))


@pytest.mark.parametrize("way", [Exact, Recursion])
@pytest.mark.parametrize("network", [mlp, lambda: convolution(False)], ids=["mlp", "convolution"])
def test_against_autograd(
    network: Callable[[], nn.Module], way: Callable[[], MetaGradient]
) -> None:
    module, batch = noisy(network()), tasks(2)
    start = {n: p.detach().requires_grad_() for n, p in module.named_parameters()}

    def loss(fast: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        value = F.cross_entropy(functional_call(module, fast, (x,)), y)
        for name in [n.removesuffix("log_sigma") for n in fast if n.endswith("log_sigma")]:
            value = value + WEIGHT * kl_divergence(fast[f"{name}weight"], fast[f"{name}log_sigma"])
        return value

    torch.manual_seed(7)
    total: Tensor | float = 0.0
    for task in batch:
        fast = dict(start)
        for _ in range(STEPS):
            value = loss(fast, task.support_x, task.support_y)
            grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            fast = {n: p - LR * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        total = total + loss(fast, task.query_x, task.query_y) / len(batch)
    expected = torch.autograd.grad(total, list(start.values()))
    model = learner(module, way())
    torch.manual_seed(7)
    model.backward(batch)
    for param, grad in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=1e-8, atol=1e-11)


def test_empty_images_have_finite_second_derivatives() -> None:
    module, batch = noisy(convolution(False)), tasks(2)
    empty = batch.map(lambda t: t if t.dtype == torch.int64 else t * (t > 3))
    found, _ = learner(module, Exact()).meta_gradient(empty)
    assert found.isfinite().all()


def test_sparsity_of_each_layer_after_adaptation() -> None:
    module, batch = noisy(mlp()), tasks(1)
    model = learner(module, Exact())
    fast = model.adapt(batch[0].support_x, batch[0].support_y)
    found = sparsity(fast)
    assert list(found) == ["1", "3", "total"]
    for name in ("1", "3"):
        ratio = (fast[f"{name}.log_sigma"].exp() / fast[f"{name}.weight"]).square()
        assert found[name] == (ratio.log() > 3).double().mean().item()
    sizes = {"1": 16 * 8, "3": 8 * 3}
    mean = sum(found[n] * size for n, size in sizes.items()) / sum(sizes.values())
    assert found["total"] == pytest.approx(mean)
    assert found != sparsity(module)


def test_sparsify_keeps_parameters_ties_and_modes() -> None:
    shared = nn.Linear(4, 4)
    module = nn.Sequential(
        nn.Conv2d(2, 2, 3, 2, 1, groups=2, padding_mode="circular"), nn.Flatten()
    )
    module.append(nn.ModuleDict({"a": shared, "b": shared}).eval())
    weights = [module[0].weight, shared.weight, shared.bias]
    generator = torch.get_rng_state()
    sparse = sparsify(module, -5.0, 2.0)
    assert sparse is module
    assert isinstance(module[0], SparseConv2d)
    assert module[2]["a"] is module[2]["b"]
    assert isinstance(module[2]["a"], SparseLinear)
    assert not module[2]["a"].training
    assert module[0].training
    own = [module[0].weight, module[2]["a"].weight, module[2]["a"].bias]
    assert all(a is b for a, b in zip(weights, own, strict=True))
    assert torch.equal(generator, torch.get_rng_state())
    x = torch.randn(3, 2, 6, 6)
    like = nn.Conv2d(2, 2, 3, 2, 1, groups=2, padding_mode="circular")
    like.load_state_dict({"weight": module[0].weight, "bias": module[0].bias})
    assert (module[0].log_sigma == -5).all()
    assert module[0].threshold == 2.0
    module[0].threshold = math.inf
    torch.testing.assert_close(module[0].eval()(x), like(x))
    assert isinstance(sparsify(nn.Linear(2, 2)), SparseLinear)
    with pytest.raises(ValueError, match="expected at least one"):
        sparsify(nn.ReLU())


def test_patterns_take_a_layer_with_its_deviations() -> None:
    module, batch = noisy(mlp()).float(), tasks(1, torch.float32)
    model = learner(module, Exact())
    adaptation = LayerPattern(SGD(LR), "head")
    fast = model.with_components(adaptation=adaptation).adapt(
        batch[0].support_x, batch[0].support_y
    )
    moved = [n for n, p in module.named_parameters() if not torch.equal(fast[n], p)]
    assert moved == ["3.weight", "3.bias", "3.log_sigma"]
    assert [layer.name for layer in adaptation.layers] == ["1", "3"]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="no sparse layer"):
        learner(mlp(), Exact()).step(tasks(1, torch.float32))
    with pytest.raises(ValueError, match="method 'b-small' is MAML with sparse layers"):
        build("b-small", sparsify(mlp()), F.cross_entropy, inner_lr=LR)
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0"):
        KLPenalty(-1.0)
