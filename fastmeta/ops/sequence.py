"""The forward and backward passes of a meta-step of a sequence of layers in one call."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backend import kernel_devices, kernels
from fastmeta.ops._cuda_graphs import CudaGraphs
from fastmeta.ops._function import transform_active
from fastmeta.ops._meta_step import flat_masks, id_of
from fastmeta.ops._sequence_plan import Plan, run_plan
from fastmeta.reference.mlp import ACTIVATIONS, LOSSES
from fastmeta.reference.sequence import KINDS, SequenceLayer

_ACTIVATION_IDS = {name: k for k, name in enumerate(ACTIVATIONS)} | {"leaky_relu": 7}
_KIND_IDS = {name: k for k, name in enumerate(KINDS)}
_LOSS_IDS = {name: k for k, name in enumerate(LOSSES)}
_ONE_CALL = ("cpu",)  # devices with a kernel of the whole step; on others it is many launches


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

    Without it, every call on the CPU has page faults for all pages of the activations, and every
    call on a GPU launches its kernels one by one. Copies are empty: nothing in it is state.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self.graphs = CudaGraphs()

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()

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

    Not differentiable: it is itself the gradient. On the CPU, tasks run in parallel over threads,
    one thread each, if there are more than half as many as threads; else one after the other, each
    over all threads. The result does not depend on their number. Each thread keeps a task's images
    with channels last, the activations of a query pass and, for a reverse sweep, those of all inner
    steps and their gradients. Computed again instead are the activations of a first convolution of
    up to four channels before a normalisation, those of this normalisation where it does not pool
    and a second such pair of layers follows, and gradients of convolutions before a normalisation.
    Gradients below the lowest layer that is differentiated are not needed.

    On CUDA all tasks run at once: convolutions are those of cuDNN with one group per task, matrix
    products those of cuBLAS, in the precision that torch is set to; normalisations are our kernels.
    With a `workspace`, the second call of the same shapes, options and parameters captures these
    launches in a CUDA graph, which later calls replay; the parameters are read where they are, the
    tasks copied. Not yet run on a GPU.

    Args:
        params: as the layers say; each one in one layer. Contiguous; float32 or float64.
        support_x: `(T, n, c, h, w)` or `(T, n, features)`.
        support_y: `(T, n, out)`, or for cross-entropy classes `(T, n)`, int64; -100 is ignored. On
            CUDA, where a check would need a synchronization, an index out of range makes its task's
            results NaN.
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
        workspace: memory and graphs that are kept between calls.

    Raises:
        ValueError: if a kind, activation or loss is unknown, or `differentiated` has no mask, or
            one without an entry per parameter.
        RuntimeError: if shapes, dtypes, devices or class indices do not match, or a `torch.func`
            transform is active.
    """
    flat = flat_masks(differentiated, len(params), "parameters")
    used = lam_d != 0 or lam_c != 0 or lam_2 != 0
    plan = Plan(
        layers=tuple(layers),
        loss=loss,
        steps=steps,
        masks=tuple(zip(*[(used and bool(m) for m in flat)] * len(params), strict=True)),
        compares=lam_c != 0 or lam_2 != 0,
        record_inner=record_inner,
    )
    if transform_active():
        raise RuntimeError(
            "fastmeta: sequence_step: this op has no derivative and cannot be batched; call it "
            "outside of torch.func transforms, or use fastmeta.reference.sequence_step."
        )
    tensors, tasks = list(params), [support_x, support_y, query_x, query_y]
    devices = {tensor.device for tensor in (*tensors, *tasks)}
    device, *others = devices
    if others or device.type not in kernel_devices():
        found = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(
            f"fastmeta: sequence_step: this build runs on {' and '.join(kernel_devices())}, with "
            f"all tensors on one device; got tensors on {found}. Move parameters and tasks with "
            ".cpu()."
        )
    with torch.no_grad():
        run = _one_call if device.type in _ONE_CALL else _launches
        return run(plan, tensors, tasks, (lr, lam_d, lam_c, lam_2), workspace)


def _one_call(
    plan: Plan,
    params: list[Tensor],
    tasks: Sequence[Tensor],
    rates: Sequence[float],
    workspace: Workspace | None,
) -> SequenceStep:
    """The step on the CPU."""
    support_x, support_y, query_x, query_y = tasks
    encoded, loss = _encoded(plan.layers), id_of(_LOSS_IDS, plan.loss, "loss")
    lr, *weights = rates
    how = (plan.steps, [int(used) for mask in plan.masks for used in mask], *weights)
    size = kernels.sequence_workspace.default(params, *encoded, support_x, query_x, *how)
    threads, count = torch.get_num_threads(), len(support_x)
    workers = max(1, min(threads, count)) if 2 * count > threads else 1
    memory = (workspace or Workspace()).take(params[0], workers * size)
    results = _empty_results(plan, params, query_x)
    kernels.sequence_step.default(
        params,
        *(*encoded, support_x, support_y, query_x, query_y, loss, lr, *how, workers, memory),
        *results,
    )
    return results


def _launches(
    plan: Plan,
    params: list[Tensor],
    tasks: Sequence[Tensor],
    rates: Sequence[float],
    workspace: Workspace | None,
) -> SequenceStep:
    """The step on a GPU, in a CUDA graph if there is a workspace."""
    values = tasks[0].new_empty(len(rates))
    for i, rate in enumerate(rates):
        values[i].fill_(rate)  # a launch; an assignment would copy from the CPU, and wait
    inputs = [*tasks, values]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        _check(plan, params, tasks)
        return run_plan(plan, params, inputs[:4], inputs[4])

    with torch.cuda.device_of(values), torch.autocast(values.device.type, enabled=False):
        if tasks[0].shape[:1] == (0,):
            _check(plan, params, tasks)
            return _empty_results(plan, params, tasks[2])
        if workspace is None:
            results: list[Any] = run(inputs)
        else:
            where = tuple((p.data_ptr(), p.stride()) for p in params)
            kinds = tuple((t.shape, t.dtype, t.device) for t in (*params, *inputs))
            key = plan, where, kinds, _settings()
            results = list(workspace.graphs.call(key, run, inputs))
    if not plan.record_inner:
        results.insert(1, None)
    return SequenceStep(*results)


def _check(plan: Plan, params: Sequence[Tensor], tasks: Sequence[Tensor]) -> None:
    """The compiled op's checks, on stand-ins of no task."""
    counts = [part.shape[:1].numel() for part in tasks]
    if len(set(counts)) > 1:
        raise RuntimeError(
            "fastmeta: sequence_step: expected the same number of tasks in support_x, support_y, "
            f"query_x and query_y; got {counts}."
        )
    alike = [torch.empty(p.shape, dtype=p.dtype) for p in params]
    _one_call(
        plan, alike, [torch.empty(0, *t.shape[1:], dtype=t.dtype) for t in tasks], (0,) * 4, None
    )


def _settings() -> Hashable:
    """The settings of torch that its convolutions and matrix products depend on."""
    cudnn: Any = torch.backends.cudnn
    return (
        *(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision),
        torch.backends.cuda.matmul.fp32_precision,
        torch.are_deterministic_algorithms_enabled(),
    )


def _empty_results(plan: Plan, params: Sequence[Tensor], query_x: Tensor) -> SequenceStep:
    (tasks, examples), size = query_x.shape[:2], sum(p.numel() for p in params)
    layers, steps = plan.layers, plan.steps
    outputs = params[layers[-1].weight].shape[0]
    statistics = sum(2 * params[la.weight].numel() for la in layers if la.kind == "norm")
    new = params[0].new_empty
    return SequenceStep(
        new(tasks, size),
        new(tasks, size) if plan.record_inner else None,
        *(new(tasks), new(tasks), new(tasks, examples, outputs)),
        new(tasks, steps + 1, statistics),
    )


def _encoded(layers: Sequence[SequenceLayer]) -> tuple[list[int], list[float]]:
    """The layers as the op takes them: kind, option, weight, bias and sets, and one number."""
    fields: list[int] = []
    numbers: list[float] = []
    for layer in layers:
        kind = id_of(_KIND_IDS, layer.kind, "kind")
        activation = id_of(_ACTIVATION_IDS, layer.activation, "activation")
        option = {
            "conv": layer.stride,
            "norm": layer.pool + 2 * (not layer.relu),
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
