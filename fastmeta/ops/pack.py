"""Packing of per-task gradients into one `(T, P)` buffer, and unpacking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import (
    apply,
    bump_versions,
    check_same_device,
    loop_vmap,
    needs_autograd,
)


def pack(tensors: Sequence[Tensor], rows: int = 1) -> Tensor:
    """Copies the tensors of `rows` tasks into the rows of one buffer, in one launch.

    Differentiable. To have backward write gradients into a packed buffer directly, see
    [`fastmeta.FlatLayout.attach_grads`][].

    Args:
        tensors: `rows * L` tensors, task after task; the `l`-th tensors of all tasks have the
            same size. One dtype (float64, float32, float16 or bfloat16), one device, any strides.
        rows: number of tasks `T`.

    Returns:
        A new `(T, P)` tensor; `P` is the number of elements per task.

    Raises:
        RuntimeError: if the tensors do not form `rows` rows of equal size, or differ in dtype or
            device.
    """
    tensors = list(tensors)
    if not tensors:
        raise RuntimeError("fastmeta: pack: expected at least one tensor, got none.")
    if needs_autograd(*tensors):
        result: Tensor = apply(_Pack, _PackEager, rows, *tensors)
    else:
        result = kernels.pack.default(tensors, rows)
    return result


def pack_(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """[`pack`][fastmeta.ops.pack] into the rows of an existing `(T, P)` buffer; not differentiable.

    A tensor may already be the view of the buffer that it is copied into.

    Raises:
        RuntimeError: if sizes, dtypes or devices do not match, or a tensor shares other memory with
            the buffer.
    """
    with torch.no_grad():
        kernels.pack_.default(flat, list(tensors))
    bump_versions([flat])


def unpack_(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Copies the rows of `flat` `(T, P)` into `T * L` tensors in one launch; inverts pack.

    Not differentiable; views of `flat` ([`fastmeta.FlatLayout.views`][]) are.

    Raises:
        RuntimeError: if a target is not contiguous, sizes, dtypes or devices do not match, or a
            target shares memory with another target or with a part of `flat` other than its own.
    """
    targets = list(tensors)
    with torch.no_grad():
        kernels.unpack_.default(targets, flat)
    bump_versions(targets)


class _Pack(torch.autograd.Function):
    @staticmethod
    def reference_impl(rows: int, *tensors: Tensor) -> Tensor:
        return reference.pack(tensors, rows)

    @staticmethod
    def forward(rows: int, *tensors: Tensor) -> Tensor:
        result: Tensor = kernels.pack.default(list(tensors), rows)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.rows = inputs[0]
        ctx.shapes = [t.shape for t in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        per_task = len(ctx.shapes) // ctx.rows
        sizes = [shape.numel() for shape in ctx.shapes[:per_task]]
        parts = [part for row in grad.unbind(0) for part in row.split(sizes)]
        return None, *(p.view(s) for p, s in zip(parts, ctx.shapes, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(_pack_flat, info, in_dims, args)


class _PackEager(_Pack):
    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor) -> Tensor:
        return pack(tangents, ctx.rows)


def _pack_flat(rows: int, *tensors: Tensor) -> Tensor:
    return pack(tensors, rows)


@torch.library.register_fake("fastmeta::pack")
def _(tensors: Sequence[Tensor], rows: int) -> Tensor:
    per_task = len(tensors) // rows
    return tensors[0].new_empty(rows, sum(tensor.numel() for tensor in tensors[:per_task]))


@torch.library.register_fake("fastmeta::pack_")
def _(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    check_same_device("pack_", flat, *tensors)


@torch.library.register_fake("fastmeta::unpack_")
def _(tensors: Sequence[Tensor], flat: Tensor) -> None:
    check_same_device("unpack_", *tensors, flat)
