"""What a loop does to ``.grad`` before, between and after its tasks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from fastmeta import GSLOptimizer, TaskBatch, TaskOptimizer
from fastmeta.aggregation import PCGrad, UPGrad
from fastmeta.metagrad import GSLCorrection, LayerWeights
from tests.helpers.problems import loss, mlp, tasks
from tests.optim.test_inner_gradients import functional
from tests.optim.user_loops import gradients, inner, marked

CASES: dict[str, dict[str, Any]] = {
    "correction": {"metagrad": GSLCorrection(eta=0.3)},
    "aggregation": {"aggregation": UPGrad()},
    "both": {"metagrad": LayerWeights(), "aggregation": PCGrad()},
}


def optimizer(module: nn.Module, **options: Any) -> TaskOptimizer:
    return TaskOptimizer(module.parameters(), torch.optim.SGD, lr=1.0, **options)


def regularize(module: nn.Module) -> None:
    sum(0.1 * p.square().sum() for p in module.parameters()).backward()


def step(module: nn.Module, opt: TaskOptimizer) -> list[Tensor]:
    """The displacement of an outer step."""
    before = [p.detach().clone() for p in module.parameters()]
    opt.step()
    return [b - p.detach() for b, p in zip(before, module.parameters(), strict=True)]


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_changes_after_the_last_task_count(case: str) -> None:
    module, batch = mlp().double(), tasks(3)
    meta = mlp_gradient(module, batch, case)

    def half(opt: torch.optim.Optimizer, *_: Any) -> None:
        for p in module.parameters():
            p.grad *= 0.5

    norm = torch.cat([g.flatten() for g in meta]).norm()
    changes = {
        "clip": (lambda opt: nn.utils.clip_grad_norm_(module.parameters(), 1e-3), 1e-3 / norm, 0),
        "scale": (half, 0.5, 0),
        "hook": (lambda opt: opt.register_step_pre_hook(half), 0.5, 0),
        "regularizer": (lambda opt: regularize(module), 1, 0.2),
    }
    for name, (change, factor, decay) in changes.items():
        own = copy.deepcopy(module.state_dict())
        opt = optimizer(module, **CASES[case])
        opt.zero_grad()
        run(module, batch, opt)
        change(opt)
        expected = [factor * g + decay * p for g, p in zip(meta, module.parameters(), strict=True)]
        expected = [e.detach() for e in expected]
        tolerance = 1e-3 if name == "clip" else 1e-10  # it divides by the norm plus 1e-6
        for a, b in zip(step(module, opt), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=1e-10)
        module.load_state_dict(own)


def run(module: nn.Module, batch: TaskBatch, opt: TaskOptimizer) -> None:
    torch.manual_seed(5)  # PCGrad
    marked(module, batch, opt)


def mlp_gradient(module: nn.Module, batch: TaskBatch, case: str) -> list[Tensor]:
    opt = optimizer(module, **CASES[case])
    opt.zero_grad()
    run(module, batch, opt)
    return [g for g in gradients(list(module.parameters())) if g is not None]


@pytest.mark.parametrize("case", CASES)
def test_gradients_before_and_between_tasks_stay(case: str) -> None:
    module, batch = mlp().double(), tasks(4)
    meta = mlp_gradient(module, batch, case)
    opt = optimizer(module, **CASES[case])
    opt.zero_grad()
    regularize(module)
    torch.manual_seed(5)
    for i in range(4):
        part = TaskBatch(*(x[i : i + 1] for x in vars(batch).values()))
        with opt.task(scale=1 / 4) as t:
            single(module, part, t)
        if i == 1:
            regularize(module)
    close(
        [p.grad for p in module.parameters()],
        [g + 0.4 * p.detach() for g, p in zip(meta, module.parameters(), strict=True)],
    )


def single(module: nn.Module, batch: TaskBatch, recorder: Any) -> None:
    """As ``marked``, with a quarter of the query loss."""
    (task,) = batch
    fast = inner(module, task.support_x, task.support_y, 2, recorder.support)
    output = torch.func.functional_call(module, fast, (task.query_x,))
    (loss(output, task.query_y) / 4).backward()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_tasks_are_forgotten_if_the_module_clears_gradients(case: str, set_to_none: bool) -> None:
    module, batches = mlp().double(), [tasks(3), tasks(2)]
    expected = mlp_gradient(module, batches[1], case)
    opt = optimizer(module, **CASES[case])
    opt.zero_grad()
    run(module, batches[0], opt)  # of a step that is not taken, as after an overflow
    module.zero_grad(set_to_none)
    run(module, batches[1], opt)
    close([p.grad for p in module.parameters()], expected)


def test_replacing_gradients_between_tasks_is_an_error() -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    opt = optimizer(module, aggregation=UPGrad())
    marked(module, batch, opt)
    for p in module.parameters():
        p.grad = p.grad * 2
    with pytest.raises(RuntimeError, match=r"assigned to \.grad between two tasks"):
        marked(module, batch, opt)
    opt.step()
    marked(module, batch, opt)  # accumulates, without the first tasks


def test_a_task_without_query_gradient_is_an_error() -> None:
    opt = optimizer(mlp(), aggregation=UPGrad())
    with pytest.raises(RuntimeError, match="task 0 has no query gradient"), opt.task():
        pass


def test_states_and_random_numbers_advance_once_per_step() -> None:
    module, batch = mlp().double(), tasks(4)
    opt = optimizer(module, **CASES["both"])
    torch.manual_seed(5)
    start = torch.get_rng_state()
    marked(module, batch, opt)
    assert torch.equal(torch.get_rng_state(), start)
    assert not opt.state_dict()["metagrad"].keys() - {"step"}
    opt.step()
    after = torch.get_rng_state()
    torch.set_rng_state(start)
    torch.rand(4, 4)
    assert torch.equal(torch.get_rng_state(), after)
    assert opt.steps_taken == 1
    assert "weights" in opt.state_dict()["metagrad"]


def test_the_loops_own_random_numbers_are_not_rewound() -> None:
    module, batch = mlp().double(), tasks(3)
    opt = optimizer(module, aggregation=PCGrad())
    marked(module, batch, opt)
    torch.rand(1)
    before = torch.get_rng_state()
    opt.step()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("unscale", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"lam_c": 0.5}, {"variant": "R1"}, {"variant": "R2"}],
    ids=str,
)
def test_a_gradient_scaler_changes_nothing(options: dict, unscale: bool) -> None:
    module, task = mlp().double(), tasks(1)[0]
    moved = []
    for enabled in (False, True):
        own = copy.deepcopy(module)
        opt = GSLOptimizer(own.parameters(), torch.optim.SGD, lr=0.1, eta=0.3, **options)
        scaler = GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        with opt.task() as t:
            grads = t.inner_gradients(loss(own(task.support_x), task.support_y))
            names = [n for n, _ in own.named_parameters()]
            fast = [p - 0.3 * g for p, g in zip(own.parameters(), grads, strict=True)]
            output = torch.func.functional_call(
                own, dict(zip(names, fast, strict=True)), task.query_x
            )
            scaler.scale(loss(output, task.query_y)).backward()
        if unscale:
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(own.parameters(), 0.5)
        scaler.step(opt)
        scaler.update()
        moved.append([p.detach() for p in own.parameters()])
    for a, b in zip(*moved, strict=True):  # a clipped norm is that of the norm plus 1e-6
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "R1", "lam_2": 0.5},
        {"variant": "R1", "magnitude": "none"},
        {"variant": "R2", "lam_2": 0.1},
        {"variant": "R3", "lam_2": 0.1},
    ],
    ids=str,
)
def test_norms_need_the_loss_scale(options: dict) -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    opt = GSLOptimizer(module.parameters(), lr=0.1, **options)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    marked(module, batch, opt, scale=scaler.scale)
    with pytest.raises(RuntimeError, match=r"scale=scaler\.get_scale\(\) / T"):
        scaler.step(opt)


def test_norms_with_the_loss_scale_and_similarity() -> None:
    module, batch = mlp().double(), tasks(1)
    found = []
    for scale in (1.0, 1024.0):
        own = copy.deepcopy(module)
        opt = GSLOptimizer(
            own.parameters(), torch.optim.SGD, lr=0.1, variant="similarity", lam_2=0.5
        )
        with opt.task(scale=scale, inner_lr=0.3) as t:
            grads = t.inner_gradients(loss(own(batch[0].support_x), batch[0].support_y))
            with torch.no_grad():
                for p, g in zip(own.parameters(), grads, strict=True):
                    p.sub_(0.3 * g)
            (scale * loss(own(batch[0].query_x), batch[0].query_y)).backward()
        found.append([p.grad / scale for p in own.parameters()])
    close(*found)


def test_changes_that_autograd_does_not_see() -> None:
    own, batch = mlp().double(), tasks(1)
    opt = GSLOptimizer(own.parameters(), torch.optim.SGD, lr=0.1, variant="similarity")

    def block() -> None:
        with opt.task(inner_lr=0.3) as t:
            grads = t.inner_gradients(loss(own(batch[0].support_x), batch[0].support_y))
            for p, g in zip(own.parameters(), grads, strict=True):
                p.data.sub_(0.3 * g)
            loss(own(batch[0].query_x), batch[0].query_y).backward()

    with pytest.raises(RuntimeError, match=r"changed through \.data"):
        block()
    assert all(p.grad is None for p in own.parameters())


def test_a_closure_with_similarity() -> None:
    module, batch = mlp().double(), tasks(2)
    other = copy.deepcopy(module)
    opt, plain = (
        GSLOptimizer(m.parameters(), torch.optim.SGD, lr=0.1, variant="similarity")
        for m in (module, other)
    )

    def closure() -> float:
        opt.zero_grad()
        functional(module, batch, opt)
        return 2.0

    assert opt.step(closure) == 2.0
    functional(other, batch, plain)
    plain.step()
    close([p.detach() for p in module.parameters()], [p.detach() for p in other.parameters()])
