"""Approximate meta-gradients of training runs against closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastmeta.adaptation import SGD, Adam, AdamW, Adaptation, Muon, Scheduled
from fastmeta.trajectory import (
    Exact,
    FirstOrder,
    Implicit,
    Metagradient,
    Sama,
    compare_with_exact,
    metagradient,
)
from tests.trajectory.problems import OPTIMIZERS, Problem

SIZE, SETTINGS = 5, 3


class Quadratic:
    """`L_k = theta' A_k theta / 2 - theta' B_k eta`, and a quadratic outer loss.

    `theta` are two tensors, `eta` the meta-parameters.
    """

    def __init__(self, kinds: int = 1) -> None:
        roots = torch.randn(kinds, SIZE, SIZE).double() / math.sqrt(SIZE)
        self.matrices = roots @ roots.mT + 0.5 * torch.eye(SIZE).double()
        self.forces = torch.randn(kinds, SIZE, SETTINGS).double()
        self.target, self.direct = torch.randn(SIZE).double(), torch.randn(SETTINGS).double()
        self.meta = torch.randn(SETTINGS).double()
        self.start = self.split(torch.randn(SIZE).double())
        self.steepest = torch.linalg.eigvalsh(self.matrices).max().item()

    @staticmethod
    def split(theta: Tensor) -> dict[str, Tensor]:
        return {"a": theta[:2].view(2, 1), "b": theta[2:]}

    def inner(self, params: Any, meta: Tensor, kind: int) -> Tensor:
        theta = flat(params)
        force = self.forces[kind] @ meta
        return theta @ self.matrices[kind] @ theta / 2 - theta @ force

    def outer(self, params: Any, meta: Tensor) -> Tensor:
        return (flat(params) - self.target).square().sum() / 2 + self.direct @ meta

    def run(self, kinds: Sequence[int], **options: Any) -> Metagradient:
        options = {"params": self.start, "optimizer": SGD(1 / self.steepest), **options}
        return metagradient(self.inner, self.outer, meta=self.meta, batches=kinds, **options)

    def minimum(self) -> Tensor:
        return torch.linalg.solve(self.matrices[0], self.forces[0] @ self.meta)


def flat(params: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tree_leaves(params)])


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm()


def test_implicit_at_the_minimum() -> None:
    """Both solvers, a long run and the derivative of the minimum, which is linear in `eta`."""
    problem = Quadratic()
    v = problem.minimum() - problem.target
    inverse = torch.linalg.solve(problem.matrices[0], v)
    expected = problem.direct + problem.forces[0].T @ inverse
    # The slowest mode of the run decays by 1 - 0.5 / steepest in each step.
    steps = math.ceil(-28 / math.log(1 - 0.5 / problem.steepest))
    methods = [
        Exact(),
        Implicit(steps=SIZE),
        Implicit("neumann", steps, scale=1 / problem.steepest),
    ]
    for method in methods:
        found = problem.run([0] * steps, method=method)
        assert_near(flat(found.final_params), problem.minimum())
        assert_near(found.meta, expected)
        if found.info.residual is not None:
            assert found.info.residual < 1e-9
            assert flat(found.params).count_nonzero() == 0
    assert found.info.residual is not None


@pytest.mark.parametrize("steps", [1, 3])
def test_a_neumann_series_is_a_truncated_run_at_the_minimum(steps: int) -> None:
    problem, lr = Quadratic(), 0.1
    at_minimum = {"params": problem.split(problem.minimum()), "optimizer": SGD(lr)}
    unrolled = problem.run([0] * steps, **at_minimum)
    found = problem.run([0] * steps, method=Implicit("neumann", steps, scale=lr), **at_minimum)
    assert_near(found.meta, unrolled.meta)
    v = problem.minimum() - problem.target
    matrix = torch.eye(SIZE).double() - lr * problem.matrices[0]
    left = torch.linalg.matrix_power(matrix, steps) @ v
    torch.testing.assert_close(found.info.residual, left.norm() / v.norm())


def test_damping_and_batches() -> None:
    """The matrix is the mean Hessian of the last batches, plus the damping."""
    problem = Quadratic(3)
    for count, kinds in ((1, [2]), (2, [1, 2]), (9, [0, 1, 2])):
        method = Implicit(steps=SIZE, damping=0.3, batches=count)
        found = problem.run([0, 1, 2], method=method)
        v = flat(found.final_params) - problem.target
        matrix = problem.matrices[kinds].mean(0) + 0.3 * torch.eye(SIZE).double()
        x = torch.linalg.solve(matrix, v)
        assert_near(found.meta, problem.direct + problem.forces[kinds].mean(0).T @ x)


def test_where_the_hessian_is_negative() -> None:
    problem = Quadratic()
    problem.matrices = -problem.matrices
    found = problem.run([0], method=Implicit(), optimizer=SGD(0.1))
    assert found.info.residual == 1
    assert_near(found.meta, problem.direct)


def test_sama_of_gradient_descent() -> None:
    problem = Quadratic(2)
    found = problem.run([0, 1, 0, 1], method=Sama(), optimizer=SGD(0.2, momentum=0.9))
    v = flat(found.final_params) - problem.target
    # A difference of gradients that is divided by 1e-5.
    assert_near(found.meta, problem.direct + 0.2 * problem.forces[1].T @ v, 1e-8)
    assert flat(found.params).count_nonzero() == 0


def test_sama_of_adam() -> None:
    """The diagonal of Choe et al.: `(1 - b1) b2 s - b1 (1 - b2) g m`, over `(new s)^1.5`."""
    problem = Quadratic()
    lr, first, second, steps = 0.1, 0.8, 0.95, 4
    adam = Adam(lr, betas=(first, second), eps=1e-30)
    found = problem.run([0] * steps, method=Sama(), optimizer=adam)
    theta = flat(found.final_params)
    g = problem.matrices[0] @ theta - problem.forces[0] @ problem.meta
    mean, square = (
        torch.cat([t.flatten() for t in part]) for part in halves(found.state.optimizer)
    )
    new = second * square + (1 - second) * g * g
    diagonal = ((1 - first) * second * square - first * (1 - second) * g * mean) / new**1.5
    diagonal *= lr * math.sqrt(1 - second**steps) / (1 - first**steps)
    expected = problem.direct + problem.forces[0].T @ (diagonal * (theta - problem.target))
    assert_near(found.meta, expected, 1e-8)


def halves(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]


def run(problem: Problem, **options: Any) -> Metagradient:
    options = {"optimizer": Adam(0.01, eps=1e-3), "batches": problem.batches, **options}
    options = {"params": problem.params, "meta": problem.meta, **options}
    return metagradient(problem.inner, problem.outer, **options)


def test_sama_of_a_network() -> None:
    """The mixed derivative of autograd at the last parameters, and the outer loss's own."""
    problem = Problem(4, dropout=0)
    found = run(problem, method=Sama(), optimizer=SGD(0.3))
    last = {n: t.requires_grad_() for n, t in found.final_params.items()}
    meta = {**problem.meta, "weights": problem.meta["weights"].clone().requires_grad_()}
    v = torch.autograd.grad(problem.outer(last, meta), list(last.values()))
    loss = problem.inner(last, meta, problem.batches[3])
    grads = torch.autograd.grad(loss, list(last.values()), create_graph=True)
    expected = torch.autograd.grad(grads, meta["weights"], [-0.3 * t for t in v])[0]
    assert_near(found.meta["weights"], expected, 1e-7)
    # It has no influence on the last inner loss; its derivative is that of the outer loss.
    decay = 0.1 * problem.meta["decay"][1].exp()
    torch.testing.assert_close(found.meta["decay"][1], decay)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", [Sama(), Implicit(steps=3, batches=2)], ids=repr)
def test_every_inner_optimizer(name: str, method: Any) -> None:
    problem = Problem(3)
    torch.manual_seed(1)
    found = run(problem, method=method, optimizer=OPTIMIZERS[name](problem.meta))
    after = torch.rand(1)
    torch.manual_seed(1)
    exact = run(problem, optimizer=OPTIMIZERS[name](problem.meta))
    assert torch.rand(1) == after
    torch.testing.assert_close(found.final_params, exact.final_params, rtol=0, atol=0)
    assert all(t.isfinite().all() for t in tree_leaves(found.meta))
    assert found.meta["inputs"].count_nonzero() > 0


def test_the_end_of_a_continued_run() -> None:
    problem = Problem(6, dropout=0)
    for method in (Sama(), Implicit(steps=2, batches=2)):
        whole = run(problem, method=method)
        first = run(problem, batches=problem.batches[:3])
        rest = {"batches": problem.batches[3:], "params": first.final_params}
        second = run(problem, method=method, state=first.state, **rest)
        torch.testing.assert_close(second.meta, whole.meta, rtol=1e-12, atol=0)


def test_parameters_that_are_not_moved() -> None:
    """They are constants of the minimum: the system is that of the others."""

    class FirstOnly(SGD):
        def adapts(self, step: int, params: Sequence[Tensor]) -> list[bool]:
            return [i == 0 for i in range(len(params))]

    problem = Quadratic()
    found = problem.run([0], method=Implicit(steps=SIZE), optimizer=FirstOnly(0.1))
    v = flat(found.final_params)[:2] - problem.target[:2]
    x = torch.linalg.solve(problem.matrices[0][:2, :2], v)
    assert_near(found.meta, problem.direct + problem.forces[0][:2].T @ x)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.1, momentum=0.5), AdamW(0.1, eps=1e-3), Scheduled(Muon(0.1), "warmup:3")],
    ids=["sgd", "adamw", "muon"],
)
def test_first_order_is_exact_without_hessians(optimizer: Adaptation) -> None:
    """Inner losses that are linear in the parameters, but not in the meta-parameters."""
    sizes = {"w": torch.randn(3, 4).double(), "u": torch.randn(4, 2).double()}
    slopes = [{n: torch.randn_like(t) for n, t in sizes.items()} for _ in range(4)]

    def linear(params: Any, meta: Tensor, batch: Any) -> Tensor:
        return sum((meta.sin() * params[n] * batch[n]).sum() for n in params)  # type: ignore[return-value]

    def curved(params: Any, meta: Tensor, batch: Any) -> Tensor:
        return linear(params, meta, batch) + params["w"].square().sum()

    def outer(params: Any, meta: Tensor) -> Tensor:
        return (params["w"] @ params["u"]).square().sum() * meta

    meta, results = torch.tensor(0.7).double(), []
    for loss in (linear, curved):
        for method in (FirstOrder(), Exact()):
            found = metagradient(
                loss, outer, sizes, meta, slopes, optimizer=optimizer, method=method
            )
            results.append(torch.cat([flat(found.params), found.meta.view(1)]))
    assert_near(results[0], results[1], 1e-12)
    assert (results[2] - results[3]).norm() > 1e-3 * results[3].norm()


def test_without_meta_parameters() -> None:
    problem = Quadratic()
    for method in (Implicit(), Sama()):
        found = metagradient(
            lambda p, _, kind: problem.inner(p, problem.meta, kind),
            lambda p, _: problem.outer(p, problem.meta),
            problem.start,
            None,
            [0, 0],
            optimizer=SGD(0.1),
            method=method,
        )
        assert found.meta is None
        assert flat(found.params).count_nonzero() == 0
        assert found.info.residual is None


def test_info() -> None:
    problem = Problem(5, dropout=0)
    cases = [
        ({}, "Nothing: the derivatives are exact up to rounding."),
        ({"truncate": 5}, "Nothing: the derivatives are exact up to rounding."),
        ({"truncate": 2}, "The influence of the first 3 of 5 inner steps."),
        ({"hvp": "difference"}, "Central differences replace second derivatives."),
        (
            {"method": FirstOrder(), "truncate": 2},
            "The influence of the first 3 of 5 inner steps. The Hess",
        ),
        ({"method": Sama()}, "The path to the last parameters, and the inner loss's Hessian"),
        ({"method": Implicit()}, "The path to the last parameters, which are taken for a minimum"),
    ]
    for options, dropped in cases:
        info = run(problem, **options).info
        assert info.dropped.startswith(dropped)
        assert (info.residual is not None) == isinstance(info.method, Implicit)
    assert repr(Sama(0.1)) == "Sama(radius=0.1)"


def test_comparison_with_the_exact_meta_gradient() -> None:
    problem = Problem(5)
    norm = nn.BatchNorm1d(4, affine=False).double()

    def inner(params: Any, meta: Any, batch: Any) -> Tensor:
        x, *rest = batch
        return problem.inner(params, meta, (norm(x), *rest))

    def compare(**options: Any) -> Any:
        return compare_with_exact(
            inner,
            problem.outer,
            problem.params,
            problem.meta,
            problem.batches,
            optimizer=AdamW(0.05, eps=1e-3),
            buffers=norm.buffers(),
            **options,
        )

    before, random = [b.clone() for b in norm.buffers()], torch.get_rng_state()
    same = compare(memory="sqrt")
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(list(norm.buffers()), before, rtol=0, atol=0)
    for part in (same.params, same.meta):
        assert part.relative_error < 1e-12
        assert (part.cosine - 1).abs() < 1e-12
    for options in ({"method": FirstOrder()}, {"truncate": 2}, {"method": Implicit()}):
        found = compare(**options)
        for part, own, exact in (
            (found.params, found.own.params, same.exact.params),
            (found.meta, found.own.meta, same.exact.meta),
        ):
            a, b = flat(own), flat(exact)
            torch.testing.assert_close(part.relative_error, (a - b).norm() / b.norm())
            torch.testing.assert_close(
                part.cosine, a.dot(b) / (a.norm() * b.norm()).clamp(min=1e-300)
            )
            assert part.relative_error > 1e-3
    assert set(found.meta.layer_error) >= {"decay.0", "decay.1", "inputs", "log_lr", "weights"}
    lines = str(found).splitlines()
    assert lines[0] == f"left out: {found.own.info.dropped}"
    assert lines[-1].startswith("residual of the solver: ")
    plain = compare_with_exact(
        lambda p, _, batch: problem.inner(p, problem.meta, batch),
        lambda p, _: problem.outer(p, problem.meta),
        problem.params,
        None,
        iter(problem.batches),
        optimizer=SGD(0.1),
        method=FirstOrder(),
    )
    assert plain.meta is None
    assert 0.5 < plain.params.cosine < 1


def test_invalid_options() -> None:
    problem = Problem(2)
    for method in (Sama(), Implicit()):
        for options in ({"truncate": 1}, {"hvp": "forward"}, {"batches": []}):
            with pytest.raises(ValueError, match="differentiates the end of a run alone; expected"):
                run(problem, method=method, **options)
        with pytest.raises(ValueError, match="from 2 to 2, the steps that are differentiated"):
            metagradient(
                problem.inner,
                problem.outer,
                problem.params,
                problem.meta,
                problem.batches,
                optimizer=SGD(0.1),
                outer_batches={1: 1.0},
                method=method,
            )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"solver": "lu"}, "solver must be one of cg, neumann"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"damping": -1.0}, "damping must be"),
        ({"batches": 0}, "batches must be an integer of at least 1"),
        ({"scale": 0.1}, "expected scale with solver='neumann' only; got solver='cg', scale=0.1"),
        ({"solver": "neumann"}, "got solver='neumann', scale=None"),
        ({"solver": "neumann", "scale": 0.0}, "scale must be a positive"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            Implicit(**options)
    with pytest.raises(ValueError, match="radius must be"):
        Sama(radius=0.0)
