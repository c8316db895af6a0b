"""Meta-gradients that GSLOptimizer writes to ``.grad``."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fastmeta import FOMAML, GSL, GSLOptimizer, ops
from tests.helpers.problems import MODULES, loss, mlp, tasks
from tests.optim.user_loops import LR, gradients, marked, plain

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
GSLS = {
    "sgd": lambda p, **o: GSLOptimizer(p, torch.optim.SGD, lr=0.1, **o),
    "momentum": lambda p, **o: GSLOptimizer(
        p, torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, **o
    ),
    "adam": lambda p, **o: GSLOptimizer(p, lr=0.01, **o),
    "adamw": lambda p, **o: GSLOptimizer(p, torch.optim.AdamW, lr=0.01, weight_decay=0.1, **o),
}


@pytest.fixture(params=["mlp", "batch norm", "tied", "frozen", "unused"])
def module(request: pytest.FixtureRequest) -> nn.Module:
    return MODULES[request.param]()


@pytest.mark.parametrize("base", BASES)
def test_zero_eta_is_bitwise_fomaml(module: nn.Module, base: str) -> None:
    module_copy = copy.deepcopy(module)
    opt, reference = GSLS[base](module.parameters(), eta=0.0), BASES[base](module_copy.parameters())
    for _ in range(4):
        batch = tasks(5, torch.float32)
        opt.zero_grad()
        marked(module, batch, opt)
        opt.step()
        reference.zero_grad()
        plain(module_copy, batch)
        reference.step()
        for a, b in zip(module.parameters(), module_copy.parameters(), strict=True):
            assert torch.equal(a, b)
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(
    "options", [{"variant": "R0"}, {"variant": "R2", "eta": 0.0}, {"variant": "R3", "tau": 1e9}]
)
def test_control_variants(options: dict) -> None:
    module, batch = mlp(), tasks(4, torch.float32)
    opt = GSLOptimizer(module.parameters(), lr=0.1, **options)
    marked(module, batch, opt)
    found = ops.pack(gradients(list(module.parameters())))
    opt.zero_grad()
    plain(module, batch)
    expected = ops.pack(gradients(list(module.parameters())))
    torch.testing.assert_close(found, expected)  # R3 with a flat softmax is the mean


def test_only_the_l2_loss_is_support_only_reptile() -> None:
    module, batch = mlp().double(), tasks(4)
    opt = GSLOptimizer(
        module.parameters(),
        torch.optim.SGD,
        lr=1.0,
        variant="R1",
        eta=0.5,
        lam_c=0.0,
        lam_2=2.0,
        magnitude="none",
    )
    marked(module, batch, opt, steps=3)
    learner = GSL(module, loss, inner_lr=LR, inner_steps=3)
    moved = [
        sum(p.detach() - learner.adapt(t.support_x, t.support_y)[n] for t in batch) / (3 * LR)
        for n, p in module.named_parameters()
    ]
    for param, direction in zip(module.parameters(), moved, strict=True):
        torch.testing.assert_close(param.grad, direction / len(batch))


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "R1", "eta": 0.4},
        {"variant": "R1", "scope": "layer", "lam_2": 0.1, "magnitude": "clip", "ratio": 0.5},
        {"variant": "R1", "eta": 0.4, "lam_2": 0.3, "magnitude": "none"},
        {"variant": "R2", "eta": 0.1, "lam_2": 0.3},
        {"variant": "R2p", "eta": 5.0, "lam_2": 0.3},
        {"variant": "R3", "tau": 0.3, "lam_2": 2.0},
    ],
)
def test_it_matches_the_learner(module: nn.Module, options: dict) -> None:
    module, batch = module.double(), tasks(4)
    learner = GSL(copy.deepcopy(module), loss, inner_lr=LR, inner_steps=2, **options)
    opt = GSLOptimizer(module.parameters(), lr=0.1, **options)
    marked(module, batch, opt)
    params = [p for p in module.parameters() if p.requires_grad]
    found = ops.pack([torch.zeros_like(p) if p.grad is None else p.grad for p in params])[0]
    torch.testing.assert_close(found, learner.meta_gradient(batch)[0])


def test_all_ways_to_pass_support_gradients_agree() -> None:
    module, batch = mlp().double(), tasks(3)
    found = []
    for way in ("support", "record", "adapted", "inner gradients"):
        opt = GSLOptimizer(module.parameters(), lr=0.1, variant="R1", eta=0.3)
        marked(module, batch, opt, steps=1, way=way)
        found.append(ops.pack(gradients(list(module.parameters()))))
        opt.zero_grad()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("variant", ["correction", "similarity"])
def test_unused_parameters_have_no_gradient(variant: str) -> None:
    module = MODULES["unused"]()
    opt = GSLOptimizer(module.parameters(), lr=0.1, variant=variant, eta=0.3)
    marked(module, tasks(2, torch.float32), opt, way="inner gradients")
    opt.step()
    assert module.idle.grad is None
    assert module.net.weight.grad is not None


def test_two_dtypes() -> None:
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = nn.Linear(16, 8)
            self.high = nn.Linear(8, 3).double()

        def forward(self, x):
            return self.high(self.low(x.flatten(1)).double())

    module, batch = Mixed(), tasks(3, torch.float32)
    wide = copy.deepcopy(module).double()
    found = []
    for net in (module, wide):
        opt = GSLOptimizer(net.parameters(), lr=0.1, variant="R1", eta=0.3, scope="layer")
        own = (
            batch
            if net is module
            else type(batch)(
                batch.support_x.double(), batch.support_y, batch.query_x.double(), batch.query_y
            )
        )
        marked(net, own, opt)
        found.append([p.grad.double() for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_can_be_clipped_before_the_step() -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    opt = GSLOptimizer(module.parameters(), torch.optim.SGD, lr=1.0, eta=0.3)
    before = [p.detach().clone() for p in module.parameters()]
    marked(module, batch, opt, way="inner gradients")
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1e-3)
    clipped = gradients(list(module.parameters()))
    opt.step()
    for p, b, g in zip(module.parameters(), before, clipped, strict=True):
        torch.testing.assert_close(p, b - g)


def test_without_tasks_it_is_the_base_optimizer() -> None:
    module = mlp()
    module_copy = copy.deepcopy(module)
    opt = GSLOptimizer(module.parameters(), lr=0.01, eta=0.3)
    reference = BASES["adam"](module_copy.parameters())
    for net, optimizer in ((module, opt), (module_copy, reference)):
        net(torch.ones(2, 1, 4, 4)).square().sum().backward()
        warns = (
            pytest.warns(UserWarning, match="without a marked")
            if optimizer is opt
            else nullcontext()
        )
        with warns:
            optimizer.step()
    pairs = zip(module.parameters(), module_copy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_zero_eta_matches_the_fomaml_learner() -> None:
    module, batch = mlp().double(), tasks(3)
    opt = GSLOptimizer(module.parameters(), lr=0.1, eta=0.0)
    marked(module, batch, opt)
    expected, _ = FOMAML(module, loss, inner_lr=LR, inner_steps=2).meta_gradient(batch)
    torch.testing.assert_close(ops.pack(gradients(list(module.parameters())))[0], expected)
