"""Valid calls of normalisation, activations and cross entropy."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastmeta import ops, reference
from fastmeta.reference import accumulation_dtype
from tests.stress.op_tensors import DTYPES, Call, Draw, tensor


def _widened(function: Any) -> Any:
    """The reference on tensors in the accumulation dtype, its result in their own."""

    def call(x: Tensor, *args: Any, **options: Any) -> Tensor:
        wide = [a.to(accumulation_dtype(a.dtype)) if _is_floating(a) else a for a in (x, *args)]
        result: Tensor = function(*wide, **options)
        return result.to(x.dtype)

    return call


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def layer_norm(draw: Draw) -> Call:
    dtype, width = draw(st.sampled_from(DTYPES)), draw(st.integers(2, 70))
    x = tensor(draw, (draw(st.integers(0, 5)), draw(st.integers(0, 5)), width), dtype)
    weights = draw(st.sampled_from([dtype, accumulation_dtype(dtype)]))
    params = [tensor(draw, (width,), weights) if draw(st.booleans()) else None for _ in range(2)]
    return Call(
        lambda x, w, b, eps: ops.layer_norm(x, (width,), w, b, eps),
        _widened(lambda x, w, b, eps: reference.layer_norm(x, (width,), w, b, eps)),
        [x, *params, 0.1],
    )


def rms_norm(draw: Draw) -> Call:
    dtype, width = draw(st.sampled_from(DTYPES)), draw(st.integers(2, 70))
    x = tensor(draw, (draw(st.integers(0, 20)), width), dtype)
    weight = tensor(draw, (width,), dtype) if draw(st.booleans()) else None
    return Call(
        lambda x, w, eps: ops.rms_norm(x, (width,), w, eps),
        _widened(lambda x, w, eps: reference.rms_norm(x, (width,), w, eps)),
        [x, weight, 0.1],
    )


def _elements(draw: Draw) -> Tensor:
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    return tensor(draw, shape, draw(st.sampled_from(DTYPES)))


def gelu(draw: Draw) -> Call:
    how = draw(st.sampled_from(["none", "tanh"]))
    return Call(
        lambda x: ops.gelu(x, approximate=how),
        _widened(lambda x: reference.gelu(x, approximate=how)),
        [_elements(draw)],
    )


def silu(draw: Draw) -> Call:
    return Call(ops.silu, _widened(reference.silu), [_elements(draw)])


def _targets(rows: tuple[int, ...], classes: int) -> Tensor:
    target = torch.randint(classes, rows)
    return torch.where(torch.rand(rows) < 0.2, -100, target)


def cross_entropy(draw: Draw) -> Call:
    classes, more = draw(st.integers(1, 70)), draw(st.lists(st.integers(1, 3), max_size=2))
    n = draw(st.integers(1, 9))
    z = tensor(draw, (n, classes, *more), draw(st.sampled_from(DTYPES)))
    options = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "reduction": draw(st.sampled_from(["sum", "none"])),
    }
    return Call(
        lambda z, y: ops.cross_entropy(z, y, **options),
        _widened(lambda z, y: reference.cross_entropy(z, y, **options)),
        [z, _targets((n, *more), classes)],
    )


def linear_cross_entropy(draw: Draw) -> Call:
    n, classes, width = (draw(st.integers(1, limit)) for limit in (40, 30, 9))
    dtype = draw(st.sampled_from(DTYPES[:2]))  # in half precision torch rounds the logits
    args = [tensor(draw, shape, dtype) for shape in ((n, width), (classes, width))]
    bias = tensor(draw, (classes,), dtype) if draw(st.booleans()) else None
    options = {"reduction": "sum", "label_smoothing": draw(st.sampled_from([0.0, 0.1]))}
    return Call(
        lambda x, w, y, b: ops.linear_cross_entropy(x, w, y, linear_bias=b, **options),
        lambda x, w, y, b: reference.linear_cross_entropy(x, w, y, linear_bias=b, **options),
        [*args, _targets((n,), classes), bias],
    )
