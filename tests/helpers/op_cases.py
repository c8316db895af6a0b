"""Every op with its reference implementation and inputs: the table of the op tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops, reference
from fastmeta.ops.weights import noise_level

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Inputs = Callable[[torch.dtype, int, int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """An op as a function of tensors.

    Attributes:
        name: of the case.
        op: the op under test; takes the tensors of ``inputs``.
        reference: its reference implementation.
        inputs: makes tensors for a dtype, ``T`` tasks and ``P`` columns.
        scalar: whether the inputs are similarity scalars, which have no half-precision form.
    """

    name: str
    op: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Inputs
    scalar: bool = False

    def __str__(self) -> str:
        return self.name


def thirds(columns: int) -> tuple[int, ...]:
    """Uneven segment bounds, one segment empty."""
    first, second = columns // 3, columns // 3 + columns // 2
    return (0, first, first, second, columns)


def rows(dtype: torch.dtype, tasks: int, columns: int) -> Tensor:
    return torch.randn(tasks, columns, dtype=torch.float64).to(dtype)


def acc(dtype: torch.dtype) -> torch.dtype:
    return reference.accumulation_dtype(dtype)


def _statistics(dtype: torch.dtype, tasks: int, columns: int) -> Tensor:
    u, v = rows(torch.float64, tasks, columns), rows(torch.float64, tasks, columns)
    bounds = (0, columns // 3, columns)
    return reference.row_similarity(u, u + v, bounds).to(acc(dtype))


def _gsl_inputs(dtype: torch.dtype, tasks: int, columns: int) -> tuple[Tensor, ...]:
    a = acc(dtype)
    weight = torch.rand(tasks, dtype=torch.float64).add(0.1).to(a)
    return _statistics(dtype, tasks, columns), weight, torch.full((1,), 0.3, dtype=a)


def _mean_stats(dtype: torch.dtype, tasks: int, columns: int) -> tuple[Tensor, ...]:
    return (reference.mean_similarity(rows(torch.float64, tasks, columns)).to(acc(dtype)),)


def _split(dtype: torch.dtype, tasks: int, columns: int) -> list[Tensor]:
    """Parameters with a task dimension: a matrix where the size allows, a vector, an empty one."""
    half = columns // 2
    shapes = [(tasks, 2, half // 2), (tasks, columns - 2 * (half // 2)), (tasks, 0)]
    return [torch.randn(s, dtype=torch.float64).to(dtype) for s in shapes]


def _pack_inputs(dtype: torch.dtype, tasks: int, columns: int) -> tuple[Tensor, ...]:
    return tuple(t[i] for i in range(tasks) for t in _split(dtype, tasks, columns))


def _step_inputs(rate: str) -> Inputs:
    def make(dtype: torch.dtype, tasks: int, columns: int) -> tuple[Tensor, ...]:
        theta, grad = _split(dtype, tasks, columns), _split(dtype, tasks, columns)
        alpha = [torch.rand(t.shape if rate == "each" else (), dtype=acc(dtype)) for t in theta]
        return *theta, *grad, *alpha

    return make


def _step(function: Callable[..., Any], frozen: list[bool]) -> Callable[..., Any]:
    def call(*tensors: Tensor) -> Any:
        n = len(frozen)
        return function(tensors[:n], tensors[n : 2 * n], tensors[2 * n :], frozen)

    return call


ADAMW = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.2, "step": 3}


def _adamw_inputs(lists: int, squares: int) -> Inputs:
    """`lists` lists of tensors, of which number `squares` holds the second moments."""

    def make(dtype: torch.dtype, tasks: int, columns: int) -> tuple[Tensor, ...]:
        kinds = [_split(dtype, tasks, columns) for _ in range(lists)]
        kinds[squares] = [t.abs() + 0.5 for t in kinds[squares]]
        return tuple(t for kind in kinds for t in kind)

    return make


def _adamw(op: Callable[..., Any], lists: int, *settings: Any, **named: Any) -> Callable[..., Any]:
    def call(*tensors: Tensor) -> Any:
        n = len(tensors) // lists
        found = op(*(tensors[k * n : (k + 1) * n] for k in range(lists)), *settings, **named)
        return list(found) if settings else [t for kind in found for t in kind]

    return call


def _tasks_of(tensors: tuple[Tensor, ...]) -> int:
    return len(tensors) // 3


def _hvp_inputs(dtype: torch.dtype, tasks: int, columns: int) -> tuple[Tensor, ...]:
    eps = torch.rand(tasks, dtype=acc(dtype)).add(0.5)
    return rows(dtype, tasks, columns), rows(dtype, tasks, columns), eps


def _difference_inputs(each: bool) -> Inputs:
    def make(dtype: torch.dtype, tasks: int, columns: int) -> tuple[Tensor, ...]:
        *_, eps = _hvp_inputs(dtype, tasks, columns)
        alpha = torch.rand((columns,) if each else (1,), dtype=acc(dtype))
        return *(rows(dtype, tasks, columns) for _ in range(3)), eps, alpha

    return make


def _combine(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(coef: Tensor, *buffers: Tensor) -> Any:
        columns = buffers[0].shape[1]
        bounds = (0, columns) if coef.shape[1] == 1 else thirds(columns)
        return function(buffers, coef, bounds)

    return call


def _combine_inputs(buffers: int, segments: int) -> Inputs:
    def make(dtype: torch.dtype, tasks: int, columns: int) -> tuple[Tensor, ...]:
        coef = torch.randn(tasks, segments, buffers, dtype=acc(dtype))
        return coef, *(rows(dtype, tasks, columns) for _ in range(buffers))

    return make


def _gsl(magnitude: str, number: int) -> Case:
    options: dict[str, Any] = {"lam_c": 0.7, "lam_2": 0.2, "ratio": 0.5}
    return Case(
        f"gsl_coefficients {magnitude}",
        lambda *a: ops.gsl_coefficients(*a, magnitude=magnitude, **options),
        lambda *a: reference.gsl_coefficients(
            *a, 0.7, 0.2, number, 0.5, 1e-12, noise_level(a[0].dtype)
        ),
        _gsl_inputs,
        scalar=True,
    )


CASES = (
    Case(
        "gram",
        lambda g: ops.gram(g, thirds(g.shape[1])),
        lambda g: reference.gram(g, thirds(g.shape[1])),
        lambda *size: (rows(*size),),
    ),
    Case(
        "row_similarity",
        lambda a, b: ops.row_similarity(a, b, thirds(a.shape[1])),
        lambda a, b: reference.row_similarity(a, b, thirds(a.shape[1])),
        lambda *size: (rows(*size), rows(*size)),
    ),
    Case(
        "mean_similarity",
        ops.mean_similarity,
        reference.mean_similarity,
        lambda *size: (rows(*size),),
    ),
    Case("combine", _combine(ops.combine), _combine(reference.combine), _combine_inputs(1, 1)),
    Case(
        "combine two by segment",
        _combine(ops.combine),
        _combine(reference.combine),
        _combine_inputs(2, 4),
    ),
    Case(
        "pack",
        lambda *t: ops.pack(t, _tasks_of(t)),
        lambda *t: reference.pack(t, _tasks_of(t)),
        _pack_inputs,
    ),
    Case(
        "inner_step",
        _step(ops.inner_step, [False] * 3),
        _step(reference.inner_step, [False] * 3),
        _step_inputs("one"),
    ),
    Case(
        "inner_step by parameter, one frozen",
        _step(ops.inner_step, [False, True, False]),
        _step(reference.inner_step, [False, True, False]),
        _step_inputs("each"),
    ),
    Case(
        "adamw_step",
        _adamw(ops.adamw_step, 4, **ADAMW),
        _adamw(reference.adamw_step, 4, 0.1, 0.9, 0.99, 1e-3, 0.2, 3),
        _adamw_inputs(4, 3),
    ),
    Case(
        "adamw_adjoint",
        _adamw(ops.adamw_adjoint, 6, **ADAMW),
        _adamw(reference.adamw_adjoint, 6, 0.1, 0.9, 0.99, 1e-3, 0.2, 3),
        _adamw_inputs(6, 2),
    ),
    Case("hvp_perturb", ops.hvp_perturb, reference.hvp_perturb, _hvp_inputs),
    Case("hvp_difference", ops.hvp_difference, reference.hvp_difference, _difference_inputs(False)),
    Case(
        "hvp_difference by parameter",
        ops.hvp_difference,
        reference.hvp_difference,
        _difference_inputs(True),
    ),
    *(_gsl(m, k) for k, m in enumerate(("none", "norm-match", "ratio", "clip"))),
    Case(
        "agreement_weights",
        ops.agreement_weights,
        lambda s: reference.task_weights(s, 0, 1.0, 0.0, 1.0),
        _mean_stats,
        scalar=True,
    ),
    Case(
        "gsl_task_weights linear",
        lambda s: ops.gsl_task_weights(s, rule="linear", lam_2=1e-4),
        lambda s: reference.task_weights(s, 1, 1.0, 1e-4, 1.0),
        _mean_stats,
        scalar=True,
    ),
    Case(
        "gsl_task_weights softmax",
        lambda s: ops.gsl_task_weights(s, lam_2=1e-4, tau=0.5),
        lambda s: reference.task_weights(s, 2, 1.0, 1e-4, 0.5),
        _mean_stats,
        scalar=True,
    ),
)


def listed(result: Any) -> list[Tensor]:
    """The outputs as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


# Relative to the largest sum of absolute terms.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,  # the baseline instruction set has few partial sums
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def check(case: Case, tensors: tuple[Tensor, ...], results: list[Tensor]) -> None:
    """Compares an op's results with its reference in float64."""
    wide = [t.double() for t in tensors]
    exact = listed(case.reference(*wide))
    sizes = exact if case.scalar else listed(case.reference(*(t.abs() for t in wide)))
    if any(
        part in case.name for part in ("hvp", "inner_step", "adamw")
    ):  # differences: no sum of absolute terms
        sizes = [e.abs() + sum(t.abs().max() for t in wide if t.numel()) for e in exact]
    for found, expected, size in zip(results, exact, sizes, strict=True):
        assert found.shape == expected.shape
        if found.numel() == 0:
            continue
        tolerance = TOLERANCE[found.dtype] * (20 if case.scalar else 1)
        bound = tolerance * size.abs().clamp_min(size.abs().max() * (1 if case.scalar else 1e-3))
        subnormal = torch.finfo(found.dtype).smallest_normal * torch.finfo(found.dtype).eps
        assert ((found.double() - expected).abs() <= bound + subnormal).all(), (found, expected)
