"""Co-learners in a learner: state, side effects, options, errors."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import FOMAML, GSL, MAML, CoLearner, Reptile, learners, metagrad, ops
from fastmeta.learners import METHODS, build
from tests.functional.cml_reference import NETWORKS, WAYS, batch_for, conv4, make
from tests.helpers.problems import CLOSED_FORM

LOSS = F.cross_entropy


def attributes(module: nn.Module) -> list[Any]:
    """Attributes of a module and its submodules, including hooks, without tensors."""
    kept = ("_parameters", "_buffers", "_modules")
    return [
        {k: copy.copy(v) for k, v in vars(m).items() if k not in kept} for m in module.modules()
    ]


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("name", ["conv4, running statistics", "resnet12"])
def test_the_network_is_left_unchanged(name: str, engine: str) -> None:
    net, co_learner = make(name)
    before, names, kind = attributes(net), list(net.state_dict()), type(net)
    batch = batch_for(name)
    learner = MAML(net, LOSS, inner_lr=0.1, co_learner=co_learner, engine=engine)
    learner.step(batch)
    for head in ("main", "co-learner", "co-learner-alone"):
        learner.predict(batch, head=head)
    learners.descent_condition(learner, batch)
    trained = learner.module
    assert trained is net
    assert type(trained) is kind
    assert attributes(net) == before
    assert list(net.state_dict()) == names
    assert list(learner.adapt(batch.support_x[0], batch.support_y[0])) == [
        n for n, _ in net.named_parameters()
    ]
    x = batch.query_x[0]
    net.eval()
    again = pickle.loads(pickle.dumps(net))
    exported = torch.export.export(net, (x,)).module()
    for other in (again, exported):
        torch.testing.assert_close(other(x), net(x))


def test_the_network_is_left_unchanged_by_an_error() -> None:
    net, head = conv4()[0], nn.Linear(7, WAYS)  # the number of features is not 7
    learner = MAML(net, LOSS, inner_lr=0.1, co_learner=CoLearner(head, "features"))
    before = attributes(net)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner.step(float32(batch_for("conv4")))
    assert attributes(net) == before


def float32(batch: Any) -> Any:
    parts = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    return type(batch)(*(p.float() if p.is_floating_point() else p for p in parts))


@pytest.mark.parametrize("name", NETWORKS)
def test_training_resumes_bitwise_from_a_saved_state(name: str) -> None:
    loss = F.mse_loss if name == "mlp" else LOSS
    batches = [batch_for(name) for _ in range(4)]
    net, co_learner = make(name)
    whole = MAML(net, loss, inner_lr=0.1, co_learner=co_learner)
    for i, batch in enumerate(batches):
        if i == 2:
            file = io.BytesIO()
            torch.save(whole.state_dict(), file)
        whole.step(batch)
    file.seek(0)
    net, co_learner = make(name)
    again = MAML(net, loss, inner_lr=0.1, co_learner=co_learner)
    again.load_state_dict(torch.load(file))
    for batch in batches[2:]:
        again.step(batch)
    for part in ("module", "co_learner"):
        pairs = zip(*(m.state_dict()[part].values() for m in (whole, again)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_state_without_a_co_learner_is_refused_before_anything_changes() -> None:
    net, co_learner = make("conv4")
    state = MAML(make("conv4")[0], LOSS, inner_lr=0.1).state_dict()
    assert "co_learner" not in state
    learner = MAML(net, LOSS, inner_lr=0.1, co_learner=co_learner)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyError, match="co_learner"):
        learner.load_state_dict(state)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_a_custom_optimizer_gets_all_parameters() -> None:
    net, co_learner = make("conv4")
    given: list[nn.Parameter] = []

    def optimizer(params: Any) -> torch.optim.Optimizer:
        given.extend(params)
        return torch.optim.SGD(given, lr=0.1)

    FOMAML(net, LOSS, inner_lr=0.1, co_learner=co_learner, optimizer=optimizer)
    expected = [*net.parameters(), *co_learner.head.parameters()]
    assert [id(p) for p in given] == [id(p) for p in expected]


def test_frozen_parameters_are_unchanged() -> None:
    net, co_learner = make("conv4")
    for frozen in (net.features[0][0].weight, co_learner.head[0].weight):
        frozen.requires_grad_(False)
    before = [p.clone() for p in (net.features[0][0].weight, co_learner.head[0].weight)]
    learner = MAML(net, LOSS, inner_lr=0.1, co_learner=co_learner)
    learner.step(batch_for("conv4"))
    assert torch.equal(before[0], net.features[0][0].weight)
    assert torch.equal(before[1], co_learner.head[0].weight)
    parameters = {*net.parameters(), *co_learner.head.parameters()}
    assert len(learner._built.model.names) == len(parameters) - 2


def test_the_co_learner_follows_the_networks_mode() -> None:
    net, co_learner = make("conv4, running statistics")
    learner = MAML(net, LOSS, inner_lr=0.1, co_learner=co_learner)
    batch = batch_for("conv4")
    learner.step(batch)
    net.eval()
    one, all_of_them = (
        learner.predict(type(batch)(batch.support_x, batch.support_y, x, y), head="co-learner")
        for x, y in ((batch.query_x[:, :1], batch.query_y[:, :1]), (batch.query_x, batch.query_y))
    )
    torch.testing.assert_close(one, all_of_them[:, :1])  # not the batch's statistics
    net.train()
    learner.step(batch)
    assert co_learner.head.training


# --- fusion and options ---------------------------------------------------------------------------


def test_network_and_co_learner_are_fused() -> None:
    net, co_learner = make("conv4")
    learner = FOMAML(net, LOSS, inner_lr=0.1, inner_steps=0, co_learner=co_learner)
    with (
        mock.patch.object(ops, "conv3x3", wraps=ops.conv3x3) as convolutions,
        mock.patch.object(ops, "batch_norm_relu", wraps=ops.batch_norm_relu) as norms,
    ):
        learner.meta_gradient(batch_for("conv4", 1))
    assert (convolutions.call_count, norms.call_count) == (6, 6)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("at", ["features", "features.1", "features.1.0"])
def test_checkpointing_changes_nothing(at: str, fuse: bool) -> None:
    net, batch = conv4(stats=True)[0].double(), batch_for("conv4")
    width = {"features": 20, "features.1": 80, "features.1.0": 320}[at]
    head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(width), nn.Linear(width, WAYS)).double()
    results = []
    for checkpoint in (False, True):
        own, co = copy.deepcopy((net, CoLearner(head, at)))
        learner = FOMAML(own, LOSS, inner_lr=0.1, co_learner=co, fuse=fuse, checkpoint=checkpoint)
        results.append([learner.meta_gradient(batch)[0], *own.buffers(), *co.head.buffers()])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_autocast_of_both_heads() -> None:
    net, head, at = conv4()
    seen: list[torch.dtype] = []
    head.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    learner = FOMAML(
        net, LOSS, inner_lr=0.1, co_learner=CoLearner(head, at), autocast=torch.bfloat16
    )
    flat, _ = learner.meta_gradient(float32(batch_for("conv4")))
    assert set(seen) == {torch.bfloat16}
    assert flat.dtype == torch.float32


def test_the_mlp_engine_is_refused() -> None:
    net, co_learner = make("mlp")
    batch = batch_for("mlp")
    MAML(net, F.mse_loss, inner_lr=0.01, engine="mlp").step(batch)
    learner = MAML(net, F.mse_loss, inner_lr=0.01, engine="mlp", co_learner=co_learner)
    with pytest.raises(ValueError, match="cannot run this: the learner has a co-learner"):
        learner.step(batch)
    MAML(net, F.mse_loss, inner_lr=0.01, co_learner=co_learner).step(batch)


# --- errors ---------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Runs its only submodule twice, or never, and returns pairs."""

    def __init__(self, times: int = 2) -> None:
        super().__init__()
        self.times = times
        self.layer = nn.Linear(4, 4)
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        return self.pair(x)[0]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def vectors() -> Any:
    batch = batch_for("conv4", 1)
    x, y = torch.randn(1, 6, 4), torch.arange(WAYS).repeat(1, 2)
    return type(batch)(x, y, x, y)


@pytest.mark.parametrize(
    ("times", "at", "error", "part"),
    [
        (2, "layer", RuntimeError, "'0.layer' 2 times"),
        (0, "layer", RuntimeError, "'0.layer' 0 times"),
        (1, "pair", TypeError, "'0.pair' returns a tuple"),
    ],
)
def test_unsupported_submodules(times: int, at: str, error: type[Exception], part: str) -> None:
    net = nn.Sequential(Twice(times))
    co_learner = CoLearner(nn.Linear(4, 4), f"0.{at}")
    learner = FOMAML(net, LOSS, inner_lr=0.1, inner_steps=0, co_learner=co_learner)
    with pytest.raises(error, match=part):
        learner.step(vectors())


def test_unsupported_networks() -> None:
    net, head = nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)
    cases = {
        "no submodule 'features'.*expected one of 0 or a part": (net, CoLearner(head, "features")),
        "shares parameters": (net, CoLearner(nn.Sequential(net[0]), "0")),
        "a child named co_learner": (nn.ModuleDict({"co_learner": net}), CoLearner(head, "")),
        "compiled": (torch.compile(net, backend="eager"), CoLearner(head, "0")),
        "must have one dtype": (net, CoLearner(copy.deepcopy(head).double(), "0")),
    }
    for part, (module, co_learner) in cases.items():
        with pytest.raises(ValueError, match=part):
            FOMAML(module, LOSS, inner_lr=0.1, co_learner=co_learner)


def test_invalid_arguments() -> None:
    for gamma in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gamma must be finite and not negative"):
            CoLearner(nn.Linear(4, 4), "0", gamma)
    with pytest.raises(ValueError, match="no parameter that requires"):
        CoLearner(nn.ReLU(), "0")
    net, co_learner = make("conv4")
    learner = MAML(net, LOSS, inner_lr=0.1, co_learner=co_learner)
    with pytest.raises(ValueError, match="one of main, co-learner, co-learner-alone; got 'both'"):
        learner.predict(batch_for("conv4"), head="both")
    with pytest.raises(ValueError, match="needs a learner with a co_learner"):
        MAML(net, LOSS, inner_lr=0.1).predict(batch_for("conv4"), head="co-learner")


@pytest.mark.parametrize("use_query", [False, True])
def test_reptile_has_no_separate_query_loss(use_query: bool) -> None:
    net, co_learner = make("conv4")
    with pytest.raises(ValueError, match="Reptile has none; expected another meta-gradient"):
        Reptile(net, LOSS, inner_lr=0.1, use_query=use_query, co_learner=co_learner)


def test_by_name() -> None:
    net, co_learner = make("conv4")
    with pytest.raises(ValueError, match="'cml' is MAML with a co-learner"):
        build("cml", net, LOSS, inner_lr=0.1)
    learner = build("cml", net, LOSS, inner_lr=0.1, co_learner=co_learner)
    assert type(learner.metagrad) is metagrad.Exact
    assert learner.co_learner is co_learner
    batch = batch_for("conv4")
    batch = replace(batch, ids=torch.arange(len(batch))[:, None])
    expected = MAML(net, LOSS, inner_lr=0.1, co_learner=co_learner).meta_gradient(batch)[0]
    assert torch.equal(learner.meta_gradient(batch)[0], expected)
    for method in set(METHODS) - {"cml", "b-small"}:
        spec = METHODS[method]
        if "warp" in method or spec.adaptation in CLOSED_FORM:
            continue
        if spec.metagrad not in ("leap", "reptile"):
            build(method, net, LOSS, inner_lr=0.1, co_learner=co_learner).step(batch)
    assert GSL(net, LOSS, inner_lr=0.1, eta=0.3, co_learner=co_learner).co_learner is co_learner
