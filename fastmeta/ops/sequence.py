"""The forward and backward passes of a meta-step of a sequence of layers in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backend import kernels
from fastmeta.ops._function import transform_active
from fastmeta.ops._meta_step import flat_masks, id_of
from fastmeta.reference.mlp import ACTIVATIONS, LOSSES
from fastmeta.reference.sequence import KINDS, SequenceLayer

_ACTIVATION_IDS = {name: k for k, name in enumerate(ACTIVATIONS)} | {"leaky_relu": 7}
_KIND_IDS = {name: k for k, name in enumerate(KINDS)}
_LOSS_IDS = {name: k for k, name in enumerate(LOSSES)}


class SequenceStep(NamedTuple):
    """The results of [`sequence_step`][fastmeta.ops.sequence_step], in the parameters' dtype.

    Attributes:
        meta_gradients: `(T, P)`, the meta-gradient of each task, in the order of the parameters.
        inner_gradients: `(T, P)`, the mean gradient over the inner steps, with `record_inner`.
        support_loss: `(T,)`, before the first inner step; the query loss if there is none.
        query_loss: `(T,)`, at the fast weights.
        query_output: `(T, n_query, out)`, at the fast weights.
        statistics: `(T, steps + 1, S)`: batch mean and biased variance of every normalisation, in
            their order, at every inner step and on the query set.
    """

    meta_gradients: Tensor
    inner_gradients: Tensor | None
    support_loss: Tensor
    query_loss: Tensor
    query_output: Tensor
    statistics: Tensor


class Workspace:
    """Memory of [`sequence_step`][fastmeta.ops.sequence_step] that is kept between its calls.

    Without it, every call has page faults for all pages of the activations.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def take(self, like: Tensor, size: int) -> Tensor:
        """At least `size` elements of the dtype of `like`."""
        memory = self._memory
        if memory is None or memory.dtype != like.dtype or memory.numel() < size:
            self._memory = None  # freed before more is allocated
            memory = self._memory = like.new_empty(size)
        return memory


def sequence_step(
    params: Sequence[Tensor],
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    *,
    layers: Sequence[SequenceLayer],
    loss: str,
    lr: float,
    steps: int,
    differentiated: Sequence[Sequence[bool]] | None = None,
    lam_d: float = 1.0,
    lam_c: float = 0.0,
    lam_2: float = 0.0,
    record_inner: bool = False,
    workspace: Workspace | None = None,
) -> SequenceStep:
    """Inner SGD from shared initial parameters on every task, and the tasks' meta-gradients.

    What [`mlp_step`][fastmeta.ops.mlp_step] computes, for networks of convolutions, batch
    normalisations, activations, pooling and linear layers. With `g` the inner gradient of step
    `k` and `_m` its restriction to the parameters that are differentiated in this step, the reverse
    sweep is

    `d = (lam_d + lam_c + lam_2) v_m - (lam_2 + lam_c <g_m, v_m> / |g_m|^2) g_m`,
    `v <- v - lr H_k d`

    from the query gradient `v` on. Hessian-vector products are those of the R-operator (Pearlmutter
    1994), which starts at the lowest layer with such a parameter. Batch statistics are part of what
    is differentiated.

    Not differentiable: it is itself the gradient. On the CPU alone. Tasks run in parallel over
    threads, one thread each, if there are more than half as many as threads; else one after the
    other, each over all threads. The result does not depend on their number. Each thread keeps the
    activations of a query pass and, for a reverse sweep, those of all inner steps with their
    gradients.

    Args:
        params: as the layers say; each one in one layer. Contiguous; float32 or float64.
        support_x: `(T, n, c, h, w)` or `(T, n, features)`.
        support_y: `(T, n, out)`, or for cross-entropy classes `(T, n)`, int64; -100 is ignored.
        query_x: as `support_x`, with a number of examples of its own.
        query_y: as `support_y`.
        layers: of the network, in order; the last one is linear.
        loss: `"mse"` or `"cross_entropy"`, both with the mean.
        lr: inner learning rate.
        steps: inner steps.
        differentiated: masks over the parameters, one per inner step; the last one is that of all
            further steps. `None` means all parameters.
        lam_d: weight of the inner product.
        lam_c: weight of the cosine.
        lam_2: weight of the L2 distance.
        record_inner: whether to return the mean inner gradients.
        workspace: memory that is kept between calls.

    Raises:
        ValueError: if a kind, activation or loss is unknown, or `differentiated` has no mask, or
            one without an entry per parameter.
        RuntimeError: if shapes, dtypes, devices or class indices do not match, or a `torch.func`
            transform is active.
    """
    fields, numbers = _encoded(layers)
    masks = flat_masks(differentiated, len(params), "parameters")
    loss_id = id_of(_LOSS_IDS, loss, "loss")
    if transform_active():
        raise RuntimeError(
            "fastmeta: sequence_step: this op has no derivative and cannot be batched; call it "
            "outside of torch.func transforms, or use fastmeta.reference.sequence_step."
        )
    tensors = list(params)
    for tensor in (*tensors, support_x, support_y, query_x, query_y):
        if not tensor.is_cpu:
            raise RuntimeError(
                f"fastmeta: sequence_step: this op runs on the CPU, got a tensor on "
                f"{tensor.device}. Move parameters and tasks with .cpu()."
            )
    with torch.no_grad():
        support_x, query_x = _channels_last(support_x), _channels_last(query_x)
        weights = (lam_d, lam_c, lam_2)
        size = kernels.sequence_workspace.default(
            tensors, fields, numbers, support_x, query_x, steps, masks, *weights
        )
        threads, tasks = torch.get_num_threads(), support_x.shape[0]
        workers = max(1, min(threads, tasks)) if 2 * tasks > threads else 1
        memory = (workspace or Workspace()).take(tensors[0], workers * size)
        results = _empty_results(tensors, layers, query_x, steps, record_inner)
        kernels.sequence_step.default(
            tensors,
            *(fields, numbers, support_x, support_y, query_x, query_y),
            *(loss_id, lr, steps, masks, *weights, workers, memory),
            *results,
        )
    return results


def _empty_results(
    params: Sequence[Tensor],
    layers: Sequence[SequenceLayer],
    query_x: Tensor,
    steps: int,
    record_inner: bool,
) -> SequenceStep:
    (tasks, examples), size = query_x.shape[:2], sum(p.numel() for p in params)
    outputs = params[layers[-1].weight].shape[0]
    statistics = sum(2 * params[la.weight].numel() for la in layers if la.kind == "norm")
    new = params[0].new_empty
    return SequenceStep(
        new(tasks, size),
        new(tasks, size) if record_inner else None,
        *(new(tasks), new(tasks), new(tasks, examples, outputs)),
        new(tasks, steps + 1, statistics),
    )


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 1, 3, 4, 2).contiguous() if x.dim() == 5 else x


def _encoded(layers: Sequence[SequenceLayer]) -> tuple[list[int], list[float]]:
    """The layers as the op takes them: kind, option, weight, bias and sets, and one number."""
    fields: list[int] = []
    numbers: list[float] = []
    for layer in layers:
        kind = id_of(_KIND_IDS, layer.kind, "kind")
        activation = id_of(_ACTIVATION_IDS, layer.activation, "activation")
        option = {
            "conv": layer.stride,
            "norm": int(layer.pool),
            "activation": activation,
            "linear": 0,
        }.get(layer.kind, layer.window or 0)
        bias = layer.weight + 1 if layer.bias or layer.kind == "norm" else -1
        fields += [kind, option, layer.weight, bias, layer.sets]
        numbers.append(layer.eps if layer.kind == "norm" else layer.slope)
    return fields, numbers


@torch.library.register_fake("fastmeta::sequence_step")
def _(*args: Any) -> None:
    """Writes to its last arguments."""
