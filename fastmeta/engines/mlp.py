"""The engine for small multi-layer perceptrons: the whole meta-step in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_not
from typing import Any

from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta.adaptation import SGD
from fastmeta.backend import kernel_devices
from fastmeta.engines._one_call import (
    SECOND_ORDER,
    adopt,
    reverse_sweep,
    unsuitable_components,
    unsuitable_loss,
    unsuitable_options,
    unsuitable_params,
    unsuitable_targets,
    unsuitable_tensor,
)
from fastmeta.engines._recognition import MlpNetwork, loss_name, read_mlp
from fastmeta.engines.base import RAGGED, Engine, StepBuffers, StepResult, StepSpec
from fastmeta.metagrad import StepContext
from fastmeta.metagrad.base import require_inner_steps
from fastmeta.ops.mlp import MAX_LAYERS, MAX_MASKS, MAX_PRODUCTS
from fastmeta.tasks import MetaBatch, TaskBatch


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
        reason = unsuitable_options(spec.model) or unsuitable_components(spec)
        if reason is not None:
            return reason
        network = read_mlp(spec.model.module)
        if isinstance(network, str):
            return network
        if self._loss is None:
            return unsuitable_loss(spec)
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
            **_by_layer(reverse_sweep(self.spec, context), network),
        )
        return adopt(step, buffers)


def _by_layer(options: dict[str, Any], network: MlpNetwork) -> dict[str, Any]:
    """The options with masks over the layers; a layer's bias follows its weight in every mask."""
    masks = options["differentiated"]
    if masks is not None:
        weights = [i for i, param in enumerate(network.params) if param.dim() == 2]
        masks = [[mask[i] for i in weights] for mask in masks]
    return options | {"differentiated": masks}


def _unsuitable_params(params: Sequence[Tensor], network: MlpNetwork) -> str | None:
    reason = unsuitable_params(params, network.params, kernel_devices())
    if reason is None and any(map(is_not, params, network.params)):
        return "the learner does not train the parameters in the order of the layers"
    return reason


def _unsuitable_examples(
    batch: TaskBatch[Any, Any], split: str, network: MlpNetwork, loss: str
) -> str | None:
    x, like = getattr(batch, f"{split}_x"), network.params[0]
    reason = unsuitable_tensor(x, f"{split}_x", like.dtype, like.device)
    if reason is not None:
        return reason
    flat = x.dim() == 3 or (x.dim() > 3 and network.flattens)
    if not flat or x.shape[2:].numel() != network.inputs:
        return (
            f"{split}_x holds examples of shape {tuple(x.shape[2:])}; the network expects "
            f"{network.inputs} features"
        )
    if not x.shape[1]:
        return f"{split}_x holds no examples"
    return unsuitable_targets(batch, split, like, network.outputs, loss)


def _beyond_limits(batch: TaskBatch[Any, Any], network: MlpNetwork, spec: StepSpec) -> str | None:
    if network.layers > MAX_LAYERS:
        return f"the network has {network.layers} layers; on CUDA at most {MAX_LAYERS}"
    if isinstance(spec.metagrad, SECOND_ORDER):
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
