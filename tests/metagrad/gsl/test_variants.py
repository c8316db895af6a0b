"""Every variant of GSL: selection, degenerate cases, invariances."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastmeta import FOMAML, GSL, MetaLearner, TaskBatch, metagrad
from fastmeta.adaptation import ADAPTATIONS, SGD, Adam, Adaptation, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.learners import build
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, gsl_variant
from tests.helpers.problems import CLOSED_FORM, MODULES, WAYS, loss, mlp, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients

VARIANTS: dict[str, dict[str, Any]] = {
    "R0": {"variant": "R0"},
    "default": {"eta": 0.3},
    "cosine": {"lam_d": 0.0, "lam_c": 0.5},
    "R1": {"variant": "R1", "eta": 0.3},
    "R1 by layer": {"variant": "R1", "eta": 0.3, "scope": "layer"},
    "R1 inner-lr": {"variant": "R1", "eta": 0.3, "magnitude": "inner-lr"},
    "R2": {"variant": "R2", "eta": 0.3},
    "R2p": {"variant": "R2p", "eta": 5.0},
    "R3": {"variant": "R3", "tau": 0.3},
    "R4": {"variant": "R4", "tasks": 99},
    "R5": {"variant": "R5"},
    "R6": {"variant": "R6"},
}
# Rounding errors of R5's differences, and those magnified by a division by a small |d| or sine.
TOLERANCE = {"R5": 1e-4}


def learner(module: nn.Module, name: str, lr: float = LR, loss: Any = loss, **options) -> GSL:
    options = {"inner_steps": 2, **options}
    return GSL(module, loss, inner_lr=lr, **VARIANTS[name], **options)


def second(model: MetaLearner, batch: TaskBatch) -> Tensor:
    """The meta-gradient of the second meta-step on the same tasks, after a change of state."""
    model.meta_gradient(batch)
    return model.meta_gradient(batch)[0]


def assert_close(name: str, found: Tensor, expected: Tensor) -> None:
    assert (found - expected).norm() <= TOLERANCE.get(name, 1e-6) * expected.norm()


def picked(batch: TaskBatch, order: list[int]) -> TaskBatch:
    parts = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    return TaskBatch(*(part[order] for part in parts))


@pytest.mark.parametrize("name", VARIANTS)
def test_invariant_to_the_order_of_tasks(name: str) -> None:
    module, batch = mlp().double(), tasks(4)
    shuffled = picked(batch, torch.randperm(4).tolist())
    assert_close(
        name, second(learner(module, name), shuffled), second(learner(module, name), batch)
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_duplicating_every_task_changes_nothing(name: str) -> None:
    module, batch = mlp().double(), tasks(3)
    expected = second(learner(module, name), batch)
    twice = picked(batch, [0, 1, 2, 0, 1, 2])
    assert_close(name, second(learner(module, name), twice), expected)


@settings(max_examples=5)
@pytest.mark.parametrize("name", VARIANTS)
@given(scale=st.floats(0.05, 20))
def test_equivariant_to_the_scale_of_the_loss(name: str, scale: float) -> None:
    """``scale`` times the loss with the same inner steps gives ``scale`` times the gradient."""
    module, batch = mlp().double(), tasks(3)
    scaled = learner(module, name, LR / scale, lambda output, y: scale * loss(output, y))
    assert_close(name, second(scaled, batch), scale * second(learner(module, name), batch))


class Rotated(nn.Module):
    """A linear classifier whose weight is ``turn @ theta``."""

    def __init__(self, theta: Tensor, turn: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)
        self.register_buffer("turn", turn)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ (self.turn @ self.theta).view(16, WAYS)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "R2p"])
def test_equivariant_to_rotations_of_the_parameters(name: str) -> None:
    """With a single parameter tensor, scopes by layer and of the whole vector are the same."""
    size = 16 * WAYS
    turn = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    theta, batch = torch.randn(size, dtype=torch.float64), tasks(3)
    straight = learner(Rotated(theta, torch.eye(size, dtype=torch.float64)), name)
    rotated = learner(Rotated(turn.T @ theta, turn), name)
    assert_close(name, turn @ second(rotated, batch), second(straight, batch))


@pytest.mark.parametrize("variant", ["similarity", "R1", "R2", "R2p", "inner-lr"])
def test_zero_eta_is_bitwise_fomaml(variant: str) -> None:
    module, batch = MODULES["running batch norm"](), tasks(3, torch.float32)
    options = {"variant": variant}
    if variant == "inner-lr":
        options = {"variant": "R1", "magnitude": variant}
    for extra in ({"eta": 0.0}, {"schedule": "late:2"}):
        if extra.get("schedule") and variant in ("R2", "R2p"):
            continue  # their weights are still one, but are multiplied
        found, _ = GSL(module, loss, inner_lr=LR, **options, **extra).meta_gradient(batch)
        assert torch.equal(found, FOMAML(module, loss, inner_lr=LR).meta_gradient(batch)[0])


@settings(max_examples=15)
@given(share=st.floats(0, 2), lam_2=st.floats(0.01, 100))
def test_the_l2_loss_interpolates_fomaml_and_the_support_gradient(
    share: float, lam_2: float
) -> None:
    module, batch = mlp().double(), tasks(3)

    def row(eta: float) -> Tensor:
        options = {"eta": eta, "lam_c": 0.0, "lam_2": lam_2, "magnitude": "none"}
        model = GSL(module, loss, inner_lr=LR, variant="R1", **options)
        return model.meta_gradient(batch)[0]

    fomaml = reference_meta_gradients(module, batch, 1, second_order=False).mean(0)
    params = list(module.parameters())
    support = sum(
        torch.cat([g.flatten() for g in torch.autograd.grad(loss(module(x), y), params)])
        for x, y in zip(batch.support_x, batch.support_y, strict=True)
    ) / len(batch)
    torch.testing.assert_close(row(1 / lam_2), support)
    torch.testing.assert_close(row(share / lam_2), (1 - share) * fomaml + share * support)


@pytest.mark.parametrize("magnitude", ["none", "norm-match", "ratio", "clip", "inner-lr"])
def test_the_cosine_correction_is_orthogonal(magnitude: str) -> None:
    module, batch = mlp().double(), tasks(4)
    options = {"variant": "R1", "eta": 0.7, "magnitude": magnitude}
    model = GSL(module, loss, inner_lr=LR, inner_steps=2, **options)
    u = reference_meta_gradients(module, batch, 2, second_order=False)
    moved = model._task_gradients(batch)[0].meta() - u
    assert (moved.norm(dim=1) > 1e-3 * u.norm(dim=1)).all()
    assert ((moved * u).sum(1).abs() < 1e-9 * moved.norm(dim=1) * u.norm(dim=1)).all()


@pytest.mark.parametrize("steps", [1, 2])
def test_inner_lr_rescales_the_correction_to_the_curvature_norm(steps: int) -> None:
    module, batch = mlp().double(), tasks(4)
    options = {"variant": "R1", "eta": 0.4, "lam_2": 0.2, "magnitude": "inner-lr"}
    model = GSL(module, loss, inner_lr=LR, inner_steps=steps, **options)
    u = reference_meta_gradients(module, batch, steps, second_order=False)
    moved = model._task_gradients(batch)[0].meta() - u
    for i, (x, y) in enumerate(zip(batch.support_x, batch.support_y, strict=True)):
        params = list(module.parameters())
        first = torch.autograd.grad(loss(module(x), y), params)
        after = copy.deepcopy(module)
        with torch.no_grad():
            for p, g in zip(after.parameters(), first, strict=True):
                p -= LR * g
        then = torch.autograd.grad(loss(after(x), y), list(after.parameters()))
        pairs = zip(first, then, strict=True)
        bend = torch.cat([(a - b).flatten() for a, b in pairs]).norm()
        expected = 0.4 * bend / torch.cat([g.flatten() for g in first]).norm() * u[i].norm()
        torch.testing.assert_close(moved[i].norm(), expected)


def test_inner_lr_after_a_failed_meta_batch() -> None:
    module, batch = mlp().double(), tasks(3)
    model, other = (learner(module, "R1 inner-lr") for _ in range(2))
    wrong = batch.query_y.clone()
    wrong[2] = 99
    with pytest.raises(IndexError):
        model.step(TaskBatch(batch.support_x, batch.support_y, batch.query_x, wrong))
    assert torch.equal(model.meta_gradient(batch)[0], other.meta_gradient(batch)[0])


@pytest.mark.parametrize("name", ["R5", "R6"])
def test_r5_and_r6_are_exact(name: str) -> None:
    for key, make in MODULES.items():
        module, batch = make().double(), tasks(2)
        exact = reference_meta_gradients(module, batch, 2, second_order=True).mean(0)
        found = learner(module, name).meta_gradient(batch)[0]
        assert (found - exact).norm() <= {"R5": 1e-4, "R6": 1e-9}[name] * exact.norm(), key


INNER: dict[str, Adaptation] = {
    "sgd": SGD(LR, 2),
    "momentum": SGD(0.2, 2, momentum=0.8),
    "adam": Adam(0.05, 2, eps=1e-3),
}


def second_gradients(
    module: nn.Module, inner: Adaptation, way: MetaGradient, batch: TaskBatch
) -> Tensor:
    """Meta-gradients of the tasks in their second meta-step."""
    model = MetaLearner(
        module, loss, adaptation=inner, metagrad=way, aggregation=Mean(), engine="loop"
    )
    model.meta_gradient(batch)
    return model._task_gradients(batch)[0].meta()


@pytest.mark.parametrize("adaptation", [*INNER, "learned rates"])
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "R3"])
def test_every_inner_loop(name: str, adaptation: str) -> None:
    module, batch, size = mlp().double(), tasks(3), 163
    inner = INNER.get(adaptation) or MetaSGD(LR, 2)
    exact, first, found = (
        second_gradients(module, inner, way, batch)
        for way in (Exact(), FirstOrder(), gsl_variant(**VARIANTS[name]))
    )
    if name in ("R5", "R6"):
        assert (found - exact).norm() <= 1e-3 * exact.norm()
        return
    assert found.isfinite().all()
    assert torch.equal(found, first) == (name == "R0")
    # Learned rates; those of all steps but the last depend on the gradient of the similarity loss.
    similarity = name in ("default", "cosine") and adaptation == "learned rates"
    assert torch.equal(found[:, size:], first[:, size:]) != similarity
    if name == "R4":
        assert (found - exact)[:, :size].norm() <= (first - exact)[:, :size].norm()


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "R3"])
def test_learned_rates_do_not_affect_the_comparison(name: str) -> None:
    """The parameters' part equals that of plain gradient descent at the same rates."""
    module, batch = mlp().double(), tasks(3)
    options = VARIANTS[name]
    if name in ("default", "R1", "R1 by layer", "R2", "R2p"):
        options = {**options, "lam_2": 0.1}
    plain, learned = (
        second_gradients(module, inner, gsl_variant(**options), batch)
        for inner in (SGD(LR), MetaSGD(LR))
    )
    assert_close(name, learned[:, : plain.shape[1]], plain)


@pytest.mark.parametrize("adaptation", sorted(set(ADAPTATIONS) - {"warpgrad", *CLOSED_FORM}))
def test_the_variant_is_a_configuration_option(adaptation: str) -> None:
    kinds = {
        "similarity": metagrad.GSL,
        "R0": metagrad.FirstOrder,
        "R1": metagrad.GSLCorrection,
        "R2": metagrad.LayerWeights,
        "R2p": metagrad.ElementWeights,
        "R4": metagrad.CalibratedGSL,
        "R5": metagrad.CentralDifference,
        "R6": metagrad.Recursion,
    }
    for variant, kind in kinds.items():
        model = build(
            "gsl",
            mlp(),
            loss,
            inner_lr=0.01,
            adaptation=adaptation,
            metagrad_options={"variant": variant},
        )
        assert type(model.metagrad) is kind
        assert model.step(tasks(2, torch.float32)).query_loss.isfinite().all()
    assert type(gsl_variant()) is type(build("gsl", mlp(), loss, inner_lr=1).metagrad)
    assert type(gsl_variant()) is metagrad.GSL
    assert gsl_variant("R6").hvp == "forward"
    assert gsl_variant("R6", hvp="reverse").hvp == "reverse"


def test_r6_explains_a_missing_forward_derivative() -> None:
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 1)
    batch = TaskBatch(x, y, x, y)

    def mse(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(output, target.detach())

    with pytest.raises(NotImplementedError, match="Use hvp='reverse'"):
        GSL(nn.Linear(4, 1), mse, inner_lr=0.1, variant="R6", engine="loop").step(batch)
    GSL(nn.Linear(4, 1), mse, inner_lr=0.1, variant="R6", hvp="reverse", engine="loop").step(batch)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"or R0, R1, R2, R2p, R3, R4, R5, R6; got 'R7'"):
        gsl_variant("R7")
    with pytest.raises(ValueError, match=r"\(R3\) weights tasks: use aggregation='gsl'"):
        gsl_variant("R3")
    with pytest.raises(TypeError, match="magnitude"):
        gsl_variant("R2", magnitude="inner-lr")
    with pytest.raises(TypeError, match="eta"):
        gsl_variant("R4", eta=1.0)
    with pytest.raises(ValueError, match="CurvatureGSL does not declare task_batchable"):
        learner(mlp(), "R1 inner-lr", engine="batched").step(tasks(2, torch.float32))
    with pytest.raises(ValueError, match="CurvatureGSL"):
        learner(mlp(), "R1 inner-lr", engine="mlp").step(tasks(2, torch.float32))
    with pytest.raises(ValueError, match="took no step"):
        learner(mlp(), "R1 inner-lr", inner_steps=0).step(tasks(2, torch.float32))
