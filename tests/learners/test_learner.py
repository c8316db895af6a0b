"""Learners apart from their gradients: side effects, buffers, state, every method."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import FOMAML, GSL, MAML, CoLearner, TaskBatch
from fastmeta.learners import METHODS, build
from fastmeta.models import KLPenalty, sparsify
from tests.helpers.problems import MODULES, WAYS, convolution, loss, mlp, tasks


def adam(params):
    return torch.optim.Adam(params, lr=0.02)


@pytest.mark.parametrize("method", [m for m in METHODS if "warp" not in m])
@pytest.mark.parametrize("name", MODULES)
def test_every_method_trains_every_module(method: str, name: str) -> None:
    if method == "boil" and name in ("frozen", "unused"):
        pytest.skip("one layer has no body")
    torch.manual_seed(0)
    # The full correction (eta = 1) need not lower the loss of a linear model on one batch.
    options = {"eta": 0.3} if method == "gsl" else {}
    # With its default, the learned rate jumps in the first steps.
    rate = {"hyper_lr": 1e-3} if method == "robust-maml" else {}
    module = MODULES[name]()
    learner = build(
        method,
        sparsify(module) if method == "b-small" else module,
        loss,
        inner_lr=0.1,
        inner_steps=0 if method == "mamf" else 2,
        optimizer=adam,
        metagrad_options=options,
        adaptation_options=rate,
        co_learner=CoLearner(nn.Linear(WAYS, WAYS), "") if method == "cml" else None,
        penalty=KLPenalty(1e-5) if method == "b-small" else None,
    )
    batch = tasks(6, torch.float32)
    losses = [learner.step(batch).query_loss.mean().item() for _ in range(25)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", MODULES)
def test_predict_has_no_side_effects(name: str) -> None:
    module = MODULES[name]()
    learner = GSL(module, loss, inner_lr=0.1)
    batch = tasks(3, torch.float32)
    learner.step(batch)
    before = copy.deepcopy(learner.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    first, second = learner.predict(batch, 5), learner.predict(batch, 5)
    assert torch.equal(first, second)
    after = learner.state_dict()["module"]
    assert all(torch.equal(after[k], v) for k, v in before["module"].items())
    for param, grad in zip(module.parameters(), grads, strict=True):
        assert grad is None or torch.equal(param.grad, grad)


def test_predict_is_the_adapted_module() -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    learner = MAML(module, loss, inner_lr=0.1, inner_steps=2)
    for i, task in enumerate(batch):
        fast = learner.adapt(task.support_x, task.support_y, 4)
        expected = torch.func.functional_call(module, fast, (task.query_x,))
        torch.testing.assert_close(learner.predict(batch, 4)[i], expected.detach())
    assert not learner.predict(batch).requires_grad


def test_predict_works_under_no_grad() -> None:
    learner, batch = MAML(mlp(), loss, inner_lr=0.1), tasks(2, torch.float32)
    expected = learner.predict(batch)
    with torch.no_grad():
        assert torch.equal(learner.predict(batch), expected)


def test_results_are_those_before_and_after_adaptation() -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    learner = MAML(module, loss, inner_lr=0.1, inner_steps=2)
    output = learner.predict(batch)
    support = [loss(module(t.support_x), t.support_y).item() for t in batch]
    result = learner.step(batch)
    torch.testing.assert_close(result.query_output, output)
    torch.testing.assert_close(result.support_loss, torch.tensor(support))
    losses = [loss(o, y) for o, y in zip(output, batch.query_y, strict=True)]
    torch.testing.assert_close(result.query_loss, torch.stack(losses))


def test_running_statistics_are_the_mean_over_tasks() -> None:
    module, batch = convolution(True), tasks(3, torch.float32)
    learner = GSL(module, loss, inner_lr=0.1, inner_steps=2)
    seen = []
    for task in batch:
        alone = GSL(copy.deepcopy(module), loss, inner_lr=0.1, inner_steps=2)
        alone.meta_gradient(TaskBatch(*(part[None] for part in task)))
        seen.append(dict(alone.module.named_buffers()))
    learner.meta_gradient(batch)
    for name, buffer in module.named_buffers():
        expected = torch.stack([own[name] for own in seen])
        if name.endswith("num_batches_tracked"):
            assert buffer == 3  # two inner steps and the query set
        else:
            torch.testing.assert_close(buffer, expected.mean(0))


def test_evaluation_mode_keeps_running_statistics() -> None:
    module, batch = convolution(True), tasks(3, torch.float32)
    learner = GSL(module, loss, inner_lr=0.1)
    learner.step(batch)
    module.eval()
    before = {n: b.clone() for n, b in module.named_buffers()}
    learner.step(batch)
    assert all(torch.equal(b, before[n]) for n, b in module.named_buffers())


def test_constant_buffers_do_not_drift() -> None:
    module = mlp()
    module.register_buffer("scale", torch.tensor(0.1))
    learner = GSL(module, loss, inner_lr=0.1)
    for _ in range(5):
        learner.step(tasks(3, torch.float32))
    assert torch.equal(module.scale, torch.tensor(0.1))


def test_dropout_is_random_only_in_training() -> None:
    module = nn.Sequential(mlp()[0], nn.Dropout(0.5), *mlp()[1:])
    learner, batch = MAML(module, loss, inner_lr=0.1), tasks(2, torch.float32)
    assert not torch.equal(learner.predict(batch), learner.predict(batch))
    module.eval()
    assert torch.equal(learner.predict(batch), learner.predict(batch))
    module.train()
    assert learner.step(batch).query_loss.isfinite().all()


def test_frozen_parameters_are_unchanged() -> None:
    module = MODULES["frozen"]()
    before = module[1].weight.clone()
    learner = MAML(module, loss, inner_lr=0.1)
    learner.step(tasks(2, torch.float32))
    assert torch.equal(module[1].weight, before)
    assert "1.weight" not in learner.adapt(*tasks(1, torch.float32)[0][:2])


@pytest.mark.parametrize(
    "options",
    [
        {"eta": 0.3, "schedule": "cosine:8"},
        {"variant": "R1", "eta": 0.3, "schedule": "cosine:8"},
        {"variant": "R2", "eta": 0.3, "schedule": "cosine:8"},
        {"variant": "R2p", "eta": 9.0, "schedule": "cosine:8"},
        {"variant": "R3"},
        {"variant": "R4", "every": 2},
    ],
)
def test_a_restored_learner_continues_exactly(options) -> None:
    batches = [tasks(3, torch.float32) for _ in range(6)]

    def fresh() -> GSL:
        torch.manual_seed(1)
        return GSL(mlp(), loss, inner_lr=0.1, **options)

    whole, half = fresh(), fresh()
    for batch in batches:
        whole.step(batch)
    for batch in batches[:3]:
        half.step(batch)
    state = copy.deepcopy(half.state_dict())
    resumed = fresh()
    resumed.load_state_dict(state)
    for batch in batches[3:]:
        resumed.step(batch)
    pairs = zip(whole.module.parameters(), resumed.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_regression_tasks() -> None:
    torch.manual_seed(0)
    source = fastmeta.data.SineTasks(8, shots=10, queries=10, seed=1)
    module = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    learner = MAML(module, nn.functional.mse_loss, inner_lr=0.05, inner_steps=2, optimizer=adam)
    losses = [learner.step(source[i]).query_loss.mean().item() for i in range(60)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_errors_say_how_to_fix_them() -> None:
    batch = tasks(2, torch.float32)
    empty = TaskBatch(
        *(p[:0] for p in (batch.support_x, batch.support_y, batch.query_x, batch.query_y))
    )
    learner = GSL(mlp(), loss, inner_lr=0.1)
    for call in (learner.step, learner.predict):
        with pytest.raises(ValueError, match="no tasks; expected at least one"):
            call(empty)
    with pytest.raises(ValueError, match=r"expected one of .*fomaml, gradient-agreement"):
        build("mamll", mlp(), loss, inner_lr=0.1)
    with pytest.raises(ValueError, match=r"unknown aggregation .meen.; expected one of agreement"):
        build("maml", mlp(), loss, inner_lr=0.1, aggregation="meen")
    with pytest.raises(TypeError, match="etta"):
        build("gsl", mlp(), loss, inner_lr=0.1, metagrad_options={"etta": 1})
    with pytest.raises(ValueError, match="must be a positive finite number"):
        MAML(mlp(), loss, inner_lr=0)
    with pytest.raises(ValueError, match="must be an integer of at least 0"):
        MAML(mlp(), loss, inner_lr=1, inner_steps=-1)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        MAML(mlp().requires_grad_(False), loss, inner_lr=1)
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="one dtype and one device"):
        MAML(mixed, loss, inner_lr=1)
    with pytest.raises(ValueError, match="took no step"):
        GSL(mlp(), loss, inner_lr=0.1, inner_steps=0, variant="R1").step(batch)
    with pytest.raises(ValueError, match="begin with"):
        TaskBatch(torch.zeros(3), batch.support_y, batch.query_x, batch.query_y)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"variant": "R9"}, "variant must be one of off, correction, .* or R0, R1, R2, R2p, R3"),
        ({"variant": "R1", "magnitude": "loud"}, "magnitude must be one of none"),
        ({"lam_d": -1.0}, "lam_d must be .* at least 0"),
        ({"layers": "tail"}, "names of layers, got 'tail'"),
        ({"variant": "R1", "scope": "all"}, "scope must be one of vector, layer"),
        ({"schedule": "cosine"}, "unknown schedule 'cosine'"),
        ({"schedule": "linear:0"}, "at least 1"),
        ({"variant": "R3", "tau": 0.0}, "tau must be .*positive"),
        ({"variant": "R2", "w_min": 2.0}, r"w_min must be a number in \[0, 1\], got 2.0"),
    ],
)
def test_invalid_gsl_options(options, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        GSL(mlp(), loss, inner_lr=0.1, **options).step(tasks(2, torch.float32))


def test_compiled_modules() -> None:
    """With AOTAutograd, but without a code generator."""
    batch, results = tasks(dtype=torch.float32), []
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, WAYS))
    for own in (module, torch.compile(copy.deepcopy(module), backend="aot_eager")):
        results.append(FOMAML(own, loss, inner_lr=0.1, inner_steps=2).meta_gradient(batch)[0])
    torch.testing.assert_close(*results)
