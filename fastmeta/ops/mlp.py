"""The forward and backward passes of a meta-step of a small multi-layer perceptron in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmeta.backend import kernel_devices, kernels
from fastmeta.ops._function import transform_active
from fastmeta.ops._meta_step import flat_masks, id_of
from fastmeta.reference.mlp import ACTIVATIONS, LOSSES

# Limits on CUDA: the number of layers, the multiplications of one forward pass over the larger of a
# task's two sets, examples times weight elements, and the inner steps with a mask of their own
# (csrc/include/fastmeta/mlp_plan.h says why).
MAX_LAYERS, MAX_PRODUCTS, MAX_MASKS = kernels.mlp_limits.default()

_ACTIVATION_IDS = {name: k for k, name in enumerate(ACTIVATIONS)}
_LOSS_IDS = {name: k for k, name in enumerate(LOSSES)}


class MlpStep(NamedTuple):
    """The results of [`mlp_step`][fastmeta.ops.mlp_step], in the parameters' dtype.

    Attributes:
        meta_gradients: `(T, P)`, the meta-gradient of each task, in the order of the parameters.
        inner_gradients: `(T, P)`, the mean gradient over the inner steps, with `record_inner`.
        support_loss: `(T,)`, before the first inner step; the query loss if there is none.
        query_loss: `(T,)`, at the fast weights.
        query_output: `(T, n_query, out)`, at the fast weights.
    """

    meta_gradients: Tensor
    inner_gradients: Tensor | None
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
    differentiated: Sequence[Sequence[bool]] | None = None,
    lam_d: float = 1.0,
    lam_c: float = 0.0,
    lam_2: float = 0.0,
    record_inner: bool = False,
) -> MlpStep:
    """Inner SGD from shared initial parameters on every task, and the tasks' meta-gradients.

    Forward, backward, `steps` inner steps, the query gradient `v`, and a reverse sweep over the
    inner steps, with `g` the inner gradient of step `k` and `_m` its restriction to the layers
    that are differentiated in this step:

    `d = (lam_d + lam_c + lam_2) v_m - (lam_2 + lam_c <g_m, v_m> / |g_m|^2) g_m`,
    `v <- v - lr H_k d`

    By default this is the exact meta-gradient, `v <- v - lr H_k v` (Finn et al. 2017, eq. 1); with
    some layers only, that of mixed order; with other weights, that of
    [`metagrad.GSL`][fastmeta.metagrad.GSL], times whose `eta` they are meant. Hessian-vector
    products are those of the R-operator (Pearlmutter 1994), which starts at the lowest
    differentiated layer: below it, `H_k d` takes one ordinary backward pass. Without
    differentiated layers, or with all weights 0, the meta-gradients are the query gradients at
    the fast weights (first order).

    Not differentiable: it is itself the gradient. Tasks run in parallel over threads, or over the
    blocks of one CUDA launch; the result does not depend on their number. For a reverse sweep,
    each keeps the activations of all inner steps. On CUDA the limits `MAX_LAYERS`, `MAX_PRODUCTS`
    and `MAX_MASKS` of this module apply.

    Args:
        params: weight `(out, in)` of every linear layer, each followed by its bias `(out,)` if
            it has one; contiguous, float64 or float32.
        support_x: `(T, n_support, in)`, of the parameters' dtype.
        support_y: `(T, n_support, out)` of the same dtype, or `(T, n_support)` int64 class
            indices for `"cross_entropy"`, where -100 is ignored. On CUDA, where a check
            would need a synchronization, an index out of range makes its task's results NaN.
        query_x: `(T, n_query, in)`.
        query_y: as `support_y`.
        activations: one between consecutive layers: `"relu"`, `"tanh"`, `"elu"`, `"silu"`,
            `"sigmoid"` or `"gelu"`, with torch's default options.
        loss: `"mse"` or `"cross_entropy"`, both with mean reduction.
        lr: the inner learning rate.
        steps: inner steps, 0 or more.
        differentiated: one mask over the layers per inner step, the last of which is that of all
            further steps: whether the layer's inner gradient is differentiated. `None` means all.
        lam_d: weight of the inner product of `g_m` and `v_m` in the similarity loss.
        lam_c: weight of their cosine, which is taken as 0 where `g_m` is 0.
        lam_2: weight of their L2 distance.
        record_inner: whether to return the mean inner gradients.

    Raises:
        ValueError: if an activation or the loss is unknown, or `differentiated` has no mask, or one
            without an entry per layer.
        RuntimeError: if shapes, dtypes, devices or class indices do not match, the network exceeds
            the limits on CUDA, or a `torch.func` transform is active.
    """
    activation_ids = [id_of(_ACTIVATION_IDS, name, "activation") for name in activations]
    loss_id = id_of(_LOSS_IDS, loss, "loss")
    masks = flat_masks(differentiated, len(activations) + 1, "layers")
    if transform_active():
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
        meta_gradients, inner_gradients, *rest = kernels.mlp_step.default(
            tensors,
            *(support_x, support_y, query_x, query_y),
            *(activation_ids, loss_id, lr, steps, masks, lam_d, lam_c, lam_2, record_inner),
        )
    return MlpStep(meta_gradients, inner_gradients if record_inner else None, *rest)


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
    differentiated: Sequence[int],
    lam_d: float,
    lam_c: float,
    lam_2: float,
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
