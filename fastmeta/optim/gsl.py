"""GSL as a drop-in replacement for the outer optimizer of an existing MAML loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.aggregation import GslWeights
from fastmeta.metagrad import VARIANT_ALIASES, gsl_variant
from fastmeta.metagrad.gsl.correction import Scope
from fastmeta.ops.weights import Magnitude
from fastmeta.optim.task_optimizer import TaskOptimizer

_VARIANTS = ("off", "correction", "layer-weights", "element-weights", "task-weights")


class GSLOptimizer(TaskOptimizer):
    """Any torch optimizer, applied to GSL meta-gradients instead of plain FOMAML ones.

    Our reconstruction of "MAML via AHE update" (Tak & Hong 2024), the gradient similarity loss. In
    a FOMAML loop, build this in place of the outer optimizer and mark each task:

        opt = fastmeta.GSLOptimizer(model.parameters(), base=torch.optim.Adam, lr=1e-3)
        for tasks in loader:
            opt.zero_grad()
            for task in tasks:
                with opt.task() as t:
                    ...  # inner loop; t.support(grads) after each inner step
                    query_loss.backward()
            opt.step()

    With `eta=0` this is the plain loop, bit for bit. It is a preset of
    [`TaskOptimizer`][fastmeta.TaskOptimizer], which documents the loop.

    Args:
        params: parameters or parameter groups.
        base: class (or factory) of the optimizer that applies the meta-gradient.
        lr: learning rate of `base`.
        variant: `"off"` (R0), `"correction"` (R1), `"layer-weights"` (R2),
            `"element-weights"` (R2p) or `"task-weights"` (R3), or the short name; see
            [`fastmeta.metagrad.gsl_variant`][], which names the class of each, and
            [`fastmeta.aggregation.GslWeights`][]. The options below have that class's defaults.
        eta: AHE rate; 0 is FOMAML.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        magnitude: norm of the correction.
        ratio: see `magnitude`.
        schedule: of `eta` over meta-steps.
        scope: `"vector"` compares whole gradients, `"layer"` each parameter tensor by itself.
        tau: temperature of the softmax of `"task-weights"`.
        **base_options: further options of `base`.

    Raises:
        ValueError: if the variant is unknown or an option is out of range.
        TypeError: if the variant has no such option, or a parameter is a DTensor or on the meta
            device.
    """

    def __init__(
        self,
        params: Any,
        base: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        lr: float | Tensor,
        variant: str = "correction",
        eta: float | None = None,
        lam_c: float | None = None,
        lam_2: float | None = None,
        magnitude: Magnitude | None = None,
        ratio: float | None = None,
        schedule: str | None = None,
        scope: Scope | None = None,
        tau: float | None = None,
        **base_options: Any,
    ) -> None:
        name = VARIANT_ALIASES.get(variant, variant)
        if name not in _VARIANTS:
            raise ValueError(
                f"variant must be one of {', '.join(_VARIANTS)}; got {variant!r}. For the others "
                "use fastmeta.GSL, which runs the inner loop itself."
            )
        given: dict[str, Any] = {
            "eta": eta,
            "lam_c": lam_c,
            "lam_2": lam_2,
            "magnitude": magnitude,
            "ratio": ratio,
            "schedule": schedule,
            "scope": scope,
            "tau": tau,
        }
        options = {option: value for option, value in given.items() if value is not None}
        if name == "task-weights":
            super().__init__(params, base, aggregation=GslWeights(**options), lr=lr, **base_options)
        else:
            metagrad = gsl_variant(name, **options)
            super().__init__(params, base, metagrad=metagrad, lr=lr, **base_options)
