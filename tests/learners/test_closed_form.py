"""Adaptation in closed form among the other components: what works, and what is refused why."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fastmeta import CoLearner, MetaLearner, TaskBatch
from fastmeta.adaptation import ADAPTATIONS, NTK, SGD, LayerPattern
from fastmeta.aggregation import Mean
from fastmeta.learners import build, compare_precision
from fastmeta.metagrad import METAGRADS, Exact
from tests.helpers.problems import CLOSED_FORM, Noisy, convolution, loss, mlp, tasks


def learner(module: nn.Module, name: str, **options) -> MetaLearner:
    return build("maml", module, loss, inner_lr=0.1, adaptation=name, **options)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_all_ways_to_predict_agree(name: str) -> None:
    module, batch = convolution(True).double(), tasks(2)
    model = learner(module, name)
    before = copy.deepcopy(module.state_dict())
    outputs = model.predict(batch)
    result = model.evaluate(batch)
    assert torch.equal(result.query_output, outputs)
    for i, task in enumerate(batch):
        expected = F.cross_entropy(outputs[i], task.query_y)
        torch.testing.assert_close(result.query_loss[i], expected)
        initial = F.cross_entropy(module(task.support_x), task.support_y)
        torch.testing.assert_close(result.support_loss[i], initial)
        module.load_state_dict(before)  # running statistics
        assert torch.equal(model.predict(task), outputs[i])
        adapted = model.adapted_module(task.support_x, task.support_y)
        torch.testing.assert_close(adapted(task.query_x), outputs[i])
    assert torch.equal(model.predict(batch, steps=7), outputs)  # there are no steps
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    trained = model.step(batch)
    torch.testing.assert_close(trained.query_loss, result.query_loss)
    assert not torch.equal(model.predict(batch), outputs)


def test_an_adapted_module_is_a_copy() -> None:
    module, task = convolution(True).double(), tasks(1)[0]
    for model in (
        MetaLearner(module, loss, adaptation=SGD(0.1, 2), metagrad=Exact(), aggregation=Mean()),
        learner(module, "ntk"),
    ):
        adapted = model.adapted_module(task.support_x, task.support_y)
        expected = model.predict(task)
        torch.testing.assert_close(adapted(task.query_x), expected)
        again = copy.deepcopy(adapted)
        adapted.train(False)
        with torch.no_grad():
            for param in module.parameters():
                param += 1
        torch.testing.assert_close(again(task.query_x), expected)
        assert not torch.equal(adapted(task.query_x), expected)  # running statistics


def test_an_adapted_module_is_exported(tmp_path) -> None:
    task = tasks(1, torch.float32)[0]
    adapted = learner(mlp(), "ntk").adapted_module(task.support_x, task.support_y)
    program = torch.export.export(adapted, (task.query_x,))
    torch.export.save(program, tmp_path / "task.pt2")
    again = torch.export.load(tmp_path / "task.pt2").module()
    torch.testing.assert_close(again(task.query_x), adapted(task.query_x))


def test_a_predictor_is_no_fast_weights() -> None:
    task = tasks(1)[0]
    model = learner(mlp().double(), "ntk")
    with pytest.raises(TypeError, match=r"NTK adapts in function space: .*adapted_module\(x, y\)"):
        model.adapt(task.support_x, task.support_y)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_random_numbers_buffers_and_precision(name: str) -> None:
    batch, model = tasks(2), learner(Noisy().double(), name)
    torch.manual_seed(3)
    found = model.meta_gradient(batch)[0]
    torch.manual_seed(3)
    assert torch.equal(model.meta_gradient(batch)[0], found)
    single = learner(mlp(), name)
    fidelity = compare_precision(single, tasks(2, torch.float32))
    assert fidelity.cosine > 0.999


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_what_needs_inner_gradients_is_refused(name: str) -> None:
    kind = type(learner(mlp(), name).adaptation).__name__
    for metagrad in METAGRADS:
        if metagrad not in ("exact", "class-weights"):
            with pytest.raises(ValueError, match=f"{kind} adapts in closed form, without inner gr"):
                learner(mlp(), name, metagrad=metagrad)
    for refused in (
        {"metagrad_options": {"layers": "head"}},
        {"aggregation": "agreement"},
        {"checkpoint": True},
    ):
        with pytest.raises(ValueError, match=f"{kind} adapts in closed form, without inner gradi"):
            learner(nn.Sequential(mlp()), name, **refused)
    with pytest.raises(ValueError, match="expected no co-learner"):
        learner(mlp(), name, co_learner=CoLearner(nn.Linear(8, 3), "2"))
    learner(mlp(), name, aggregation="agreement", aggregation_options={"of": "meta"})
    model = build("fomaml", mlp(), loss, inner_lr=0.1)
    with pytest.raises(ValueError, match=f"{kind} adapts in closed form"):
        model.with_components(adaptation=ADAPTATIONS[name](lr=0.1, steps=1))


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_engines_refuse_or_take_the_loop(name: str) -> None:
    batch, module = tasks(2, torch.float32), mlp()
    for engine in ("batched", "compiled", "mlp", "sequence"):
        with pytest.raises(ValueError, match=f"engine '{engine}' cannot run this"):
            learner(module, name, engine=engine).check(batch)
    automatic, loop = (learner(module, name, engine=engine) for engine in ("auto", "loop"))
    assert torch.equal(*(m.meta_gradient(batch)[0] for m in (automatic, loop)))


def test_wrappers_and_steps_are_refused() -> None:
    task = tasks(1, torch.float32)[0]
    model = MetaLearner(
        mlp(),
        loss,
        adaptation=LayerPattern(NTK(), "head"),
        metagrad=Exact(),
        aggregation=Mean(),
    )
    with pytest.raises(TypeError, match="NTK adapts in closed form, without an inner loop"):
        model.adapt(task.support_x, task.support_y)


def test_a_module_without_tensor_outputs_is_refused() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return {"logits": self.net(x)}

    with pytest.raises(TypeError, match=r"module returned a dict, .* Wrap the module"):
        learner(Named(), "ntk").predict(tasks(1, torch.float32))


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_parameters_frozen_later_are_not_adapted(name: str) -> None:
    batch, module = tasks(2), mlp().double()
    model = learner(module, name)
    module[1].requires_grad_(False)
    expected = learner(copy.deepcopy(module), name)
    torch.testing.assert_close(model.predict(batch), expected.predict(batch))
    model.backward(batch)
    assert module[1].weight.grad is None
    assert module[3].weight.grad is not None


def test_fast_weights_work_with_functional_call() -> None:
    """Those of gradient descent as before: dictionaries, which `adapted_module` also holds."""
    module, task = mlp(), tasks(1, torch.float32)[0]
    model = build("maml", module, loss, inner_lr=0.1)
    fast = model.adapt(task.support_x, task.support_y)
    adapted = model.adapted_module(task.support_x, task.support_y)
    assert torch.equal(adapted(task.query_x), functional_call(module, fast, (task.query_x,)))


def test_ragged_tasks_and_mappings_run() -> None:
    from fastmeta import RaggedTaskBatch

    batch = tasks(2, torch.float32)
    model = learner(mlp(), "ntk")
    ragged = RaggedTaskBatch([batch[0], batch[1]])
    found = model.step(ragged)
    assert found.query_loss.shape == (2,)
    named = nn.Sequential(mlp())
    x = {"input": batch.support_x}
    mapped = TaskBatch(x, batch.support_y, {"input": batch.query_x}, batch.query_y)
    plain = learner(named, "ntk")
    assert torch.equal(plain.predict(mapped), plain.predict(batch))
