"""GSLOptimizer as a torch optimizer."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from fastmeta import GSLOptimizer
from tests.helpers.problems import loss, mlp, tasks
from tests.optim.user_loops import gradients, marked, plain, same, step


def test_it_is_a_torch_optimizer() -> None:
    opt = GSLOptimizer(mlp().parameters(), lr=0.1)
    assert isinstance(opt, torch.optim.Optimizer)
    assert opt.param_groups[0]["lr"] == 0.1
    assert "GSLOptimizer" in repr(opt)


def test_parameter_groups_keep_their_options() -> None:
    module = mlp()
    groups = [
        {"params": module[1].parameters(), "lr": 0.0},
        {"params": module[3].parameters()},
    ]
    opt = GSLOptimizer(groups, torch.optim.SGD, lr=0.1, eta=0.3)
    before = copy.deepcopy(module)
    step(module, opt, tasks(2, torch.float32))
    assert torch.equal(module[1].weight, before[1].weight)
    assert not torch.equal(module[3].weight, before[3].weight)


def test_parameter_groups_can_be_added() -> None:
    module = mlp()
    opt = GSLOptimizer(module[1].parameters(), torch.optim.SGD, lr=0.1, eta=0.3)
    opt.add_param_group({"params": module[3].parameters(), "lr": 0.5})
    assert [g["lr"] for g in opt.base.param_groups] == [0.1, 0.5]
    before = copy.deepcopy(module)
    step(module, opt, tasks(2, torch.float32))
    assert not torch.equal(module[3].weight, before[3].weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
    ],
)
def test_schedulers(make) -> None:
    module = mlp()
    module_copy = copy.deepcopy(module)
    opt = GSLOptimizer(module.parameters(), lr=0.1, eta=0.0)
    reference = torch.optim.Adam(module_copy.parameters(), lr=0.1)
    schedulers = make(opt), make(reference)
    for _ in range(4):
        batch = tasks(2, torch.float32)
        step(module, opt, batch)
        reference.zero_grad()
        plain(module_copy, batch)
        reference.step()
        for scheduler in schedulers:
            scheduler.step()
        assert opt.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
        assert same(module, module_copy)


def test_closures() -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    module_copy = copy.deepcopy(module)
    opt = GSLOptimizer(module.parameters(), lr=0.1, eta=0.3)

    def closure() -> float:
        opt.zero_grad()
        marked(module, batch, opt, way="inner gradients")
        return 1.5

    assert opt.step(closure) == 1.5
    other = GSLOptimizer(module_copy.parameters(), lr=0.1, eta=0.3)
    step(module_copy, other, batch)
    assert same(module, module_copy)


def test_hooks_run_once_per_step() -> None:
    module, calls = mlp(), []
    opt = GSLOptimizer(module.parameters(), lr=0.1, eta=0.3)
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))
    step(module, opt, tasks(2, torch.float32))
    assert calls == ["before", "after"]


@pytest.mark.parametrize(
    "options", [{}, {"variant": "R1"}, {"variant": "R2"}, {"schedule": "linear:9"}]
)
def test_a_restored_optimizer_continues_exactly(options: dict) -> None:
    batches = [tasks(3, torch.float32) for _ in range(6)]
    module = mlp()
    opt = GSLOptimizer(module.parameters(), lr=0.1, eta=0.3, **options)
    for batch in batches[:3]:
        step(module, opt, batch)
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "opt": opt.state_dict()}, file)
    for batch in batches[3:]:
        step(module, opt, batch)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = mlp()
    resumed.load_state_dict(state["module"])
    other = GSLOptimizer(resumed.parameters(), lr=0.7, eta=0.3, **options)
    other.load_state_dict(state["opt"])
    for batch in batches[3:]:
        step(resumed, other, batch)
    assert same(module, resumed)


def test_the_state_of_a_base_optimizer_can_be_loaded() -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    adam = torch.optim.Adam(module.parameters(), lr=0.1)
    plain(module, batch)
    adam.step()
    module_copy = copy.deepcopy(module)
    opt = GSLOptimizer(module_copy.parameters(), lr=0.3, eta=0.0)
    opt.load_state_dict(copy.deepcopy(adam.state_dict()))
    adam.zero_grad()
    plain(module, batch)
    adam.step()
    step(module_copy, opt, batch)
    assert same(module, module_copy)


def test_the_state_of_another_model_is_refused() -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    opt = GSLOptimizer(module.parameters(), lr=0.1, variant="R2", eta=0.3)
    step(module, opt, batch)
    other = mlp()[1:2]
    with pytest.raises(ValueError, match="parameter group"):
        GSLOptimizer(other.parameters(), lr=0.1, variant="R2").load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match=r"has weights, which metagrad\.GSL does not have"):
        GSLOptimizer(module.parameters(), lr=0.1).load_state_dict(opt.state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_are_independent_and_work(clone) -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    opt = GSLOptimizer(module.parameters(), lr=0.1, eta=0.3, schedule="cosine:9")
    step(module, opt, batch)
    module_copy, other = clone((module, opt))
    assert same(module, module_copy)
    step(module, opt, batch)
    assert not same(module, module_copy)
    step(module_copy, other, batch)
    assert same(module, module_copy)
    assert other.base.param_groups is other.param_groups


def test_an_exception_in_a_task_discards_it() -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    opt = GSLOptimizer(module.parameters(), lr=0.1, variant="R1", eta=0.3)
    marked(module, batch, opt)
    before = gradients(list(module.parameters()))

    def failing() -> None:
        with opt.task():
            loss(module(batch[0].query_x), batch[0].query_y).backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    after = gradients(list(module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(opt._combination.tasks.scales) == 2


def test_zero_grad_discards_recorded_tasks() -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    module_copy = copy.deepcopy(module)
    opt, other = (
        GSLOptimizer(m.parameters(), lr=0.1, variant="R1", eta=0.3) for m in (module, module_copy)
    )
    marked(module, tasks(3, torch.float32), opt)
    step(module, opt, batch)
    step(module_copy, other, batch)
    assert same(module, module_copy)


def test_missing_support_gradients_are_named() -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    opt = GSLOptimizer(module.parameters(), lr=0.1, variant="R1", eta=0.3)
    with pytest.raises(RuntimeError, match=r"task 0 has none. Call task\.support"), opt.task():
        loss(module(batch[0].query_x), batch[0].query_y).backward()
    opt.zero_grad()
    step(module, opt, batch)  # and the optimizer is usable afterwards


def test_support_gradients_of_another_shape_are_refused() -> None:
    module = mlp()
    opt = GSLOptimizer(module.parameters(), lr=0.1, eta=0.3)
    with pytest.raises(ValueError, match="one support gradient for each of the 4"), opt.task() as t:
        t.support([torch.zeros(1)])
    with pytest.raises(ValueError, match="in their order and shapes"), opt.task() as t:
        t.support([p.detach().mT if p.dim() == 2 else p.detach() for p in module.parameters()])
    with pytest.raises(ValueError, match="must be positive"), opt.task() as t:
        t.adapted(list(module.parameters()), 0.0)


def test_invalid_options_are_refused() -> None:
    for variant in ("R4", "R8"):
        with pytest.raises(
            ValueError, match=rf"off, .*task-weights; got '{variant}'.*fastmeta\.GSL"
        ):
            GSLOptimizer(mlp().parameters(), lr=0.1, variant=variant)
    with pytest.raises(TypeError):
        GSLOptimizer(mlp().parameters(), lr=0.1, momentums=1)
    with pytest.raises(ValueError, match="scale must be positive"):
        GSLOptimizer(mlp().parameters(), lr=0.1).task(scale=0)
    with pytest.raises(ValueError, match="empty parameter list"):
        GSLOptimizer([], lr=0.1)


def test_r3_needs_a_common_scale() -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    opt = GSLOptimizer(module.parameters(), lr=0.1, variant="R3")
    with opt.task(scale=0.5):
        (0.5 * loss(module(batch[0].query_x), batch[0].query_y)).backward()
    with pytest.raises(ValueError, match="one scale for all of them"), opt.task(scale=0.25):
        (0.25 * loss(module(batch[1].query_x), batch[1].query_y)).backward()
