"""The engine for small multi-layer perceptrons: the whole meta-step in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastmeta import ops
from fastmeta.adaptation import SGD
from fastmeta.backend import kernel_devices
from fastmeta.engines._recognition import MlpNetwork, loss_name, read_mlp
from fastmeta.engines.base import RAGGED, Engine, StepBuffers, StepResult, StepSpec
from fastmeta.functional import FunctionalModule
from fastmeta.metagrad import GSL, Exact, FirstOrder, Recursion, StepContext
from fastmeta.metagrad.base import require_inner_steps
from fastmeta.ops.mlp import MAX_LAYERS, MAX_MASKS, MAX_PRODUCTS
from fastmeta.tasks import Examples, MetaBatch, TaskBatch

_SECOND_ORDER = (Exact, Recursion, GSL)


class MlpEngine(Engine):
    """Runs MAML, FOMAML, mixed order, GSL and corrections of FOMAML on a plain MLP.

    By [`fastmeta.ops.mlp_step`][], which computes the meta-gradients of `Exact`, `Recursion`, `GSL`
    and `FirstOrder`. Suitable only if no user code would be skipped: linear layers and activations
    without hooks or parametrizations, every parameter trained, a loss of torch with default
    options. On CUDA the network must be within the kernel's limits.
    """

    name = "mlp"

    def __init__(self, spec: StepSpec) -> None:
        super().__init__(spec)
        self._network: MlpNetwork | None = None
        self._loss = loss_name(spec.loss)

    @override
    def unsuitable(self, batch: MetaBatch) -> str | None:
        spec, self._network = self.spec, None
        if not isinstance(batch, TaskBatch):
            return RAGGED
        reason = _unsuitable_options(spec.model) or _unsuitable_components(spec)
        if reason is not None:
            return reason
        network = read_mlp(spec.model.module)
        if isinstance(network, str):
            return network
        if self._loss is None:
            name = getattr(spec.loss, "__name__", type(spec.loss).__name__)
            return f"the loss is neither torch.nn.functional.mse_loss nor cross_entropy, but {name}"
        self._network = network
        return (
            _unsuitable_params(spec.model.params, network)
            or _unsuitable_examples(batch, "support", network, self._loss)
            or _unsuitable_examples(batch, "query", network, self._loss)
            or (_beyond_limits(batch, network, spec) if batch.support_x.is_cuda else None)
        )

    @override
    def run(self, batch: MetaBatch, context: StepContext, buffers: StepBuffers) -> StepResult:
        adaptation, network, loss = self.spec.adaptation, self._network, self._loss
        assert isinstance(batch, TaskBatch)
        assert isinstance(adaptation, SGD)
        assert network is not None
        assert loss is not None
        if context.record_support:
            require_inner_steps(adaptation.steps)
        step = ops.mlp_step(
            network.params,
            batch.support_x.flatten(2),
            batch.support_y,
            batch.query_x.flatten(2),
            batch.query_y,
            activations=network.activations,
            loss=loss,
            lr=float(adaptation.lr),
            steps=adaptation.steps,
            record_inner=context.record_support,
            **_reverse_sweep(self.spec, network, context),
        )
        buffers.outer.adopt(step.meta_gradients)
        if step.inner_gradients is not None:
            buffers.support.adopt(step.inner_gradients)
        return StepResult(step.support_loss, step.query_loss, step.query_output)


def _reverse_sweep(spec: StepSpec, network: MlpNetwork, context: StepContext) -> dict[str, Any]:
    """The arguments of [`fastmeta.ops.mlp_step`][] that the meta-gradient determines."""
    metagrad = spec.metagrad
    if not isinstance(metagrad, _SECOND_ORDER) or metagrad.is_first_order:
        return {"differentiated": [[False] * network.layers]}
    masks = context.prepared
    if masks is not None:  # over parameters; a layer's bias follows its weight in every mask
        weights = [i for i, param in enumerate(network.params) if param.dim() == 2]
        masks = [[mask[i] for i in weights] for mask in masks]
    if not isinstance(metagrad, GSL):
        return {"differentiated": masks}
    rate = metagrad.rate(context.step)
    lams = {name: rate * getattr(metagrad, name) for name in ("lam_d", "lam_c", "lam_2")}
    return {"differentiated": masks, **lams}


def _unsuitable_components(spec: StepSpec) -> str | None:
    if type(spec.adaptation) is not SGD:
        return f"the adaptation is {type(spec.adaptation).__name__}, not SGD"
    if not spec.adaptation.is_plain:
        return "the inner SGD has momentum, weight decay or a learned setting"
    kind = type(spec.metagrad)
    if kind.task is not FirstOrder.task and kind not in _SECOND_ORDER:
        return (
            f"the meta-gradient is {kind.__name__}; expected Exact, Recursion, GSL, FirstOrder or "
            "a correction of FirstOrder"
        )
    return None


def _unsuitable_params(params: Sequence[Tensor], network: MlpNetwork) -> str | None:
    if len(params) != len(network.params) or any(map(is_not, params, network.params)):
        return "the learner does not train each parameter of the layers exactly once"
    for param in params:
        if type(param) is not nn.Parameter or not param.is_contiguous():
            return "a parameter is not a plain contiguous nn.Parameter"
    like = params[0]
    if like.dtype not in (torch.float32, torch.float64) or like.device.type not in kernel_devices():
        return (
            f"the parameters are {like.dtype} on {like.device}; expected float32 or float64 on "
            f"{' or '.join(kernel_devices())}"
        )
    if torch.is_autocast_enabled(like.device.type):
        return "autocast is on"
    return None


def _unsuitable_options(model: FunctionalModule) -> str | None:
    if model.autocast is not None:
        return f"the learner has autocast={model.autocast}"
    if model.checkpoint:
        return "the learner has checkpoint=True"
    if model.co_learner is not None:
        return "the learner has a co-learner, whose loss the kernel does not support"
    return None


def _unsuitable_examples(
    batch: TaskBatch[Any, Any], split: str, network: MlpNetwork, loss: str
) -> str | None:
    x, y = getattr(batch, f"{split}_x"), getattr(batch, f"{split}_y")
    like = network.params[0]
    reason = _unsuitable_tensor(x, f"{split}_x", like.dtype, like.device)
    if reason is not None:
        return reason
    examples = tuple(x.shape[:2])
    flat = x.dim() == 3 or (x.dim() > 3 and network.flattens)
    if not flat or x.shape[2:].numel() != network.inputs:
        return (
            f"{split}_x holds examples of shape {tuple(x.shape[2:])}; the network expects "
            f"{network.inputs} features"
        )
    if not examples[1]:
        return f"{split}_x holds no examples"
    reason = _unsuitable_tensor(
        y, f"{split}_y", like.dtype if loss == "mse" else torch.int64, like.device
    )
    if reason is not None:
        return reason
    expected = (*examples, network.outputs) if loss == "mse" else examples
    if y.shape != expected:
        return f"{split}_y has shape {tuple(y.shape)}; expected {expected}"
    return None


def _unsuitable_tensor(
    tensor: Examples, name: str, dtype: torch.dtype, device: torch.device
) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"{name} is a {type(tensor).__name__}; expected a tensor"
    if type(tensor) is not Tensor or tensor.dtype != dtype or tensor.device != device:
        return (
            f"{name} is a {type(tensor).__name__} of {tensor.dtype} on {tensor.device}; expected a "
            f"plain tensor of {dtype} on {device}"
        )
    return None


def _beyond_limits(batch: TaskBatch[Any, Any], network: MlpNetwork, spec: StepSpec) -> str | None:
    if network.layers > MAX_LAYERS:
        return f"the network has {network.layers} layers; on CUDA at most {MAX_LAYERS}"
    if isinstance(spec.metagrad, _SECOND_ORDER):
        patterns = min(spec.adaptation.steps, spec.metagrad.layers.count("/") + 1)
        if patterns > MAX_MASKS:
            return f"layers has patterns for {patterns} inner steps; on CUDA at most {MAX_MASKS}"
    examples = max(batch.support_x.shape[1], batch.query_x.shape[1])
    products = examples * sum(p.numel() for p in network.params if p.dim() == 2)
    if products > MAX_PRODUCTS:
        return (
            f"a forward pass over a task takes {products} multiplications; on CUDA at most "
            f"{MAX_PRODUCTS}"
        )
    return None
