"""GSL as a drop-in replacement for the outer optimizer of an existing MAML loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.aggregation import GslWeights
from fastmeta.metagrad import VARIANT_ALIASES, gsl_variant
from fastmeta.metagrad.gsl.correction import Scope
from fastmeta.metagrad.gsl.variants import DEFAULT_VARIANT
from fastmeta.ops.weights import Magnitude
from fastmeta.optim.task_optimizer import TaskOptimizer

_VARIANTS = (
    "off",
    "correction",
    "similarity",
    "layer-weights",
    "element-weights",
    "task-weights",
)


class GSLOptimizer(TaskOptimizer):
    """Any torch optimizer, applied to GSL meta-gradients instead of plain FOMAML ones.

    Our reconstruction of "MAML via AHE update" (Tak & Hong 2024), the gradient similarity loss. In
    a FOMAML loop, build this in place of the outer optimizer, mark each task, and take the inner
    gradients by `inner_gradients` in place of `torch.autograd.grad`:

        opt = fastmeta.GSLOptimizer(model.parameters(), base=torch.optim.Adam, lr=1e-3)
        for tasks in loader:
            opt.zero_grad()
            for task in tasks:
                with opt.task() as t:
                    grads = t.inner_gradients(support_loss)
                    ...  # the inner step, then the next one or the query loss
                    query_loss.backward()
            opt.step()

    With `eta=0` this is the plain loop, bit for bit. It is a preset of
    [`TaskOptimizer`][fastmeta.TaskOptimizer], which documents the loop.

    `"similarity"` does not combine the gradients of single tasks, so `task = opt.task()` without
    `with` suffices, and the query losses of all tasks may be differentiated at once. The updates of
    the inner loop are differentiated; where they are not differentiable (`copy.deepcopy` and an
    inner optimizer), use `with opt.task(inner_lr=...)`.

    Args:
        params: parameters or parameter groups, with or without names, see
            [`TaskOptimizer`][fastmeta.TaskOptimizer].
        base: class (or factory) of the optimizer that applies the meta-gradient.
        lr: learning rate of `base`.
        variant: `"off"` (R0), `"correction"` (R1), `"similarity"`, `"layer-weights"` (R2),
            `"element-weights"` (R2p) or `"task-weights"` (R3), or the short name; see
            [`fastmeta.metagrad.gsl_variant`][], which names the class of each, and
            [`fastmeta.aggregation.GslWeights`][]. The options below have that class's defaults.
        eta: AHE rate; 0 is FOMAML.
        lam_d: weight of the inner product.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss; `"similarity"` then needs `opt.task(inner_lr=...)`.
        magnitude: norm of the correction.
        ratio: see `magnitude`.
        schedule: of `eta` over meta-steps.
        scope: `"vector"` compares whole gradients, `"layer"` each parameter tensor by itself.
        layers: whose support gradients `"similarity"` compares.
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
        variant: str = DEFAULT_VARIANT,
        eta: float | None = None,
        lam_d: float | None = None,
        lam_c: float | None = None,
        lam_2: float | None = None,
        magnitude: Magnitude | None = None,
        ratio: float | None = None,
        schedule: str | None = None,
        scope: Scope | None = None,
        layers: str | None = None,
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
            "lam_d": lam_d,
            "lam_c": lam_c,
            "lam_2": lam_2,
            "magnitude": magnitude,
            "ratio": ratio,
            "schedule": schedule,
            "scope": scope,
            "layers": layers,
            "tau": tau,
        }
        options = {option: value for option, value in given.items() if value is not None}
        if name == "task-weights":
            super().__init__(params, base, aggregation=GslWeights(**options), lr=lr, **base_options)
        else:
            metagrad = gsl_variant(name, **options)
            super().__init__(params, base, metagrad=metagrad, lr=lr, **base_options)
