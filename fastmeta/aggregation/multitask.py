"""Task aggregation for multi-task learning without an inner loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta._options import construct
from fastmeta.aggregation import AGGREGATIONS, Aggregation
from fastmeta.gradients import GradientBuffer, TaskGradients


def aggregate(
    losses: Sequence[Tensor] | Tensor,
    params: Iterable[Tensor],
    method: str = "upgrad",
    **options: Any,
) -> Tensor:
    """Accumulates a weighted sum of the losses' gradients in `.grad`, instead of `backward()`.

    Like `backward()` it adds to existing gradients and frees the graph of the losses. A parameter
    that no loss depends on keeps its `.grad`.

    Args:
        losses: `T` scalars, or a tensor `(T,)`.
        params: the parameters shared by the tasks, of one dtype on one device; those that do not
            require a gradient are skipped. For heads of single tasks, call
            `sum(losses).backward(inputs=heads, retain_graph=True)` first.
        method: a key of [`fastmeta.aggregation.AGGREGATIONS`][], or a plug-in's name.
            `"agreement"` compares these gradients (`of="meta"`).
        **options: of the method.

    Returns:
        The weights `(T,)`, float64 for float64 parameters, else float32.

    Raises:
        ValueError: if the method is unknown or needs an inner loop, there is no loss or no
            parameter, a loss is not a scalar with a graph, or parameters differ in dtype or device.
            `.grad` is unchanged then.
        TypeError: if the method has no such option.
    """
    aggregation = _aggregation(method, options)
    tasks = _scalars(losses)
    shared = _trainable(params)
    buffer = GradientBuffer(shared)
    reached = [False] * len(shared)
    for i, loss in enumerate(tasks):
        last = i == len(tasks) - 1
        grads = torch.autograd.grad(loss, shared, retain_graph=not last, allow_unused=True)
        buffer.append(grads)
        reached = [r or g is not None for r, g in zip(reached, grads, strict=True)]
    with torch.no_grad():
        found = TaskGradients(
            buffer.filled, losses=torch.stack([loss.detach().reshape(()) for loss in tasks])
        )
        weights = aggregation.weights(found)
        views = buffer.layout.views(found.combine(weights))
        for param, grad, known in zip(shared, views, reached, strict=True):
            if known:
                param.grad = grad if param.grad is None else param.grad.add_(grad)
    return weights


def _aggregation(method: str, options: dict[str, Any]) -> Aggregation:
    if method == "agreement":
        options = {"of": "meta", **options}
    found: Aggregation = construct(f"aggregation {method!r}", AGGREGATIONS[method], options)
    if found.needs_support_gradients:
        raise ValueError(f"{method} with {options} compares support gradients; aggregate has none.")
    if found.state_names:
        raise ValueError(
            f"{method} keeps {', '.join(found.state_names)} between steps; aggregate keeps "
            "nothing. Expected another method, or a MetaLearner."
        )
    return found


def _scalars(losses: Sequence[Tensor] | Tensor) -> list[Tensor]:
    if isinstance(losses, Tensor) and losses.dim() != 1:
        raise ValueError(f"expected a list or a tensor (T,) of losses, got {tuple(losses.shape)}.")
    found = list(losses)
    if not found:
        raise ValueError("no losses; expected at least one.")
    for i, loss in enumerate(found):
        if loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"expected scalar losses that depend on parameters, got shape {tuple(loss.shape)} "
                f"with requires_grad={loss.requires_grad} as loss {i}."
            )
    return found


def _trainable(params: Iterable[Tensor]) -> list[Tensor]:
    found = [param for param in dict.fromkeys(params) if param.requires_grad]
    if not found:
        raise ValueError("no parameter requires a gradient; expected at least one.")
    kinds = {(param.dtype, param.device) for param in found}
    if len(kinds) > 1:
        raise ValueError(
            "the parameters must have one dtype and one device, got "
            f"{', '.join(f'{d} on {v}' for d, v in sorted(kinds, key=str))}."
        )
    return found
