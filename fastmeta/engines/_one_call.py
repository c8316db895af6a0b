"""What the engines that run a whole meta-step in one compiled call have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.adaptation import SGD
from fastmeta.engines.base import StepBuffers, StepResult, StepSpec
from fastmeta.functional import FunctionalModule
from fastmeta.metagrad import GSL, Exact, FirstOrder, Recursion, StepContext
from fastmeta.ops import MlpStep, SequenceStep
from fastmeta.tasks import Examples, TaskBatch

SECOND_ORDER = (Exact, Recursion, GSL)


def reverse_sweep(spec: StepSpec, context: StepContext) -> dict[str, Any]:
    """The options of the op that the meta-gradient determines, with masks over the parameters."""
    metagrad = spec.metagrad
    if not isinstance(metagrad, SECOND_ORDER) or metagrad.is_first_order:
        return {"differentiated": [[False] * len(spec.model.params)]}
    options: dict[str, Any] = {"differentiated": context.prepared}
    if isinstance(metagrad, GSL):
        rate = metagrad.rate(context.step)
        options |= {name: rate * getattr(metagrad, name) for name in ("lam_d", "lam_c", "lam_2")}
    return options


def adopt(step: MlpStep | SequenceStep, buffers: StepBuffers) -> StepResult:
    """Hands the gradients of all tasks over to the buffers."""
    buffers.outer.adopt(step.meta_gradients)
    if step.inner_gradients is not None:
        buffers.support.adopt(step.inner_gradients)
    return StepResult(step.support_loss, step.query_loss, step.query_output)


def unsuitable_options(model: FunctionalModule) -> str | None:
    """Why no compiled call has the learner's options."""
    if model.autocast is not None:
        return f"the learner has autocast={model.autocast}"
    if model.checkpoint:
        return "the learner has checkpoint=True"
    if model.co_learner is not None:
        return "the learner has a co-learner, whose loss the kernel does not support"
    if model.penalty is not None:
        return "the learner has a penalty, which the kernel does not support"
    return None


def unsuitable_components(spec: StepSpec) -> str | None:
    """Why no compiled call has these components."""
    if type(spec.adaptation) is not SGD:
        return f"the adaptation is {type(spec.adaptation).__name__}, not SGD"
    if not spec.adaptation.is_plain:
        return "the inner SGD has momentum, weight decay or a learned setting"
    kind = type(spec.metagrad)
    if kind.task is not FirstOrder.task and kind not in SECOND_ORDER:
        return (
            f"the meta-gradient is {kind.__name__}; expected Exact, Recursion, GSL, FirstOrder or "
            "a correction of FirstOrder"
        )
    return None


def unsuitable_loss(spec: StepSpec) -> str:
    """Why a loss without a name is not supported."""
    name = getattr(spec.loss, "__name__", type(spec.loss).__name__)
    return f"the loss is neither torch.nn.functional.mse_loss nor cross_entropy, but {name}"


def unsuitable_params(
    params: Sequence[Tensor], own: Sequence[Tensor], devices: Sequence[str]
) -> str | None:
    """Why the learner's `params` are not those of the network, `own`, or of another kind."""
    if len(params) != len(own) or sorted(map(id, params)) != sorted(map(id, own)):
        return "the learner does not train each parameter of the layers exactly once"
    for param in params:
        if type(param) is not nn.Parameter or not param.is_contiguous():
            return "a parameter is not a plain contiguous nn.Parameter"
    like = params[0]
    if like.dtype not in (torch.float32, torch.float64) or like.device.type not in devices:
        return (
            f"the parameters are {like.dtype} on {like.device}; expected float32 or float64 on "
            f"{' or '.join(devices)}"
        )
    if torch.is_autocast_enabled(like.device.type):
        return "autocast is on"
    return None


def unsuitable_targets(
    batch: TaskBatch[Any, Any], split: str, like: Tensor, outputs: int, loss: str
) -> str | None:
    """Why the targets of a split do not suit the loss."""
    x, y = getattr(batch, f"{split}_x"), getattr(batch, f"{split}_y")
    dtype = like.dtype if loss == "mse" else torch.int64
    reason = unsuitable_tensor(y, f"{split}_y", dtype, like.device)
    if reason is not None:
        return reason
    examples = tuple(x.shape[:2])
    expected = (*examples, outputs) if loss == "mse" else examples
    if y.shape != expected:
        return f"{split}_y has shape {tuple(y.shape)}; expected {expected}"
    return None


def unsuitable_tensor(
    tensor: Examples, name: str, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why this is not a plain tensor of a dtype on a device."""
    if not isinstance(tensor, Tensor):
        return f"{name} is a {type(tensor).__name__}; expected a tensor"
    if type(tensor) is not Tensor or tensor.dtype != dtype or tensor.device != device:
        return (
            f"{name} is a {type(tensor).__name__} of {tensor.dtype} on {tensor.device}; expected a "
            f"plain tensor of {dtype} on {device}"
        )
    return None
