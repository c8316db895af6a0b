"""The whole meta-step of a small multi-layer perceptron in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmeta.backend import kernel_devices, kernels
from fastmeta.ops._function import transformed
from fastmeta.reference.mlp import ACTIVATIONS, LOSSES

# On CUDA: layers, and multiplications of one forward pass over the larger set of a task, its
# examples times the weights' elements (csrc/include/fastmeta/mlp_plan.h says why).
MAX_LAYERS, MAX_PRODUCTS = kernels.mlp_limits.default()

_ACTIVATION_NUMBERS = {name: k for k, name in enumerate(ACTIVATIONS)}
_LOSS_NUMBERS = {name: k for k, name in enumerate(LOSSES)}


class MlpStep(NamedTuple):
    """What :func:`mlp_step` finds, in the parameters' dtype.

    Attributes:
        rows: ``(T, P)``, the meta-gradient of each task in the order of the parameters.
        inner: ``(T, P)``, the mean gradient of the inner steps, if it was asked for.
        support_loss: ``(T,)``, before the first inner step; the query loss if there is none.
        query_loss: ``(T,)``, at the fast weights.
        query_output: ``(T, n_query, out)``, at the fast weights.
    """

    rows: Tensor
    inner: Tensor | None
    support_loss: Tensor
    query_loss: Tensor
    query_output: Tensor


def mlp_step(
    params: Sequence[Tensor],
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    *,
    activations: Sequence[str],
    loss: str,
    lr: float,
    steps: int,
    exact: bool = True,
    record_inner: bool = False,
) -> MlpStep:
    """Inner SGD from shared parameters on every task, and the tasks' meta-gradients.

    Forward, backward, ``steps`` inner steps, the query gradient ``v`` and, if ``exact``, the
    recursion ``v <- v - lr H_k v`` of the exact meta-gradient (Finn et al. 2017, eq. 1), with
    Hessian-vector products by the R-operator (Pearlmutter 1994). Not differentiable: it is itself
    the gradient. Threads, or the blocks of one CUDA launch, share the tasks; the result does not
    depend on their number. Each keeps the activations of all inner steps if ``exact``. CUDA has the
    limits ``MAX_LAYERS`` and ``MAX_PRODUCTS`` of this module.

    Args:
        params: weight ``(out, in)`` of every linear layer, each followed by its bias ``(out,)`` if
            it has one; contiguous, float64 or float32.
        support_x: ``(T, n_support, in)``, of the parameters' dtype.
        support_y: ``(T, n_support, out)`` of the same dtype, or ``(T, n_support)`` int64 class
            numbers for ``"cross_entropy"``; -100 marks an example that does not count. On CUDA,
            where looking would take a sync, a class that is no output makes its task's results NaN.
        query_x: ``(T, n_query, in)``.
        query_y: as ``support_y``.
        activations: one between each two layers: ``"relu"``, ``"tanh"``, ``"elu"``, ``"silu"``,
            ``"sigmoid"`` or ``"gelu"``, with torch's default options.
        loss: ``"mse"`` or ``"cross_entropy"``, both as means.
        lr: the inner learning rate.
        steps: inner steps, 0 or more.
        exact: whether to include the second derivatives; without them the rows are the query
            gradients at the fast weights.
        record_inner: whether to return the mean inner gradients.

    Raises:
        ValueError: if an activation or the loss is unknown.
        RuntimeError: if shapes, dtypes, devices or class numbers do not fit, the network is beyond
            the limits of CUDA, or a ``torch.func`` transform is active.
    """
    numbers = [_number(_ACTIVATION_NUMBERS, name, "activation") for name in activations]
    loss_number = _number(_LOSS_NUMBERS, loss, "loss")
    if transformed():
        raise RuntimeError(
            "fastmeta: mlp_step: this op has no derivative and cannot be batched; call it outside "
            "of torch.func transforms, or use fastmeta.reference.mlp_step."
        )
    tensors = list(params)
    for tensor in (*tensors, support_x, support_y, query_x, query_y):
        if tensor.device.type not in kernel_devices():
            raise RuntimeError(
                f"fastmeta: mlp_step: this build runs on {' and '.join(kernel_devices())}, got a "
                f"tensor on {tensor.device}. Move parameters and tasks with .cpu()."
            )
    with torch.no_grad():
        rows, inner, *rest = kernels.mlp_step.default(
            tensors,
            *(support_x, support_y, query_x, query_y),
            *(numbers, loss_number, lr, steps, exact, record_inner),
        )
    return MlpStep(rows, inner if record_inner else None, *rest)


def _number(known: dict[str, int], name: str, what: str) -> int:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(known)}.")
    return known[name]


@torch.library.register_fake("fastmeta::mlp_step")
def _(
    params: Sequence[Tensor],
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    activations: Sequence[int],
    loss: int,
    lr: float,
    steps: int,
    exact: bool,
    record_inner: bool,
) -> Sequence[Tensor]:
    tasks, size = support_x.shape[0], sum(p.numel() for p in params)
    out = next(p for p in reversed(params) if p.dim() == 2).shape[0]
    new = params[0].new_empty
    return [
        new(tasks, size),
        new(tasks if record_inner else 0, size),
        new(tasks),
        new(tasks),
        new(tasks, query_x.shape[1], out),
    ]
