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


def optimizer(module: nn.Module, **options: Any) -> TaskOptimizer:
    return TaskOptimizer(module.parameters(), torch.optim.SGD, lr=0.1, **options)


@pytest.mark.parametrize("name", AGGREGATIONS)
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
        marked(own, batch, opt)
        torch.manual_seed(7)
        opt.combine()
        found = ops.pack(gradients(list(own.parameters())))[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


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
        opt.combine()
        assert [p.grad.dtype for p in net.parameters()] == [p.dtype for p in net.parameters()]
        found.append(torch.cat([p.grad.double().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "way",
    [metagrad.Exact(), metagrad.Reptile(), metagrad.CurvatureGSL()],
    ids=lambda way: type(way).__name__,
)
def test_meta_gradients_of_an_inner_loop_are_rejected(way: MetaGradient) -> None:
    with pytest.raises(ValueError, match="the loop is yours; expected FirstOrder"):
        optimizer(mlp(), metagrad=way)


def test_missing_support_gradients_are_named() -> None:
    module = mlp()
    opt = optimizer(module, aggregation=GradientAgreement())
    with pytest.raises(RuntimeError, match=r"GradientAgreement compares support .* task 0"):
        marked(module, tasks(2, torch.float32), opt, way="none")


def test_scales_must_agree_if_the_tasks_are_weighted() -> None:
    module = mlp()
    opt = optimizer(module, aggregation=AGGREGATIONS["mgda"]())
    for scale in (0.5, 0.25):
        with opt.task(scale=scale):
            (scale * module(torch.randn(2, 16)).square().mean()).backward()
    with pytest.raises(ValueError, match=r"MGDA weights the tasks itself: expected one scale"):
        opt.step()


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
