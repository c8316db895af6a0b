"""The losses of a task with images of another size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.functional import FunctionalModule
from fastmeta.metagrad import TaskLosses
from fastmeta.tasks import Examples, Task


def resized_losses(
    losses: Callable[[Task[Any, Any]], TaskLosses],
    model: FunctionalModule,
    task: Task[Any, Any],
    size: int,
) -> TaskLosses:
    """The losses of a task with its images resized to another height and width.

    If the network ends with a plain linear layer, this layer uses the first columns of its weight
    for fewer features.

    Args:
        losses: of a task.
        model: the network.
        task: the task.
        size: height and width.

    Raises:
        ValueError: if the inputs are not images, or the learner has a co-learner or checkpoints.
    """
    if model.co_learner is not None or model.checkpoint:
        has = "a co-learner" if model.co_learner is not None else "checkpoint"
        raise ValueError(f"resized images cannot be used with {has}. Leave out sizes, or {has}.")
    small = task._replace(
        support_x=_resize(task.support_x, size), query_x=_resize(task.query_x, size)
    )
    head = model.find_head()
    if head is None:
        return losses(small)
    layer = model.module.get_submodule(head.name)

    def wrap(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with _first_columns(layer):
                return evaluate(*args)

        return run

    return losses(small).wrapped(wrap)


def _resize(x: Examples, size: int) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"only images can be resized: expected floating-point inputs (n, channels, height, "
            f"width), got {what}. Leave out sizes."
        )
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=True)


@contextmanager
def _first_columns(layer: nn.Module) -> Iterator[None]:
    """Inputs of a linear layer with fewer features are padded with zeros in this context."""
    assert isinstance(layer, nn.Linear)
    wanted = layer.in_features

    def pad(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        features, *others = inputs
        lacking = wanted - features.shape[-1]
        if lacking < 0:
            raise ValueError(
                f"resized images have {features.shape[-1]} features before the last layer, which "
                f"takes {wanted}. Give no size above that of the images."
            )
        return (F.pad(features, (0, lacking)), *others) if lacking else inputs

    handle = layer.register_forward_pre_hook(pad)
    try:
        yield
    finally:
        handle.remove()
