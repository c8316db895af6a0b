"""Agreement with higher, and with the steps of torch optimizers."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from fastmeta.compat import higher as ours
from tests.compat.higher_loops import CASES, STEPS
from tests.compat.training_loops import seed

SEED = 1  # of record.py


@pytest.mark.parametrize("case", CASES)
def test_losses_match_the_recorded(case: str, recorded: dict[str, Any]) -> None:
    seed(SEED)
    losses = CASES[case](ours, torch.float64)
    assert len(losses) == STEPS + 1
    assert_close(losses, recorded["higher"][case], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_losses_match_higher(case: str, dtype: torch.dtype, higher: ModuleType) -> None:
    number = SEED if dtype == torch.float32 else random.randrange(2**31)
    losses = []
    for library in (ours, higher):
        seed(number)
        losses.append(CASES[case](library, dtype))
    assert_close(*losses, rtol=1e-6, atol=1e-5)


Maker = Callable[[list[Tensor]], torch.optim.Optimizer]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.3}, {"params": p[1:]}], lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, eps=1e-12),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, eps=1e-12),
    ],
)
@pytest.mark.parametrize("track", [False, True])
def test_steps_match_torch(make: Maker, track: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    opt = make(list(model.parameters()))
    x = torch.randn(5, 3, dtype=torch.float64)
    if isinstance(opt, torch.optim.SGD):  # Adam counts steps in float32, as in higher
        model(x).square().sum().backward()
        opt.step()
    with ours.innerloop_ctx(model, opt, track_higher_grads=track) as (fmodel, diffopt):
        for _ in range(3):
            diffopt.step(fmodel(x).square().sum())
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        opt.zero_grad()
        model(x).square().sum().backward()
        opt.step()
    # Adam's bias corrections are float32 here (6e-8), and gradients near zero amplify that.
    tolerance = 1e-12 if isinstance(opt, torch.optim.SGD) else 1e-5
    assert_close(
        [p.detach() for p in fmodel.parameters()],
        [p.detach() for p in model.parameters()],
        rtol=tolerance,
        atol=tolerance,
    )
    if track:
        assert_close([p.detach() for p in fmodel.parameters(time=0)], before)
        assert len(fmodel._fast_params) == 4


def test_adam_step_is_differentiable_at_zero_gradients() -> None:
    model = nn.Linear(2, 1, bias=False)
    opt = torch.optim.Adam(model.parameters(), lr=0.1)
    x = torch.tensor([[1.0, 0.0]])
    with ours.innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(fmodel(x).sum())
        fmodel(torch.ones(1, 2)).square().sum().backward()
    assert model.weight.grad.isfinite().all()


def test_hyperparameters_can_be_learned() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.rand(1, 2, dtype=torch.float64) + 0.5

    def loss(lr: Tensor, beta1: Tensor, beta2: Tensor) -> Tensor:
        opt = torch.optim.Adam(model.parameters(), lr=1.0)
        override = {"lr": [lr], "betas": [(beta1, beta2)]}
        with ours.innerloop_ctx(model, opt, override=override) as (fmodel, diffopt):
            for _ in range(2):
                diffopt.step(fmodel(x).square().sum())
            return fmodel(x).square().sum()

    hyperparameters = [
        torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.1, 0.8, 0.95)
    ]
    assert torch.autograd.gradcheck(loss, hyperparameters)


class Irregular(nn.Module):
    """Tied, frozen and unused weights, buffers and a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(2)
        self.norm.weight.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(1))

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.features(x))


def test_irregular_module() -> None:
    model = Irregular()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(6, 2)
    with ours.innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
        assert isinstance(fmodel, Irregular)
        new = diffopt.step(fmodel(x).square().sum())
        assert fmodel.a.weight is fmodel.b.weight is new[1]
        assert len(new) == len(list(model.parameters()))
        assert fmodel.unused == 1
        assert_close(fmodel.features(x).shape, x.shape)
        fmodel(x).sum().backward()
    assert_close(model.state_dict(), state)  # including running statistics
    assert model.a.weight.grad is not None
    assert model.norm.weight.grad is None


def test_grad_callback() -> None:
    model = nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    with ours.innerloop_ctx(model, opt) as (fmodel, diffopt):
        loss = fmodel(torch.ones(1, 2)).sum()
        diffopt.step(loss, grad_callback=lambda grads: [torch.zeros_like(g) for g in grads])
    assert_close(fmodel.weight, model.weight)


def test_recurrent_module() -> None:
    model = nn.GRU(2, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(4, 1, 2)
    with ours.innerloop_ctx(model, opt) as (fmodel, diffopt):
        before = fmodel(x)[0]
        diffopt.step(before.sum())
        assert not torch.equal(fmodel(x)[0], before)
        assert_close(fmodel(x, params=fmodel.init_fast_params)[0], before)


def test_errors() -> None:
    model = nn.Linear(2, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def enter(opt: torch.optim.Optimizer, **options: object) -> None:
        with ours.innerloop_ctx(model, opt, **options):
            pass

    with pytest.raises(ValueError, match="SGD, Adam, AdamW; got Adagrad"):
        enter(torch.optim.Adagrad(model.parameters()))
    with pytest.raises(
        ValueError, match="without amsgrad, which is not supported; got amsgrad=True"
    ):
        enter(torch.optim.Adam(model.parameters(), amsgrad=True))
    with pytest.raises(ValueError, match="not in the module"):
        enter(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1))
    with pytest.raises(ValueError, match=r"override\['lr'\].* of 1, .* got 2"):
        enter(sgd, override={"lr": [1, 2]})
    with pytest.raises(ValueError, match=r"expected params="):
        ours.get_diff_optim(sgd, model.parameters()).step(model(torch.ones(1, 2)).sum())
    fmodel = ours.monkeypatch(model, track_higher_grads=False)
    with pytest.raises(ValueError, match="expected 2 fast weights; got 1"):
        fmodel.update_params([model.weight])
    with pytest.raises(ValueError, match="got time=2"):
        fmodel.parameters(time=2)
    with pytest.raises(ValueError, match="not kept"):
        fmodel.init_fast_params  # noqa: B018
