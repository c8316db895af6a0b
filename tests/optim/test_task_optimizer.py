"""TaskOptimizer: any correction and aggregation in a user's own loop."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from fastmeta import MetaLearner, TaskOptimizer, metagrad, ops
from fastmeta.adaptation import SGD
from fastmeta.aggregation import AGGREGATIONS, GradientAgreement, Mean
from fastmeta.metagrad import FirstOrder, MetaGradient
from tests.helpers.problems import MODULES, loss, mlp, tasks
from tests.optim.user_loops import LR, gradients, marked, plain

CORRECTIONS = {
    "none": FirstOrder(),
    "gsl": metagrad.GSLCorrection(eta=0.3),
    "gsl per layer": metagrad.GSLCorrection(eta=0.3, scope="layer", lam_2=0.1),
    "layer weights": metagrad.LayerWeights(eta=0.5),
    "element weights": metagrad.ElementWeights(eta=20.0),
}


OF_GRADIENTS = [name for name in AGGREGATIONS if not AGGREGATIONS[name]().needs_losses]


def optimizer(module: nn.Module, **options: Any) -> TaskOptimizer:
    return TaskOptimizer(module.parameters(), torch.optim.SGD, lr=0.1, **options)


@pytest.mark.parametrize("name", OF_GRADIENTS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_meta_gradients_are_those_of_a_learner(correction: str, name: str) -> None:
    module, way = MODULES["batch norm"]().double(), CORRECTIONS[correction]
    learner = MetaLearner(
        module, loss, adaptation=SGD(LR, 2), metagrad=way, aggregation=AGGREGATIONS[name]()
    )
    own = copy.deepcopy(module)
    opt = optimizer(own, metagrad=way, aggregation=AGGREGATIONS[name]())
    for count in (4, 3):
        batch = tasks(count)
        torch.manual_seed(7)  # PCGrad draws its orders
        expected, _ = learner.meta_gradient(batch)
        opt.zero_grad()
        torch.manual_seed(7)
        marked(own, batch, opt)
        found = ops.pack(gradients(list(own.parameters())))[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        opt.step()  # ends the meta-step: weights of gradients advance
        own.load_state_dict(module.state_dict())


@pytest.mark.parametrize("name", ["log-loss", "spsa"])
def test_aggregations_of_losses_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="needs the query losses of the tasks"):
        optimizer(mlp(), aggregation=AGGREGATIONS[name]())


def test_by_default_it_is_bitwise_the_plain_loop() -> None:
    module = mlp()
    other = copy.deepcopy(module)
    opt, reference = optimizer(module), torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(3):
        batch = tasks(5, torch.float32)
        opt.zero_grad()
        marked(module, batch, opt)
        opt.step()
        reference.zero_grad()
        plain(other, batch)
        reference.step()
        assert all(map(torch.equal, module.parameters(), other.parameters()))


def test_parameters_of_several_dtypes() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 3).double())
    module[1].register_forward_hook(lambda *args: args[-1].double())
    other = copy.deepcopy(module).double()
    batch, found = tasks(3, torch.float32), []
    wide = type(batch)(*(x.double() if x.is_floating_point() else x for x in vars(batch).values()))
    for net, part in ((module, batch), (other, wide)):
        opt = optimizer(net, metagrad=metagrad.GSLCorrection(), aggregation=GradientAgreement())
        marked(net, part, opt)
        assert [p.grad.dtype for p in net.parameters()] == [p.dtype for p in net.parameters()]
        found.append(torch.cat([p.grad.double().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "way",
    [metagrad.Exact(), metagrad.Implicit(), metagrad.CurvatureGSL()],
    ids=lambda way: type(way).__name__,
)
def test_meta_gradients_of_an_inner_loop_are_rejected(way: MetaGradient) -> None:
    with pytest.raises(ValueError, match="the loop is yours; expected FirstOrder, Reptile, GSL"):
        optimizer(mlp(), metagrad=way)


def test_missing_support_gradients_are_named() -> None:
    module = mlp()
    opt = optimizer(module, aggregation=GradientAgreement())
    with pytest.raises(RuntimeError, match=r"GradientAgreement compares support .* task 0"):
        marked(module, tasks(2, torch.float32), opt, way="none")


def test_scales_must_agree_if_the_tasks_are_weighted() -> None:
    module = mlp()
    opt = optimizer(module, aggregation=AGGREGATIONS["mgda"]())
    with opt.task(scale=0.5):
        (0.5 * module(torch.randn(2, 16)).square().mean()).backward()
    message = r"MGDA weights the tasks itself: expected one scale"
    with pytest.raises(ValueError, match=message), opt.task(scale=0.25):
        (0.25 * module(torch.randn(2, 16)).square().mean()).backward()


def test_state_and_pickles() -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    opt = optimizer(module, metagrad=metagrad.LayerWeights(), aggregation=Mean(), momentum=0.9)
    for _ in range(2):
        opt.zero_grad()
        marked(module, batch, opt)
        opt.step()
    copied = copy.deepcopy(module)
    resumed = optimizer(copied, metagrad=metagrad.LayerWeights(), momentum=0.9)
    resumed.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    assert resumed.steps_taken == 2
    for net, each in ((module, opt), (copied, resumed)):
        each.zero_grad()
        marked(net, batch, each)
        each.step()
    assert all(map(torch.equal, module.parameters(), copied.parameters()))
    plain_one = optimizer(mlp())
    before = copy.deepcopy(plain_one.state_dict())
    with pytest.raises(ValueError, match=r"weights, which metagrad.FirstOrder does not have"):
        plain_one.load_state_dict(opt.state_dict())
    assert plain_one.state_dict() == before


def test_freezing_and_unfreezing_between_steps() -> None:
    module, batches = mlp(), [tasks(3, torch.float32) for _ in range(3)]
    opt = optimizer(module, metagrad=metagrad.GSLCorrection(), aggregation=GradientAgreement())
    for frozen, batch in zip((False, True, False), batches, strict=True):
        module[1].requires_grad_(not frozen)
        before = [p.detach().clone() for p in module.parameters()]
        opt.zero_grad()
        marked(module, batch, opt)
        opt.step()
        changed = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
        assert changed == [not frozen, not frozen, True, True]


def test_freezing_within_a_meta_step_is_an_error() -> None:
    module, batch = mlp(), tasks(2, torch.float32)
    opt = optimizer(module, aggregation=AGGREGATIONS["mgda"]())
    marked(module, batch, opt)
    module[1].requires_grad_(False)
    with pytest.raises(RuntimeError, match="requires_grad of a parameter changed between two"):
        marked(module, batch, opt)
    opt.zero_grad()
    marked(module, batch, opt)
    opt.step()


def test_all_parameters_frozen() -> None:
    module = mlp().requires_grad_(False)
    before = [p.clone() for p in module.parameters()]
    opt = optimizer(module, metagrad=metagrad.GSLCorrection())
    with opt.task():
        pass
    opt.step()
    assert all(map(torch.equal, before, module.parameters()))


def test_a_step_without_a_marked_task_warns_once() -> None:
    module = mlp()
    opt = optimizer(module, metagrad=metagrad.GSLCorrection())
    opt.step()  # without gradients there is nothing to miss
    module(torch.randn(2, 16)).sum().backward()
    with pytest.warns(UserWarning, match=r"without a marked task: SGD .* 'with opt.task\(\)"):
        opt.step()
    opt.step()
    plain_one = optimizer(module)
    plain_one.step()


def test_unsupported_parameters_and_gradients_are_named() -> None:
    weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"parameter 0 of group 0 is torch\.complex64"):
        TaskOptimizer([weight], lr=0.1, aggregation=GradientAgreement())
    embedding = nn.Embedding(5, 2, sparse=True)
    opt = optimizer(embedding, aggregation=AGGREGATIONS["mgda"]())
    message = r"parameter 0 is torch\.sparse_coo; .* sparse=False"
    with pytest.raises(TypeError, match=message), opt.task():
        embedding(torch.tensor([1, 2])).sum().backward()
