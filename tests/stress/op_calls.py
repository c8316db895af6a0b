"""Valid calls of every public op, with its reference implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastmeta import ops, reference
from fastmeta.ops.weights import noise_level
from fastmeta.reference import accumulation_dtype as acc
from tests.stress.block_calls import (
    cross_entropy,
    gelu,
    layer_norm,
    linear_cross_entropy,
    rms_norm,
    silu,
)
from tests.stress.network_calls import (
    attention,
    batch_norm_relu,
    conv3x3,
    head_similarity,
    mlp_step,
    sequence_step,
)
from tests.stress.op_tensors import (
    DTYPES,
    LAYOUTS,
    SOLID,
    WIDE,
    Call,
    Draw,
    cut,
    sizes,
    tensor,
    tensors_in,
)


def by_segment(reference_op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Adds default bounds: a single segment."""

    def call(first: Any, *args: Any) -> Tensor:
        *others, bounds = args
        rows = tensors_in(first)
        return reference_op(first, *others, (0, rows[0].shape[1]) if bounds is None else bounds)

    return call


def _reference_combine(buffers: Any, coef: Tensor, bounds: Any) -> Tensor:
    weights = coef[:, None, None] if coef.dim() == 1 else coef
    return by_segment(reference.combine)(tensors_in([buffers]), weights, bounds)


def gram(draw: Draw) -> Call:
    tasks, columns = sizes(draw)
    g = tensor(draw, (tasks, columns), draw(st.sampled_from(DTYPES)))
    return Call(ops.gram, by_segment(reference.gram), [g, cut(draw, columns)])


def pair_cosines(draw: Draw) -> Call:
    def reference_op(g: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(g, dim=1, eps=1e-30)
        return unit @ unit.mT

    g = tensor(draw, sizes(draw), draw(st.sampled_from(WIDE)))
    return Call(
        lambda g: ops.pair_cosines(g @ g.mT), reference_op, [g], smooth=False, corruptible=False
    )


def pair_distances(draw: Draw) -> Call:
    def reference_op(g: Tensor) -> Tensor:
        return (g[:, None] - g[None]).square().sum(-1)

    g = tensor(draw, sizes(draw), draw(st.sampled_from(WIDE)))
    return Call(
        lambda g: ops.pair_distances(g @ g.mT), reference_op, [g], smooth=False, corruptible=False
    )


def row_similarity(draw: Draw) -> Call:
    (tasks, columns), dtype = sizes(draw), draw(st.sampled_from(DTYPES))
    a, b = (tensor(draw, (tasks, columns), dtype) for _ in range(2))
    return Call(
        ops.row_similarity, by_segment(reference.row_similarity), [a, b, cut(draw, columns)]
    )


def mean_similarity(draw: Draw) -> Call:
    g = tensor(draw, sizes(draw), draw(st.sampled_from(DTYPES)))
    return Call(ops.mean_similarity, reference.mean_similarity, [g])


def combine(draw: Draw) -> Call:
    (tasks, columns), dtype = sizes(draw), draw(st.sampled_from(DTYPES))
    buffers = [tensor(draw, (tasks, columns), dtype) for _ in range(draw(st.integers(1, 2)))]
    bounds = cut(draw, columns)
    coef = tensor(draw, (tasks, len(bounds) - 1, len(buffers)), acc(dtype))
    return Call(ops.combine, _reference_combine, [buffers, coef, bounds])


def combine_(draw: Draw) -> Call:
    call = combine(draw)
    buffers, coef, bounds = call.args
    columns, dtype = buffers[0].shape[1], buffers[0].dtype
    pieces = [end - begin for begin, end in pairwise(cut(draw, columns))]
    out = [tensor(draw, (size,), dtype, SOLID) for size in pieces]

    def reference_op(out: Any, *args: Any) -> None:
        total = _reference_combine(*args)
        for target, part in zip(out, total.split([t.numel() for t in out]), strict=True):
            target.copy_(part.view_as(target))

    return Call(ops.combine_, reference_op, [out, buffers, coef, bounds], smooth=False)


def _parameters(draw: Draw, rows: int, dtype: torch.dtype, layouts: Any) -> list[Tensor]:
    """The tensors of this many tasks, one task after another."""
    shapes = draw(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4))
    return [tensor(draw, shape, dtype, layouts) for _ in range(rows) for shape in shapes]


def pack(draw: Draw) -> Call:
    rows = draw(st.integers(1, 4))
    tensors = _parameters(draw, rows, draw(st.sampled_from(DTYPES)), tuple(LAYOUTS))
    return Call(ops.pack, reference.pack, [tensors, rows])


def _flat(draw: Draw, tensors: Sequence[Tensor], rows: int, layouts: Sequence[str]) -> Tensor:
    columns = sum(t.numel() for t in tensors) // rows
    return tensor(draw, (rows, columns), tensors[0].dtype, layouts)


def pack_(draw: Draw) -> Call:
    (tensors, rows), layouts = pack(draw).args, SOLID
    flat = _flat(draw, tensors, rows, layouts)
    return Call(ops.pack_, reference.pack_, [flat, tensors], smooth=False)


def unpack_(draw: Draw) -> Call:
    rows = draw(st.integers(1, 4))
    tensors = _parameters(draw, rows, draw(st.sampled_from(DTYPES)), SOLID)
    flat = _flat(draw, tensors, rows, tuple(LAYOUTS))
    return Call(ops.unpack_, reference.unpack_, [tensors, flat], smooth=False)


def inner_step(draw: Draw, layouts: Sequence[str] = tuple(LAYOUTS)) -> Call:
    dtype = draw(st.sampled_from(DTYPES))
    theta = _parameters(draw, 1, dtype, layouts)
    grad = [tensor(draw, t.shape, dtype) for t in theta]
    alpha: Any = [
        tensor(draw, draw(st.sampled_from([(), (1,), tuple(t.shape)])), acc(dtype)) for t in theta
    ]
    alpha = draw(st.sampled_from([alpha, torch.rand(len(theta)), torch.rand(1), 0.3]))
    frozen = draw(st.lists(st.booleans(), min_size=len(theta), max_size=len(theta)))
    missing = draw(st.lists(st.booleans(), min_size=len(theta), max_size=len(theta)))
    given = [None if m else g for g, m in zip(grad, missing, strict=True)]
    return Call(ops.inner_step, _reference_step, [theta, given, alpha, frozen])


def _reference_step(theta: Any, grad: Any, alpha: Any, frozen: Any) -> tuple[Tensor, ...]:
    wide = acc(theta[0].dtype)
    if isinstance(alpha, int | float):
        alpha = [torch.tensor(alpha, dtype=wide)] * len(theta)
    elif isinstance(alpha, Tensor):
        alpha = list(alpha.reshape(-1).expand(len(theta)))
    rates = [a.reshape(()) if a.numel() == 1 else a for a in alpha]
    stop = [bool(f) or g is None for f, g in zip(frozen or [False] * len(theta), grad, strict=True)]
    grads = [t if g is None else g for t, g in zip(theta, grad, strict=True)]
    return reference.inner_step(theta, grads, [r.to(wide) for r in rates], stop)


def adamw_step(draw: Draw) -> Call:
    return _adamw(draw, ops.adamw_step, reference.adamw_step, 4, 3)


def adamw_adjoint(draw: Draw) -> Call:
    return _adamw(draw, ops.adamw_adjoint, reference.adamw_adjoint, 6, 2)


def _adamw(
    draw: Draw,
    op: Callable[..., Any],
    reference_op: Callable[..., Any],
    lists: int,
    squares: int,
) -> Call:
    """A call with `lists` lists of tensors, of which number `squares` holds second moments."""
    dtype = draw(st.sampled_from(DTYPES))
    first = _parameters(draw, 1, dtype, tuple(LAYOUTS))
    args = [first, *([tensor(draw, t.shape, dtype) for t in first] for _ in range(lists - 1))]
    args[squares] = [t.abs() + 0.5 for t in args[squares]]

    def call(*tensors: Any) -> list[Tensor]:
        found = op(*tensors, lr=0.1, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.2, step=3)
        return [t for kind in found for t in kind]

    return Call(call, lambda *tensors: reference_op(*tensors, 0.1, 0.9, 0.99, 1e-3, 0.2, 3), args)


def inner_step_(draw: Draw) -> Call:
    def reference_op(theta: Any, *args: Any) -> None:
        for old, new in zip(theta, _reference_step(theta, *args), strict=True):
            old.copy_(new)

    return Call(ops.inner_step_, reference_op, inner_step(draw, SOLID).args, smooth=False)


def hvp_radius(draw: Draw) -> Call:
    v = tensor(draw, sizes(draw), draw(st.sampled_from(DTYPES)))

    def reference_op(v: Tensor, radius: Any) -> Tensor:
        norms = v.to(acc(v.dtype)).square().sum(1).sqrt()
        return torch.where(norms > 0, radius / norms, 0)

    return Call(
        ops.hvp_radius,
        reference_op,
        [v, draw(st.sampled_from([0.01, torch.tensor(0.1)]))],
        False,
        False,
    )


def hvp_perturb(draw: Draw) -> Call:
    (tasks, columns), dtype = sizes(draw), draw(st.sampled_from(DTYPES))
    theta, v = (tensor(draw, (tasks, columns), dtype) for _ in range(2))
    return Call(
        ops.hvp_perturb, reference.hvp_perturb, [theta, v, tensor(draw, (tasks,), acc(dtype))]
    )


def hvp_difference(draw: Draw) -> Call:
    (tasks, columns), dtype = sizes(draw), draw(st.sampled_from(DTYPES))
    rows = [tensor(draw, (tasks, columns), dtype) for _ in range(3)]
    eps = tensor(draw, (tasks,), acc(dtype), SOLID)
    eps += eps.sign()
    alpha = tensor(draw, (draw(st.sampled_from([1, columns])),), acc(dtype))
    return Call(ops.hvp_difference, reference.hvp_difference, [*rows, eps, alpha])


def _stats(draw: Draw, of_rows: bool) -> Tensor:
    tasks, columns = draw(st.integers(1, 6)), draw(st.integers(24, 60))
    u, v = (torch.randn(tasks, columns, dtype=torch.float64) for _ in range(2))
    stats = (
        reference.row_similarity(u, v, (0, columns // 3, columns))
        if of_rows
        else reference.mean_similarity(u)
    )
    return LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](stats.to(draw(st.sampled_from(WIDE))))


def gsl_coefficients(draw: Draw) -> Call:
    stats = _stats(draw, of_rows=True)
    rule = draw(st.integers(0, 3))
    options: dict[str, Any] = {"lam_c": 0.7, "lam_2": 0.2, "ratio": 0.5}
    words = ("none", "norm-match", "ratio", "clip")
    return Call(
        lambda *args: ops.gsl_coefficients(*args, magnitude=words[rule], **options),  # type: ignore[arg-type]
        lambda *args: reference.gsl_coefficients(
            *args, 0.7, 0.2, rule, 0.5, 1e-12, noise_level(stats.dtype)
        ),
        [stats, tensor(draw, (len(stats),), stats.dtype), tensor(draw, (1,), stats.dtype)],
    )


def agreement_weights(draw: Draw) -> Call:
    def reference_op(stats: Tensor) -> Tensor:
        return reference.task_weights(stats, 0, 1.0, 0.0, 1.0)

    return Call(ops.agreement_weights, reference_op, [_stats(draw, of_rows=False)])


def gsl_task_weights(draw: Draw) -> Call:
    rule = draw(st.sampled_from(["linear", "softmax"]))
    return Call(
        lambda s, c, l2, tau: ops.gsl_task_weights(s, rule=rule, lam_c=c, lam_2=l2, tau=tau),
        lambda s, c, l2, tau: reference.task_weights(s, 1 + (rule == "softmax"), c, l2, tau),
        [_stats(draw, of_rows=False), 0.7, 1e-3, 0.5],
    )


CALLS: dict[str, Callable[[Draw], Call]] = {
    make.__name__: make
    for make in (
        *(agreement_weights, attention, batch_norm_relu, combine, combine_, conv3x3, gram),
        *(cross_entropy, gelu, layer_norm, linear_cross_entropy, rms_norm, silu),
        *(gsl_coefficients, gsl_task_weights, head_similarity, hvp_difference, hvp_perturb),
        hvp_radius,
        *(adamw_adjoint, adamw_step, inner_step, inner_step_),
        *(mean_similarity, mlp_step, pack, pack_, pair_cosines, pair_distances, row_similarity),
        *(sequence_step, unpack_),
    )
}
