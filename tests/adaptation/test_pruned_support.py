"""GradNCP's pruned support sets: against autograd, its limits, engines and resumed runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch, metagradient
from fastmeta.adaptation import SGD, Adaptation, Clipped, Groups, LayerPattern, PrunedSupport
from fastmeta.adaptation.pruned_support import gradient_norms
from fastmeta.aggregation import Mean
from fastmeta.engines import CompiledEngine
from fastmeta.functional import FunctionalModule
from fastmeta.learners import build
from fastmeta.metagrad import Bootstrapped, Exact, FirstOrder, MetaGradient, Recursion
from fastmeta.models import SIREN
from tests.helpers.problems import WAYS, convolution, loss, mlp, tasks

LR = 0.3


def signals(count: int = 2, dtype: torch.dtype = torch.float64) -> TaskBatch:
    """Random signals of two channels, with the same support and query set."""
    x = 2 * torch.rand(count, 24, 2, dtype=dtype) - 1
    y = torch.rand(count, 24, 2, dtype=dtype)
    return TaskBatch(x, y, x, y)


def learner(
    module: nn.Module,
    adaptation: Adaptation,
    metagrad: MetaGradient | None = None,
    of: Callable[..., Tensor] = loss,
    **options: Any,
) -> MetaLearner:
    return MetaLearner(
        module,
        of,
        adaptation=adaptation,
        metagrad=Exact() if metagrad is None else metagrad,
        aggregation=Mean(),
        **options,
    )


def siren() -> SIREN:
    return SIREN(2, 2, (12, 12), w0=5).double()


def chosen(
    module: nn.Module, params: dict[str, Tensor], x: Tensor, y: Tensor, of: Any, keep: float
) -> Tensor:
    """The examples with the largest gradients of the last layer, by autograd."""
    names = list(params)[-2:]  # weight and bias
    norms = []
    for i in range(len(x)):
        leaves = {n: p.detach().requires_grad_() for n, p in params.items()}
        value = of(functional_call(module, leaves, (x[i, None],)), y[i, None])
        grads = torch.autograd.grad(value, [leaves[n] for n in names])
        norms.append(torch.cat([g.flatten() for g in grads]).norm())
    return torch.stack(norms).argsort(descending=True)[: int(keep * len(x))]


def reference(
    module: nn.Module, batch: TaskBatch, steps: int, keep: float, of: Any, lr: float
) -> Tensor:
    params = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    total = torch.zeros((), dtype=torch.float64)
    for task in batch:
        fast = params
        for _ in range(steps):
            part = chosen(module, fast, task.support_x, task.support_y, of, keep)
            x, y = task.support_x[part], task.support_y[part]
            value = of(functional_call(module, fast, (x,)), y)
            grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            fast = {n: p - lr * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        total = total + of(functional_call(module, fast, (task.query_x,)), task.query_y)
    grads = torch.autograd.grad(total / len(batch), list(params.values()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["classes", "values"])
def test_scores_are_the_norms_of_autograd_times_a_constant(kind: str, bias: bool) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3, bias=bias))
    module.double()
    task = tasks(1)[0]
    x, of = task.query_x, F.cross_entropy if kind == "classes" else F.mse_loss
    y = task.query_y if kind == "classes" else torch.randn(len(x), 3, dtype=torch.float64)
    params = list(module.parameters())
    found = gradient_norms(FunctionalModule(module), of, params, {}, x, y)
    last = params[-2:] if bias else params[-1:]
    norms = []
    for i in range(len(x)):
        grads = torch.autograd.grad(of(module(x[i, None]), y[i, None]), last)
        norms.append(torch.cat([g.flatten() for g in grads]).norm())
    expected = torch.stack(norms) / len(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("metagrad", [Exact(), Recursion(), Recursion("forward", memory="sqrt")])
def test_meta_gradients_are_those_of_plain_autograd(metagrad: MetaGradient) -> None:
    module, batch = siren(), signals()
    model = learner(module, PrunedSupport(SGD(0.05, 3), 0.25), metagrad, F.mse_loss)
    found, _ = model.meta_gradient(batch)
    expected = reference(module, batch, 3, 0.25, F.mse_loss, 0.05)
    assert (found - expected).norm() <= 1e-9 * expected.norm()
    whole, _ = learner(module, SGD(0.05, 3), metagrad, F.mse_loss).meta_gradient(batch)
    assert (found - whole).norm() > 1e-3 * whole.norm()


def test_many_shots_of_classes_are_pruned_by_the_same_rule() -> None:
    module, batch = mlp().double(), tasks()
    found, _ = learner(module, PrunedSupport(SGD(LR, 2), 0.5)).meta_gradient(batch)
    expected = reference(module, batch, 2, 0.5, loss, LR)
    assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("engine", ["batched", "compiled"])
def test_engines_that_run_all_tasks_choose_for_each(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The traced graph runs as it is: Inductor would take half a minute.
    monkeypatch.setattr(CompiledEngine, "_compile_region", lambda _, region, alone: region)
    batch, module = signals(3), SIREN(2, 2, (6,), w0=5).double()
    expected, found = (
        learner(
            module,
            PrunedSupport(SGD(0.05, 2)),
            Bootstrapped(Exact(), steps=1),
            F.mse_loss,
            engine=name,
        ).meta_gradient(batch)[0]
        for name in ("loop", engine)
    )
    assert (found - expected).norm() <= 1e-9 * expected.norm()


def test_engines_refuse_what_they_cannot_run() -> None:
    batch, module = signals(), siren()
    random = PrunedSupport(SGD(0.05, 2), by="random")
    for engine in ("batched", "compiled"):
        with pytest.raises(NotImplementedError, match="draws random numbers"):
            learner(module, random, of=F.mse_loss, engine=engine).meta_gradient(batch)
    for engine in ("mlp", "sequence"):
        with pytest.raises(ValueError, match="the adaptation is PrunedSupport, not SGD"):
            learner(module, random, of=F.mse_loss, engine=engine).meta_gradient(batch)


def test_keeping_everything_is_the_adaptation_itself_bit_for_bit() -> None:
    batch, module = signals(dtype=torch.float32), SIREN(2, 2, (12, 12))
    plain, pruned = (
        learner(copy.deepcopy(module), a, of=F.mse_loss)
        for a in (SGD(0.05, 3), PrunedSupport(SGD(0.05, 3), keep=1.0))
    )
    assert torch.equal(plain.predict(batch), pruned.predict(batch))
    for _ in range(2):
        for model in (plain, pruned):
            model.step(batch)
    for p, q in zip(plain.module.parameters(), pruned.module.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_choice_depends_on_ranks_only() -> None:
    module, task = siren(), signals(1)[0]
    params = list(module.parameters())
    values = gradient_norms(
        FunctionalModule(module), F.mse_loss, params, {}, task.support_x, task.support_y
    )
    doubled = copy.deepcopy(module)
    with torch.no_grad():
        for p in list(doubled.parameters())[-2:]:
            p *= 2
    other = gradient_norms(
        FunctionalModule(doubled),
        F.mse_loss,
        list(doubled.parameters()),
        {},
        task.support_x,
        2 * task.support_y,
    )
    assert torch.equal(values.argsort(), other.argsort())


def test_at_test_all_examples_are_used_with_the_norm_of_the_part() -> None:
    module, batch = siren(), signals(1)
    task = batch[0]
    model = learner(module, PrunedSupport(SGD(0.05, 1), 0.25), of=F.mse_loss)
    params = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    part = chosen(module, params, task.support_x, task.support_y, F.mse_loss, 0.25)
    sizes, fast = [], {}
    for x, y in ((task.support_x[part], task.support_y[part]), (task.support_x, task.support_y)):
        grads = torch.autograd.grad(
            F.mse_loss(functional_call(module, params, (x,)), y), list(params.values())
        )
        sizes.append(torch.cat([g.flatten() for g in grads]).norm())
    for (n, p), g in zip(params.items(), grads, strict=True):
        fast[n] = p - 0.05 * sizes[0] / sizes[1] * g
    found = model.adapt(task.support_x, task.support_y)
    for name, value in fast.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-12, atol=1e-14)
    # Scores before adaptation are those of all examples.
    before = F.mse_loss(module(task.support_x), task.support_y)
    torch.testing.assert_close(model.evaluate(batch).support_loss[0], before.detach())
    plain = learner(module, SGD(0.05, 1), of=F.mse_loss)
    unscaled = learner(module, PrunedSupport(SGD(0.05, 1), rescale=False), of=F.mse_loss)
    assert torch.equal(unscaled.predict(batch), plain.predict(batch))


def test_random_parts_are_repeated_by_the_reverse_sweep_and_differ_between_steps() -> None:
    module, batch = siren(), signals()

    def found(metagrad: MetaGradient) -> Tensor:
        torch.manual_seed(3)
        pruned = PrunedSupport(SGD(0.05, 3), by="random")
        return learner(module, pruned, metagrad, F.mse_loss).meta_gradient(batch)[0]

    exact = found(Exact())
    torch.testing.assert_close(found(Recursion(graphs=0)), exact, rtol=1e-9, atol=1e-12)
    seen: list[Tensor] = []

    def watched(output: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return F.mse_loss(output, y)

    learner(module, PrunedSupport(SGD(0.05, 2), by="random"), of=watched).meta_gradient(batch)
    first, second = seen[:2]
    assert len(first) == len(second) == 6
    assert not torch.equal(first, second)


def test_running_statistics_are_those_of_the_chosen_examples() -> None:
    torch.manual_seed(0)
    module, batch = convolution(running_statistics=True).double(), tasks(1)
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []
        forward = nn.BatchNorm2d.forward

        def counted(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
            calls.append(len(x))
            return forward(self, x)

        patch.setattr(nn.BatchNorm2d, "forward", counted)
        learner(module, PrunedSupport(SGD(LR, 1), 0.5), fuse=False).meta_gradient(batch)
    assert calls == [6, 3, 12]  # scores, chosen, query
    assert int(module[1].num_batches_tracked) == 2


def test_composes_with_patterns_and_clipping() -> None:
    module, batch = mlp().double(), tasks()
    for make in (
        lambda a: LayerPattern(a, "head"),
        lambda a: Clipped(a, 0.1),
    ):
        outside = learner(module, make(PrunedSupport(SGD(LR, 2), 0.5)))
        inside = learner(module, PrunedSupport(make(SGD(LR, 2)), 0.5))
        assert torch.equal(outside.meta_gradient(batch)[0], inside.meta_gradient(batch)[0])
        assert torch.equal(outside.predict(batch), inside.predict(batch))


def test_a_resumed_run_of_the_method_takes_the_same_steps() -> None:
    batches = [signals(2, torch.float32) for _ in range(4)]

    def make(seed: int) -> MetaLearner:
        torch.manual_seed(seed)
        return build(
            "gradncp",
            SIREN(2, 2, (12, 12)),
            F.mse_loss,
            inner_lr=0.01,
            inner_steps=2,
            adaptation_options={"by": "random"},
        )

    whole, half = make(1), make(1)
    torch.manual_seed(7)
    for batch in batches:
        whole.step(batch)
    torch.manual_seed(7)
    for batch in batches[:2]:
        half.step(batch)
    state, generator = copy.deepcopy(half.state_dict()), torch.get_rng_state()
    resumed = make(2)
    resumed.load_state_dict(state)
    torch.set_rng_state(generator)
    for batch in batches[2:]:
        resumed.step(batch)
    for p, q in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(p, q)


def test_refused_arguments_and_networks() -> None:
    for keep in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="keep must be"):
            PrunedSupport(SGD(LR), keep)
    with pytest.raises(ValueError, match="chooses support examples itself"):
        PrunedSupport(PrunedSupport(SGD(LR)))
    with pytest.raises(ValueError, match="PrunedSupport\\(Groups"):
        Groups({"*": PrunedSupport(SGD(LR))})
    shifted = nn.Sequential(mlp(), nn.Softplus()).double()
    with pytest.raises(ValueError, match="by='random', or such a network"):
        learner(shifted, PrunedSupport(SGD(LR))).meta_gradient(tasks())
    learner(shifted, PrunedSupport(SGD(LR), by="random")).meta_gradient(tasks())
    weight = torch.ones(WAYS)
    with pytest.raises(ValueError, match="the inner loss decides"):
        metagradient(
            lambda p, m, b: (p * b).sum(),
            lambda p, m: p.sum(),
            weight,
            (),
            [weight],
            optimizer=PrunedSupport(SGD(LR)),
        )


def test_first_order_and_frozen_layers() -> None:
    module, batch = mlp().double(), tasks()
    module[1].requires_grad_(False)
    found, _ = learner(module, PrunedSupport(SGD(LR, 1), 0.5), FirstOrder()).meta_gradient(batch)
    last = [p for p in module.parameters() if p.requires_grad]
    total = []
    for task in batch:
        params = dict(module.named_parameters())
        part = chosen(module, params, task.support_x, task.support_y, loss, 0.5)
        value = loss(module(task.support_x[part]), task.support_y[part])
        fast = [p - LR * g for p, g in zip(last, torch.autograd.grad(value, last), strict=True)]
        names = [n for n, p in params.items() if p.requires_grad]
        changed = {**params, **dict(zip(names, fast, strict=True))}
        value = loss(functional_call(module, changed, (task.query_x,)), task.query_y)
        total.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, fast)]))
    torch.testing.assert_close(found, torch.stack(total).mean(0), rtol=1e-10, atol=1e-12)
