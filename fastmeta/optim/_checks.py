"""Checks of parameters and of how a loop uses its optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from fastmeta.aggregation import Aggregation


def check_real(params: Sequence[Tensor], group: int) -> None:
    """Rejects complex parameters, whose gradients have no similarity here.

    Raises:
        TypeError: if one is complex.
    """
    for i, param in enumerate(params):
        if param.is_complex():
            raise TypeError(
                f"parameter {i} of group {group} is {param.dtype}; expected real parameters, such "
                "as torch.view_as_real of it."
            )


def check_of_gradients(aggregation: Aggregation) -> None:
    """Rejects an aggregation that needs more than the tasks' gradients.

    Raises:
        ValueError: if it does.
    """
    if aggregation.needs_losses or aggregation.state_names:
        raise ValueError(
            f"aggregation.{type(aggregation).__name__} needs the query losses of the tasks, or a "
            "state, which are those of your loop here; expected an aggregation of gradients. Use "
            "fastmeta.MetaLearner, or weight the losses in the loop."
        )


def warn_unmarked(base: object, metagrad: object, aggregation: object) -> None:
    """Warns of an outer step with gradients, but without a marked task."""
    warnings.warn(
        f"step() without a marked task: {type(base).__name__} takes its step with .grad as it is. "
        "Run each task of the loop in 'with opt.task() as task: ...', and take its inner gradients "
        "by task.inner_gradients(loss), with opt.task(inner_lr=...) if its updates are in place, "
        f"for metagrad.{type(metagrad).__name__} and aggregation.{type(aggregation).__name__} to "
        "take effect.",
        UserWarning,
        stacklevel=5,
    )


def check_loss_scale(scale: float, *components: object) -> None:
    """Rejects a loss scale that is not known where gradients are compared by their norms.

    Args:
        scale: that of the tasks; a `GradScaler` makes it larger than 1.
        components: meta-gradient and aggregation.

    Raises:
        RuntimeError: if one compares norms and the scale is not larger than 1.
    """
    for component in components:
        loss = getattr(component, "loss", component)
        norms = getattr(loss, "lam_2", 0) != 0 or getattr(component, "magnitude", "") == "none"
        if norms and scale <= 1:
            raise RuntimeError(
                f"{type(component).__name__} with lam_2 or magnitude='none' compares norms, but "
                "GradScaler has scaled the query gradients only; expected their scale: "
                "opt.task(scale=scaler.get_scale() / T), T the divisor of the query loss, or 1."
            )
