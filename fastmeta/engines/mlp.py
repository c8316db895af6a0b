"""The engine of small multi-layer perceptrons: the whole meta-step in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_not

import torch
from torch import Tensor, nn

from fastmeta import ops
from fastmeta.adaptation import SGD
from fastmeta.backend import kernel_devices
from fastmeta.engines._recognition import MlpNetwork, loss_name, read_mlp
from fastmeta.engines.base import Engine, Method, Rows, StepResult, UnsuitableError
from fastmeta.functional import FunctionalModule
from fastmeta.metagrad import GSL, Exact, FirstOrder
from fastmeta.metagrad.base import require_inner_steps
from fastmeta.ops.mlp import MAX_LAYERS, MAX_PRODUCTS
from fastmeta.tasks import TaskBatch


class MlpEngine(Engine):
    """Runs MAML, FOMAML and GSL on a plain MLP, see :func:`fastmeta.ops.mlp_step`.

    It takes over where nothing of the user's can be skipped: linear layers and activations without
    hooks or parametrizations, every parameter trained, a loss of torch's with its default options.
    On CUDA the network must be within the kernel's limits.
    """

    name = "mlp"

    def __init__(self, method: Method, batch: TaskBatch) -> None:
        super().__init__(method, batch)
        _check_options(method.model)
        _check_rooms(method)
        self._network = read_mlp(method.model.module)
        self._loss = loss_name(method.loss)
        _check_params(method.model.params, self._network)
        for split in ("support", "query"):
            _check_examples(batch, split, self._network, self._loss)
        if batch.support_x.is_cuda:
            _check_limits(batch, self._network)

    def run(self, rows: Rows) -> StepResult:
        """See :class:`Engine`."""
        batch, adaptation, record = self.batch, self.method.adaptation, self.method.records_inner
        assert isinstance(adaptation, SGD)
        if record:
            require_inner_steps(adaptation.steps)
        step = ops.mlp_step(
            self._network.params,
            batch.support_x.flatten(2),
            batch.support_y,
            batch.query_x.flatten(2),
            batch.query_y,
            activations=self._network.activations,
            loss=self._loss,
            lr=adaptation.lr,
            steps=adaptation.steps,
            exact=type(self.method.metagrad) is Exact,
            record_inner=record,
        )
        rows.query.adopt(step.rows)
        if step.inner is not None:
            rows.inner.adopt(step.inner)
        return StepResult(step.support_loss, step.query_loss, step.query_output)


def _check_rooms(method: Method) -> None:
    if type(method.adaptation) is not SGD:
        raise UnsuitableError(f"the adaptation is {type(method.adaptation).__name__}, not SGD")
    if method.adaptation.momentum:
        raise UnsuitableError("the inner SGD has momentum")
    if type(method.metagrad) not in (Exact, FirstOrder, GSL):
        raise UnsuitableError(
            f"the meta-gradient is {type(method.metagrad).__name__}; expected Exact, FirstOrder "
            "or GSL"
        )


def _check_params(params: Sequence[Tensor], network: MlpNetwork) -> None:
    if len(params) != len(network.params) or any(map(is_not, params, network.params)):
        raise UnsuitableError(
            "the learner does not train each parameter of the layers exactly once"
        )
    for param in params:
        if type(param) is not nn.Parameter or not param.is_contiguous():
            raise UnsuitableError("a parameter is not a plain contiguous nn.Parameter")
    like = params[0]
    if like.dtype not in (torch.float32, torch.float64) or like.device.type not in kernel_devices():
        raise UnsuitableError(
            f"the parameters are {like.dtype} on {like.device}; expected float32 or float64 on "
            f"{' or '.join(kernel_devices())}"
        )
    if torch.is_autocast_enabled(like.device.type):
        raise UnsuitableError("autocast is on")


def _check_options(model: FunctionalModule) -> None:
    if model.autocast is not None:
        raise UnsuitableError(f"the learner has autocast={model.autocast}")
    if model.checkpoint:
        raise UnsuitableError("the learner has checkpoint=True")
    if model.co_learner is not None:
        raise UnsuitableError("the learner has a co-learner, whose loss the kernel does not know")


def _check_examples(batch: TaskBatch, split: str, network: MlpNetwork, loss: str) -> None:
    x, y = getattr(batch, f"{split}_x"), getattr(batch, f"{split}_y")
    like, examples = network.params[0], tuple(x.shape[:2])
    _check_tensor(x, f"{split}_x", like.dtype, like.device)
    flat = x.dim() == 3 or (x.dim() > 3 and network.flattens)
    if not flat or x.shape[2:].numel() != network.inputs:
        raise UnsuitableError(
            f"{split}_x holds examples of the shape {tuple(x.shape[2:])}; the network takes "
            f"{network.inputs} numbers"
        )
    if not examples[1]:
        raise UnsuitableError(f"{split}_x holds no example")
    _check_tensor(y, f"{split}_y", like.dtype if loss == "mse" else torch.int64, like.device)
    expected = (*examples, network.outputs) if loss == "mse" else examples
    if y.shape != expected:
        raise UnsuitableError(f"{split}_y has the shape {tuple(y.shape)}; expected {expected}")


def _check_tensor(tensor: Tensor, name: str, dtype: torch.dtype, device: torch.device) -> None:
    if type(tensor) is not Tensor or tensor.dtype != dtype or tensor.device != device:
        raise UnsuitableError(
            f"{name} is a {type(tensor).__name__} of {tensor.dtype} on {tensor.device}; expected a "
            f"plain tensor of {dtype} on {device}"
        )


def _check_limits(batch: TaskBatch, network: MlpNetwork) -> None:
    layers = len(network.activations) + 1
    if layers > MAX_LAYERS:
        raise UnsuitableError(f"the network has {layers} layers; on CUDA at most {MAX_LAYERS}")
    examples = max(batch.support_x.shape[1], batch.query_x.shape[1])
    products = examples * sum(p.numel() for p in network.params if p.dim() == 2)
    if products > MAX_PRODUCTS:
        raise UnsuitableError(
            f"a forward pass over a task takes {products} multiplications; on CUDA at most "
            f"{MAX_PRODUCTS}"
        )
