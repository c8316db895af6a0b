"""Meta-gradients of CML against the reference implementation in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import FOMAML, GSL, MAML, CoLearner, MetaLearner, metagrad
from fastmeta.adaptation import SGD, Adam, Adaptation, MetaSGD
from fastmeta.aggregation import GradientAgreement, GslWeights, Mean
from fastmeta.learners import descent_condition
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, Recursion
from tests.functional import cml_reference
from tests.functional.cml_reference import LR, NETWORKS, batch_for, make

TOLERANCE = 1e-9  # relative

ROUTES: dict[str, tuple[type[MetaGradient], dict[str, Any]]] = {
    f"{way.__name__}, {engine}{', fused' if fuse else ''}": (way, {"engine": engine, "fuse": fuse})
    for way in (FirstOrder, Exact, Recursion)
    for engine in ("loop", "batched")
    for fuse in (False, True)
}

ADAPTATIONS: dict[str, Callable[[], Adaptation]] = {
    "sgd": lambda: SGD(0.2, 2),
    "momentum": lambda: SGD(0.2, 2, momentum=0.8),
    "adam": lambda: Adam(0.05, 2, eps=1e-3),
    "learned rates": lambda: MetaSGD(0.2, 2),
}

COMPOSED: dict[str, Callable[[], MetaGradient]] = {
    "exact": Exact,
    "first order": FirstOrder,
    "recursion": lambda: Recursion(graphs=2),  # replays no step
    "gsl": metagrad.GSLCorrection,
}


def loss_for(name: str) -> cml_reference.Loss:
    return F.mse_loss if name == "mlp" else F.cross_entropy


def cml(
    net: nn.Module,
    co_learner: CoLearner | None,
    name: str = "conv4",
    way: MetaGradient | None = None,
    adaptation: Adaptation | None = None,
    aggregation: Any = None,
    **options: Any,
) -> MetaLearner:
    return MetaLearner(
        net,
        loss_for(name),
        adaptation=adaptation or SGD(LR, 2),
        metagrad=way or Exact(),
        aggregation=aggregation or Mean(),
        co_learner=co_learner,
        **options,
    )


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_meta_gradients_and_buffers_of_all_engines(name: str, steps: int) -> None:
    net, co_learner = make(name)
    batch, expected = batch_for(name), {}
    for second in (False, True):
        expected[second] = cml_reference.meta_gradients(
            net, co_learner, batch, steps, second, loss_for(name)
        )
    for route, (way, options) in ROUTES.items():
        own, own_co = copy.deepcopy((net, co_learner))
        learner = cml(own, own_co, name, way(), SGD(LR, steps), **options)
        found, result = learner.meta_gradient(batch)
        task_gradients, states = expected[way is not FirstOrder]
        exact = task_gradients.mean(0)
        assert (found - exact).norm() <= TOLERANCE * exact.norm(), route
        assert result.query_output.shape[:2] == batch.query_x.shape[:2]
        buffers = [*own.buffers(), *own_co.head.buffers()]
        assert len(buffers) == len(states[0])
        for buffer, each in zip(
            buffers, zip(*(s.values() for s in states), strict=True), strict=True
        ):
            mean = torch.stack(each).to(torch.float64).mean(0)
            torch.testing.assert_close(buffer.to(torch.float64), mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("way", COMPOSED)
@pytest.mark.parametrize("aggregation", [Mean, GradientAgreement, GslWeights])
def test_components_compose(aggregation: Any, way: str, adaptation: str) -> None:
    """The inner loop does not adapt the co-learner, and the outer step trains all of it."""
    net, co_learner = make("conv4")
    learner = cml(
        net, co_learner, "conv4", COMPOSED[way](), ADAPTATIONS[adaptation](), aggregation()
    )
    batch = batch_for("conv4", 3)
    runs: dict[nn.Module, int] = {net: 0, net.features: 0, co_learner.head: 0}
    for module in runs:
        module.register_forward_hook(lambda m, *_: runs.__setitem__(m, runs[m] + 1))
    head, rates = copy.deepcopy((co_learner.head, learner.adaptation.rates))
    result = learner.step(batch)
    assert list(runs.values()) == [9, 9, 3]  # one pass computes both query outputs
    assert result.query_loss.isfinite().all()
    for old, new in zip(head.parameters(), co_learner.head.parameters(), strict=True):
        assert not torch.equal(old, new)
    if rates:
        own = len(list(net.parameters()))
        pairs = list(zip(rates, learner.adaptation.rates, strict=True))
        assert not any(torch.equal(old, new) for old, new in pairs[:own:4])  # of weights
        assert all(torch.equal(old, new) for old, new in pairs[own:])


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_zero_weight_is_the_network_without_a_co_learner(name: str, engine: str) -> None:
    """Bitwise; since Adam is elementwise, one instance equals the two of the authors' code."""
    net, co_learner = make(name, gamma=0.0)
    plain, head = copy.deepcopy((net, co_learner.head))
    learners = [cml(net, co_learner, name, engine=engine), cml(plain, None, name, engine=engine)]
    for _ in range(3):
        batch = batch_for(name)
        results = [learner.step(batch) for learner in learners]
        for field in ("support_loss", "query_loss", "query_output"):
            assert torch.equal(*(getattr(result, field) for result in results))
    for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(head.parameters(), co_learner.head.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", [Exact, FirstOrder])
@pytest.mark.parametrize("name", NETWORKS)
def test_meta_gradients_are_linear_in_gamma(name: str, way: type[MetaGradient]) -> None:
    net, co_learner = make(name)
    batch, found = batch_for(name), {}
    for gamma in (0.0, 1.0, 2.5):
        own = CoLearner(co_learner.head, co_learner.at, gamma)
        found[gamma] = cml(copy.deepcopy(net), own, name, way()).meta_gradient(batch)[0]
    one, more = found[1.0] - found[0.0], found[2.5] - found[0.0]
    assert one.norm() > 0
    assert (more - 2.5 * one).norm() <= TOLERANCE * more.norm()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_of_all_heads(name: str, steps: int) -> None:
    net, co_learner = make(name)
    batch, loss = batch_for(name), loss_for(name)
    learner = cml(net, co_learner, name)
    before = copy.deepcopy(learner.state_dict())
    whole = cml_reference.parts(net, co_learner)
    for head, (by, which) in {
        "main": ("main", "main"),
        "co-learner": ("main", "co"),
        "co-learner-alone": ("co", "co"),
    }.items():
        outputs = []
        for task in batch:
            buffers = {n: b.clone() for n, b in whole.named_buffers()}
            fast = cml_reference.adapted(
                whole, buffers, task.support_x, task.support_y, loss, steps, False, by
            )
            with torch.no_grad():
                outputs += functional_call(whole, {**fast, **buffers}, (task.query_x, which))
        expected = torch.stack(outputs)
        found = learner.predict(batch, steps, head)
        assert (found - expected).norm() <= TOLERANCE * expected.norm(), head
    after = learner.state_dict()
    for part in ("module", "co_learner"):
        torch.testing.assert_close(after[part], before[part], rtol=0, atol=0)


def test_gsl_has_a_zero_support_gradient_for_the_co_learner() -> None:
    net, co_learner = make("conv4")
    batch, eta = batch_for("conv4"), 0.4
    plain = FOMAML(net, F.cross_entropy, inner_lr=LR, co_learner=co_learner)
    options = {"inner_lr": LR, "variant": "correction", "co_learner": co_learner}
    gsl = GSL(net, F.cross_entropy, eta=eta, magnitude="none", **options)
    without = GSL(net, F.cross_entropy, eta=0.0, **options)
    task_gradients = cml_reference.meta_gradients(
        net, co_learner, batch, 1, False, F.cross_entropy
    )[0]
    whole = cml_reference.parts(net, co_learner)
    expected = []
    for u, task in zip(task_gradients, batch, strict=True):
        (output,) = functional_call(whole, {}, (task.support_x, "main"))
        grads = torch.autograd.grad(
            F.cross_entropy(output, task.support_y), list(whole.parameters()), allow_unused=True
        )
        v = torch.cat(
            [
                torch.zeros(p.numel()) if g is None else g.flatten()
                for g, p in zip(grads, whole.parameters(), strict=True)
            ]
        )
        u = u.clone().requires_grad_()
        distance = 1 - torch.dot(u, v) / (u.norm() * v.norm())
        expected.append(u.detach() - eta * torch.autograd.grad(distance, u)[0])
    mean = torch.stack(expected).mean(0)
    found = gsl.meta_gradient(batch)[0]
    assert (found - mean).norm() <= TOLERANCE * mean.norm()
    torch.testing.assert_close(without.meta_gradient(batch)[0], plain.meta_gradient(batch)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_descent_condition(name: str) -> None:
    net, co_learner = make(name)
    batch, loss = batch_for(name), loss_for(name)
    learner = cml(net, co_learner, name, adaptation=SGD(LR, 1))
    found = descent_condition(learner, batch)
    whole = cml_reference.parts(net, co_learner)
    features = len(list(whole.features.parameters()))
    assert list(found) == [n for n, _ in net.named_parameters()][:features]
    for i, task in enumerate(batch):
        buffers = {n: b.clone() for n, b in whole.named_buffers()}
        fast = cml_reference.adapted(whole, buffers, task.support_x, task.support_y, loss, 1, False)
        shared = list(fast.values())[:features]
        outputs = functional_call(whole, {**fast, **buffers}, (task.query_x, "main co"))
        pairs = (
            torch.autograd.grad(loss(o, task.query_y), shared, retain_graph=True) for o in outputs
        )
        for a, b, cosine in zip(*pairs, found.values(), strict=True):
            if (
                min(a.norm(), b.norm()) > 1e-8
            ):  # for a bias before BatchNorm, there is only rounding
                expected = (a * b).sum() / (a.norm() * b.norm())
                torch.testing.assert_close(cosine[i], expected, rtol=1e-7, atol=1e-9)
    with pytest.raises(ValueError, match="no co-learner to compare with; expected one"):
        descent_condition(MAML(net, loss, inner_lr=0.1), batch)


# --- position in the network ----------------------------------------------------------------------


class InPlace(nn.Module):
    """Changes the output of its first part in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(256, 6))
        self.last = nn.Linear(6, cml_reference.WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu_())


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("at", ["first", "first.1"])
def test_features_may_be_changed_in_place(at: str, fuse: bool) -> None:
    net, head = InPlace().double(), nn.Linear(6, cml_reference.WAYS).double()
    learner = cml(net, CoLearner(head, at), adaptation=SGD(0.1, 0), fuse=fuse)
    batch = batch_for("conv4", 1)
    found = learner.meta_gradient(batch)[0]
    z = net.first(batch.query_x[0])
    value = sum(F.cross_entropy(o, batch.query_y[0]) for o in (net.last(z.relu()), head(z)))
    params = [*net.parameters(), *head.parameters()]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(value, params)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Views(nn.Module):
    """A head that needs contiguous images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, cml_reference.WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(len(x), -1))


# Outputs per image of submodules of ``conv4``.
AT = {
    **{"features.0": 320, "features.1": 80, "features.2.0": 80, "features.2.1": 80},
    **{"features.2.2": 80, "features.2.3": 20, "features.3.2": 20, "features": 20, "": 3},
}


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("at", AT)
def test_a_co_learner_anywhere_among_fused_blocks(at: str, engine: str) -> None:
    net, head = make("conv4")[0], Views(AT[at]).double()
    batch, results = batch_for("conv4"), []
    for fuse in (False, True):
        learner = cml(net, CoLearner(head, at), fuse=fuse, engine=engine)
        results.append([learner.meta_gradient(batch)[0], learner.predict(batch, 1, "co-learner")])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= TOLERANCE * expected.norm()
